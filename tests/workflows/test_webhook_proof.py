"""The proof: ten thousand events, a receiver that fails half of the time, workers that are killed."""

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from deployerp.drivers.temporal import Temporal
from deployerp.embedded.control_plane import environment_of
from tests.conftest import free_port
from tests.webhooks import SECRET, House
from tests.workflows.unreliable_receiver import MOST_FAILURES

EVENTS = 10_000
ORGANIZATIONS = 4
EVENTS_OF_A_TRANSACTION = 20
KILL_SECONDS = 5.0

Message = tuple[str, str, str, str]
"""Which hook it came to, its id, its body, and what became of it."""


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """The one that many write to at once."""
    return postgres_url


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Impatient ones: the schedule is as long as always, and takes seconds instead of days.

    The time-out is shorter than a silence of the receiver, and longer than a busy machine makes it answer.
    """
    impatient = {"webhook_timeout_seconds": 3.0, "webhook_retry_seconds": [0.5, *[1.0] * 8]}
    return settings.model_copy(update=impatient)


@asynccontextmanager
async def process(log: Path, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    """A program of Python's; it ends with the block, if it has not been killed before."""
    with log.open("ab") as output:
        running = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=DEVNULL, stdout=output, stderr=output,
            env=os.environ | environment,
        )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@asynccontextmanager
async def unreliable_receiver(log: Path) -> AsyncIterator[str]:
    """Its URL."""
    port = free_port()
    program = ("-m", "tests.workflows.unreliable_receiver", "--port", str(port), "--log", str(log))
    async with process(log.with_suffix(".out"), *program, WEBHOOK_SECRET=SECRET):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                break
        yield f"http://127.0.0.1:{port}"


async def work_and_be_killed(settings: Settings, killed: list[int]) -> None:
    """Worker after worker, until cancelled; none works longer than five seconds."""
    while True:
        log = settings.home / f"worker-{len(killed)}.log"
        async with process(log, "-m", "deployerp.cli", "worker", **environment_of(settings)) as worker:
            while "worker runs" not in log.read_text():
                assert worker.returncode is None, f"the worker has ended by itself: {log.read_text()}"
                await asyncio.sleep(0.05)
            await asyncio.sleep(KILL_SECONDS)
            worker.kill()
            killed.append(worker.pid)


async def write_events(house: House, temporal: Temporal) -> None:
    for _ in range(EVENTS // ORGANIZATIONS // EVENTS_OF_A_TRANSACTION):
        await temporal.wake_endpoints(await house.happen(EVENTS_OF_A_TRANSACTION))


async def count(sessions: SessionFactory, state: str) -> int:
    query = select(func.count()).where(col(WebhookDelivery.state) == state)
    async with sessions() as session:
        return await session.scalar(query) or 0


async def test_nothing_is_missing_and_nothing_is_invented(
    settings: Settings, sessions: SessionFactory, tmp_path: Path
) -> None:
    vault, temporal = Vault(settings.encryption_keys), await Temporal.open(settings)
    houses = [await House(sessions, vault).found() for _ in range(ORGANIZATIONS)]
    killed: list[int] = []
    came = tmp_path / "receiver.log"
    async with unreliable_receiver(came) as url:
        for house in houses:
            await house.listen(f"{url}/{house.organization_id}")
        working = asyncio.create_task(work_and_be_killed(settings, killed))
        await asyncio.gather(*(write_events(house, temporal) for house in houses))
        while await count(sessions, "pending"):
            assert not working.done() or working.result()
            await asyncio.sleep(0.5)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    received: list[Message] = [tuple(json.loads(line)) for line in came.read_text().splitlines()]
    assert len(killed) >= 5, "the workers were not killed often enough to prove anything"
    await check_messages(sessions, received)
    await check_records(sessions, received)


async def check_messages(sessions: SessionFactory, received: list[Message]) -> None:
    """What came against what has happened."""
    async with sessions() as session:
        events = list(await session.scalars(select(Event)))
    happened = {f"evt_{each.id.hex}": (str(each.organization_id), message_of(each)) for each in events}
    variants: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for hook, message_id, body, _ in received:
        variants[message_id].add((hook, body))
    fates = Counter(fate for *_, fate in received)
    accepted = {message_id for _, message_id, _, fate in received if fate == "accepted"}
    assert len(happened) == EVENTS
    # Nothing missing, nothing invented.
    assert accepted == variants.keys() == happened.keys()
    # An id is one message in all tries, another message has another id, and each came to its own hook.
    assert all(len(each) == 1 for each in variants.values())
    told = {message_id: (hook, json.loads(body)) for message_id, [(hook, body)] in variants.items()}
    assert told == happened
    # It has failed as often as it was meant to, in every way.
    assert fates.keys() == {"accepted", "error", "dropped", "redirect", "busy", "silent"}
    assert 0.4 < fates["accepted"] / len(received) < 0.65


def message_of(event: Event) -> dict[str, Any]:
    timestamp = event.created_at.isoformat().replace("+00:00", "Z")
    return {"type": event.type, "timestamp": timestamp, "data": event.data}


async def check_records(sessions: SessionFactory, received: list[Message]) -> None:
    """What is written of the tries against the tries."""
    number = col(WebhookAttempt.number)
    tries = select(col(WebhookAttempt.delivery_id), func.count(), func.min(number), func.max(number))
    async with sessions() as session:
        deliveries = list(await session.scalars(select(WebhookDelivery)))
        found = await session.execute(tries.group_by(col(WebhookAttempt.delivery_id)))
        written = {delivery_id: tuple(numbers) for delivery_id, *numbers in found}
    assert len(deliveries) == EVENTS
    assert {each.state for each in deliveries} == {"succeeded"}
    assert written == {each.id: (each.attempts, 1, each.attempts) for each in deliveries}
    # A try whose record was lost with its worker has come to the receiver all the same.
    came = Counter(message_id for _, message_id, _, _ in received)
    assert all(each.attempts <= came[f"evt_{each.event_id.hex}"] for each in deliveries)
    assert max(each.attempts for each in deliveries) > MOST_FAILURES
