"""No secret is where it has no business: everything that the control plane has written is searched."""

import asyncio
import base64
import binascii
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import SQLModel

from deployerp.domain.events.event import Event
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.servers import Server
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from tests.e2e import world
from tests.e2e.conftest import House, Shop
from tests.e2e.plane import SECRET_VARIABLE, Plane
from tests.variables import AWKWARD_MARK

TOLD = (Event, Operation, OperationStep, WebhookDelivery, WebhookAttempt)
YOUNG = 50
SEALED = ("sealed_database_password", "sealed_master_password", "sealed_admin_password")
# What must have been seen, or the looking was no looking.
PROGRAMS = ("dockerd", "sshd", "postgres", "psql", "odoo --config", "caddy run")


async def test_nothing_tells_a_secret(plane: Plane, house: House, shop: Shop) -> None:
    async with plane.worker.elsewhere() as worker, watching_processes() as processes:
        # A worker process, because its log is what operators keep.
        await worker.start()
        server, _ = await plane.provision()
        node_of_its_own = await world.output_of("docker", "inspect", *await world.nodes_of(server["id"]))
        instance, _ = await plane.deploy(house.id)
        await plane.act("instances", instance["id"], "restart")
        shown = await plane.client.data("POST", f"/v1/instances/{instance['id']}/admin-password")
        plane.secrets.append(shown["password"])
        await plane.delete("instances", instance["id"])
        await plane.delete("servers", server["id"])
        await plane.await_webhooks(server["id"], ["server.created", "server.deleted"])
    seen = "\n".join(sorted(processes))
    for program in PROGRAMS:
        assert program in seen, f"the watch over processes has not seen {program}"

    secrets = await secrets_of(plane)
    assert len(secrets) > 10
    await assert_none(secrets, "process list", seen)
    await assert_none(secrets, "process list of the node", await world.output_of(
        "docker", "exec", house.node, "ps", "-eo", "args"
    ))  # fmt: skip
    await assert_none(secrets, "docker inspect", node_of_its_own)
    await assert_none(secrets, "docker inspect", await world.output_of("docker", "inspect", house.node))
    await assert_none(secrets, "docker logs", await world.output_of("docker", "logs", house.node))
    await assert_none(secrets, "answers", "\n".join(plane.answers))
    await assert_none(secrets, "webhooks", json.dumps(plane.receiver.events))
    for name in ("api.log", "worker.log"):
        log = (plane.logs / name).read_text()
        assert log, f"{name} is empty"
        await assert_none(secrets, name, log)
    for model in TOLD:
        rows = await rows_of(plane, model)
        assert rows, f"there are no {model.__name__}"
        await assert_none(secrets, model.__name__, "\n".join(rows))
    workflows = 0
    async for workflow, history in histories(plane):
        workflows += 1
        await assert_none(secrets, workflow, history)
    assert workflows > 5


async def secrets_of(plane: Plane) -> dict[str, str]:
    """Every secret there is, by what it is."""
    found = {
        "token": plane.client.token,
        "the token's secret part": plane.client.token.rpartition("_")[2],
        "webhook secret": plane.receiver.secret.removeprefix("whsec_"),
        "variable": SECRET_VARIABLE,
        "variable of many lines": AWKWARD_MARK,
        "encryption key": plane.settings.encryption_keys[0].get_secret_value(),
    }
    found |= {f"shown password {number}": secret for number, secret in enumerate(plane.secrets)}
    async with plane.sessions() as session:
        for instance in await session.scalars(select(Instance)):
            for name in SEALED:
                if sealed := getattr(instance, name):
                    found[f"{name} of {instance.id}"] = plane.vault.open(sealed)
        for server in await session.scalars(select(Server)):
            for name in ("sealed_host_private_key", "sealed_login_private_key"):
                if sealed := getattr(server, name):
                    # A line from its middle: the first ones are alike in all keys.
                    found[f"{name} of {server.id}"] = plane.vault.open(sealed).splitlines()[3]
    return found


async def assert_none(secrets: dict[str, str], where: str, text: str) -> None:
    # Not in the message: it must not print what it has found.
    told = [name for name, secret in secrets.items() if secret in text]
    assert told == [], f"{where} tells {told}"


async def rows_of(plane: Plane, model: type[SQLModel]) -> list[str]:
    async with plane.sessions() as session:
        return [json.dumps(row.model_dump(mode="json")) for row in await session.scalars(select(model))]


async def histories(plane: Plane) -> AsyncIterator[tuple[str, str]]:
    """Every workflow of the organization: its id, and all texts of its history, also the encoded ones."""
    query = f"DeployerpOrganization = '{plane.client.organization_id}'"
    async for execution in plane.temporal.client.list_workflows(query):
        handle = plane.temporal.client.get_workflow_handle(execution.id, run_id=execution.run_id)
        history = await handle.fetch_history()
        yield execution.id, "\n".join(_texts(json.loads(history.to_json())))


def _texts(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for name, each in value.items():
                yield name
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
        case str():
            yield value
            with suppress(binascii.Error):
                yield base64.b64decode(value, validate=True).decode(errors="replace")


def test_encoded_texts_are_read() -> None:
    encoded = base64.b64encode(b"something long enough").decode()
    assert "something long enough" in "\n".join(_texts({"payloads": [{"data": encoded}]}))


@asynccontextmanager
async def watching_processes() -> AsyncIterator[set[str]]:
    """Every command line on this machine meanwhile, those in containers of containers too."""
    seen: set[str] = set()

    async def watch() -> None:
        looks: Counter[Path] = Counter()
        while True:
            seen.update(_command_lines(looks))
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _command_lines(looks: Counter[Path]) -> Iterator[str]:
    # Young ones again and again: some live for a moment only, and change their arguments meanwhile.
    young = [each for each in Path("/proc").iterdir() if each.name.isdigit() and looks[each] < YOUNG]
    looks.update(young)
    for process in young:
        try:
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if arguments:
            yield arguments.replace(b"\0", b" ").decode(errors="replace")
