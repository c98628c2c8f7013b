"""Takes the pictures of Temporal's user interface that the documentation shows.

Run it by `make screenshots` after what operators see there has changed, and look at the pictures.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from playwright.async_api import Page, async_playwright
from temporalio.client import Client, WorkflowFailureError

from deployerp.core.errors import ImageUnavailable
from deployerp.domain.operations.messages import OperationOrder, workflow_id
from deployerp.domain.operations.steps import STEPS
from deployerp.drivers.temporal import Temporal
from deployerp.embedded import control_plane
from tests.workflows.stand_ins import Play, StandIns, order_for, until, working

FOLDER = Path(__file__).parents[2] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ORGANIZATION = "01932a7c-8f4e-7c3a-9b2d-00000000000a"
_STEP_SECONDS = 0.4
_QUEUE = "deployerp"
_SIZE = {"width": 1280, "height": 760}

# Kind of resource, action, slug, and the step in which it fails.
_OPERATIONS: Sequence[tuple[str, str, str, str | None]] = (
    ("server", "provision", "berlin-1", None),
    ("server", "provision", "paris-1", None),
    ("instance", "deploy", "acme", None),
    ("instance", "deploy", "globex", "pull_images"),
    ("instance", "restart", "acme", None),
    ("instance", "deploy", "initech", None),
)
_SHOWN = _OPERATIONS[2]


def _order(number: int, resource_type: str, action: str, slug: str) -> OperationOrder:
    operation_id = str(UUID(f"01932a7c-8f4e-7c3a-9b2d-{number:012}"))
    return replace(
        order_for(resource_type, action),
        operation_id=operation_id,
        organization_id=_ORGANIZATION,
        resource_id=str(UUID(f"01932a7c-8f4e-7c3a-9b2d-{number + 100:012}")),
        workflow_id=workflow_id(resource_type, action, slug, operation_id),
        resource_name=slug,
        resource_slug=slug,
    )


def _plays(fails_in: str | None) -> dict[str, Play]:
    async def work(_: int) -> None:
        await asyncio.sleep(_STEP_SECONDS)

    async def fail(_: int) -> None:
        raise ImageUnavailable("No registry has the image: name another.")

    return {step: fail if step == fails_in else work for step in STEPS}


async def _operate(temporal: Temporal) -> list[OperationOrder]:
    """Runs the operations one after the other."""
    orders = []
    for number, (resource_type, action, slug, fails_in) in enumerate(_OPERATIONS, start=1):
        order = _order(number, resource_type, action, slug)
        orders.append(order)
        async with working(temporal.client, StandIns(_plays(fails_in)), _QUEUE):
            await temporal.start_operation(order)
            with suppress(WorkflowFailureError):
                await temporal.client.get_workflow_handle(order.workflow_id).result()
    return orders


async def _take(page: Page, address: str, name: str, text: str) -> None:
    """A picture of a page as soon as it shows the text."""
    await page.goto(address)
    shown = page.get_by_text(text).first
    await shown.wait_for(timeout=30_000)
    # What is still drawn, and pictures and letters that are still loaded.
    await page.wait_for_load_state("networkidle")
    await page.wait_for_timeout(1_500)
    await shown.scroll_into_view_if_needed()
    path = FOLDER / f"{name}.png"
    await page.screenshot(path=path)
    print(f"{path.relative_to(Path.cwd())}: {path.stat().st_size // 1000} kB")  # noqa: T201


async def take_screenshots(home: Path) -> None:
    ports = control_plane.Ports.free()
    settings = control_plane.embedded_settings(home, ports)
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit("Chromium is missing: `scripts/system-packages chromium` installs it")
    FOLDER.mkdir(exist_ok=True)
    async with control_plane.services(settings, ports), async_playwright() as playwright:
        namespace = settings.temporal_namespace
        # The picture must not show the machine that it was taken on.
        client = await Client.connect(settings.temporal_address, namespace=namespace, identity="api")
        temporal = Temporal(client, _QUEUE)
        orders = await _operate(temporal)
        may_end = asyncio.Event()
        stand_ins = StandIns(_plays(None) | {"wait_for_odoo": until(may_end)})
        async with working(client, stand_ins, _QUEUE):
            running = _order(len(orders) + 1, "instance", "deploy", "umbrella")
            await temporal.start_operation(running)
            await stand_ins.reached("wait_for_odoo")
            browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = await browser.new_page(viewport=_SIZE)
            base = f"http://127.0.0.1:{ports.temporal_ui}/namespaces/{namespace}/workflows"
            await _take(page, base, "temporal-workflows", running.workflow_id)
            shown = orders[_OPERATIONS.index(_SHOWN)].workflow_id
            last = STEPS["check_login"]
            await _take(page, f"{base}/{shown}", "temporal-operation", last)
            await browser.close()
            may_end.set()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(take_screenshots(Path(folder)))
