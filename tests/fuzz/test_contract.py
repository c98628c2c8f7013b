"""The running API keeps its contract, whatever is sent: Schemathesis over the OpenAPI document.

`FUZZ_SECONDS` is how long to try at random (`make fuzz`); without it the same is tried every time.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import httpx
import pytest
import structlog
from sqlalchemy import select
from sqlmodel import col

from deployerp.activities.records import Records
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey, key_id_of
from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES
from deployerp.domain.operations.messages import OperationEnd, Outcome
from deployerp.domain.operations.operation import Operation
from tests.conftest import Client, Fleet, new_client
from tests.serving import listening

ROOT = Path(__file__).parent.parent.parent
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
SECONDS = int(os.environ.get("FUZZ_SECONDS", "0"))
PHASES = ("examples", "coverage", "fuzzing", "stateful")
# The stateful phase gives up soon where an answer depends on what was before, and goes on only as long as
# it has time.
RUNS = (
    [["--max-time", str(SECONDS)]]
    if SECONDS
    else [
        ["--generation-deterministic", "--phases", "examples,coverage,fuzzing"],
        ["--seed", "1", "--phases", "stateful", "--max-time", "10"],
    ]
)
# They take what only a person knows.
NEVER_ACCEPTED = {
    "POST /v1/auth/token",
    "POST /v1/auth/refresh",
    "POST /v1/auth/set-password",
    "POST /v1/me/password",
}
_SETTLE_SECONDS = 0.02


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    # The kinds of database are compared elsewhere, with requests that mean something.
    return sqlite_url


@pytest.fixture
def _only_warnings() -> Iterator[None]:
    """Thousands of requests would hide what Schemathesis has to say."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.configure(wrapper_class=before)


@pytest.mark.usefixtures("_only_warnings")
@pytest.mark.timeout(600 + SECONDS)
async def test_the_api_keeps_its_contract(
    settings: Settings, sessions: SessionFactory, records: Records, tmp_path: Path
) -> None:
    async with listening(settings, streaming=False) as address, httpx.AsyncClient(base_url=address) as http:
        one, other = await new_client(http, settings), await new_client(http, settings)
        for client in (one, other):
            await populate(Fleet(client, records))
        environment = {
            "FUZZ_ADDRESS": address,
            "FUZZ_KEY": one.token,
            "FUZZ_OTHER_KEY": other.token,
            "FUZZ_OWN_KEY": await own_key(sessions, one),
        }
        async with settling(sessions, records):
            reports = [
                await schemathesis(address, run, environment, tmp_path / f"{number}.json")
                for number, run in enumerate(RUNS)
            ]
    # What exactly, and how to see it again, is in what Schemathesis has printed.
    assert [problem for report in reports for problem in report["failures"] + report["errors"]] == []
    assert [report["exit_code"] for report in reports] == [0] * len(RUNS)
    phases = [item for report in reports for item in report["phases"].items()]
    ran = {name: phase["status"] for name, phase in phases if phase["status"] != "skip"}
    assert ran == dict.fromkeys(PHASES, "success")
    assert reports[0]["operations"]["tested"] == reports[0]["operations"]["total"]
    assert unreached(reports[0]) <= NEVER_ACCEPTED


async def populate(fleet: Fleet) -> None:
    """Something of every kind, to be found and changed; much of it, because one deletion takes many along."""
    await fleet.client.call("POST", "/v1/webhook-endpoints", {"url": "https://127.0.0.1/hooks"})
    for number in range(5):
        server = await fleet.server(f"running-{number}")
        for _ in range(2):
            await fleet.instance(server["id"])
        await fleet.provider(f"unused-{number}")
    for number in range(3):
        # Operations that can be retried, and some that can be cancelled.
        await fleet.end(await fleet.begin_server(f"failed-{number}"), "failed")
        await fleet.begin_server(f"pending-{number}")


async def own_key(sessions: SessionFactory, client: Client) -> str:
    async with sessions() as session:
        mine = select(col(ApiKey.id)).where(col(ApiKey.key_id) == key_id_of(client.token))
        return str(await session.scalar(mine))


async def schemathesis(address: str, run: Sequence[str], environment: dict[str, str], written: Path) -> dict:
    """Its report on one run."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
        *("run", f"{address}/openapi.json", "--report-json-path", str(written), *run),
    ]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=os.environ | environment)
    await process.wait()
    return json.loads(written.read_text())  # noqa: ASYNC240  (there is nothing else to do)


def unreached(report: dict) -> set[str]:
    """The calls that never did what they are for."""
    rates = report["valid_rates"].items()
    return {call for call, phases in rates if not any(rate["accepted"] for rate in phases.values())}


@asynccontextmanager
async def settling(sessions: SessionFactory, records: Records) -> AsyncIterator[None]:
    """Brings operations to their end, as workflows would, only sooner; what is pending waits for a cancel."""
    waiting = {operation.id for operation in await operations_in(sessions, "pending")}

    async def settle() -> None:
        for turn in count():
            for operation in await operations_in(sessions, *OPEN_OPERATION_STATES):
                if operation.state == "pending" and operation.id in waiting:
                    continue
                await records.claim_operation(operation.order)
                await records.end_operation(OperationEnd(operation.order, outcome_of(operation, turn)))
            await asyncio.sleep(_SETTLE_SECONDS)

    settler = asyncio.create_task(settle())
    yield
    settler.cancel()
    with suppress(asyncio.CancelledError):
        await settler


async def operations_in(sessions: SessionFactory, *states: str) -> Sequence[Operation]:
    async with sessions() as session:
        return (await session.scalars(select(Operation).where(col(Operation.state).in_(states)))).all()


def outcome_of(operation: Operation, turn: int) -> Outcome:
    if operation.state == "cancelling":
        return "cancelled"
    # What fails can be retried; but what was deleted is to be gone.
    return "failed" if operation.action != "delete" and turn % 4 == 0 else "succeeded"
