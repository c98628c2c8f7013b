"""What the control plane adds to a deploy: its seconds beside those of the same commands typed by hand.

Both deploy on one server, in turns, by copying the same prepared database.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from by_hand import ByHand, Shell
from control_plane import client_of, running, spread
from rich.console import Console
from rich.table import Table

from deployerp.activities.steps.instance_parts import Images
from deployerp.core.errors import DeployError
from deployerp.drivers.engine.engine import Engine
from deployerp.embedded import control_plane
from deployerp.embedded.demo import Api

ROUNDS = 3
_VERSION = "19.0"
# Given up after this, once the images are there; a quiet machine needs half of it.
_SECONDS = 240
_SHARED = Path(".deployerp").resolve()
_CONSOLE = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Deployed:
    """`seconds` from the request to the operation's end; `steps` as the operation itself tells them."""

    instance_id: str
    seconds: float
    steps: dict[str, float]


async def deploy(api: Api, server_id: str, slug: str) -> Deployed:
    body = {
        "name": slug, "slug": slug, "serverId": server_id, "odooVersion": _VERSION,
        "odooEdition": "community", "environmentType": "development",
    }  # fmt: skip
    asked = time.time()
    instance = await api.call("POST", "/v1/instances", body)
    operation = await _followed(api, instance)
    seconds = _time(operation["finishedAt"]) - asked
    steps = {
        step["name"]: _time(step["finishedAt"]) - _time(step["startedAt"]) for step in operation["steps"]
    }
    return Deployed(instance["id"], seconds, steps)


async def delete(api: Api, path: str) -> None:
    await _followed(api, await api.call("DELETE", path))


async def _followed(api: Api, begun: dict[str, Any]) -> dict[str, Any]:
    """The operation that was begun, once it has succeeded."""
    await api.follow(begun["operation"]["id"], lambda _: None)
    operation: dict[str, Any] = await api.call("GET", f"/v1/operations/{begun['operation']['id']}")
    return operation


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@asynccontextmanager
async def server_of(api: Api) -> AsyncIterator[str]:
    """The id of a provisioned server, of which nothing is left in the end."""
    provider = await api.call("POST", "/v1/providers", {"name": "here", "kind": "docker"})
    begun = await api.call(
        "POST", "/v1/servers", {"name": "bench", "providerId": provider["id"], "size": "medium"}
    )
    try:
        await _followed(api, begun)
        yield begun["id"]
    finally:
        try:
            await delete(api, f"/v1/servers/{begun['id']}?force=true")
        finally:
            # Also when it was the control plane that has failed.
            async with Engine.local() as engine:
                await engine.remove_labelled({"deployerp.server": begun["id"]})


async def measure(api: Api, images: Images) -> tuple[Deployed, list[Deployed], list[dict[str, float]]]:
    """The first deploy, which pays for images and the database to copy; then pairs of deploys."""
    _CONSOLE.print("Provisioning a server")
    async with server_of(api) as server_id:
        async with Engine.local() as engine:
            [node] = await engine.find_containers({"deployerp.server": server_id})
        _CONSOLE.print("Deploying the first instance")
        first = await deploy(api, server_id, "bench-0")
        await delete(api, f"/v1/instances/{first.instance_id}")
        ours, theirs = [], []
        for number in range(1, ROUNDS + 1):
            ours.append(await deploy(api, server_id, f"bench-{number}"))
            await delete(api, f"/v1/instances/{ours[-1].instance_id}")
            async with Shell.on(node.name) as shell:
                by_hand = ByHand(shell, images)
                await by_hand.deploy()
                await by_hand.remove()
            theirs.append(by_hand.seconds)
            _CONSOLE.print(
                f"Round {number}: {ours[-1].seconds:.2f} s, by hand {sum(by_hand.seconds.values()):.2f} s"
            )
        return first, ours, theirs


def summary(first: Deployed, ours: list[Deployed], theirs: list[dict[str, float]]) -> dict[str, Any]:
    by_hand = [sum(seconds.values()) for seconds in theirs]
    differences = [our.seconds - their for our, their in zip(ours, by_hand, strict=True)]
    steps = {
        name: {
            "deployerp": round(statistics.median(our.steps[name] for our in ours), 3),
            "by_hand": round(statistics.median(their.get(name, 0.0) for their in theirs), 3),
        }
        for name in ours[0].steps
    }
    between = statistics.median(our.seconds - sum(our.steps.values()) for our in ours)
    return {
        "bench": "deploy",
        "rounds": len(ours),
        "first_deploy_seconds": round(first.seconds, 2),
        "deployerp_seconds": spread([our.seconds for our in ours]),
        "by_hand_seconds": spread(by_hand),
        "overhead_seconds": spread(differences),
        "ratio": round(statistics.median(our.seconds for our in ours) / statistics.median(by_hand), 2),
        "steps": steps | {"between steps": {"deployerp": round(between, 3), "by_hand": 0.0}},
    }


def show(figures: dict[str, Any]) -> None:
    table = Table("step (median of seconds)", "deployERP", "by hand", "difference")
    for column in table.columns[1:]:
        column.justify = "right"
    totals = {
        "deployerp": figures["deployerp_seconds"]["median"],
        "by_hand": figures["by_hand_seconds"]["median"],
    }
    for name, seconds in (*figures["steps"].items(), ("all", totals)):
        ours, theirs = seconds["deployerp"], seconds["by_hand"]
        table.add_row(name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}")
    _CONSOLE.print(table)
    overhead = figures["overhead_seconds"]
    _CONSOLE.print(
        f"The control plane adds {overhead['median']:.2f} s ({overhead['min']:.2f} to {overhead['max']:.2f}):"
        f" {figures['ratio']:.2f} times the commands by hand."
    )


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="deployerp-bench-") as folder:
        home, ports = Path(folder), control_plane.Ports.free()
        settings = control_plane.embedded_settings(home, ports)
        # Locks and scratch of images are shared with every other control plane of this checkout.
        shared = settings.model_copy(update={"home": _SHARED})
        await control_plane.provide_images(shared, _CONSOLE.print)
        images = Images(settings.postgres_image, settings.odoo_image_for(_VERSION))
        options = [f"--home={home}", f"--port={ports.api}", f"--temporal-port={ports.temporal}"]
        options += [f"--ui-port={ports.temporal_ui}", f"--storage-port={ports.object_storage}"]
        options.append(f"--worker-port={ports.worker}")
        try:
            async with (
                running(home, "dev", "--no-images", *options) as process,
                client_of(home, ports.api, process) as api,
                asyncio.timeout(_SECONDS),
            ):
                figures = summary(*await measure(api, images))
        except (DeployError, TimeoutError) as error:
            reason = error.message if isinstance(error, DeployError) else f"not done within {_SECONDS} s"
            _CONSOLE.print(f"Failed: {reason}")
            with suppress(OSError):
                _CONSOLE.print((home / "control-plane.log").read_text()[-2000:])
            sys.stdout.write(json.dumps({"bench": "deploy", "error": reason}) + "\n")
            return 1
    show(figures)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
