"""One look at the logs of all organizations that somebody follows, and none where nobody does."""

import asyncio
from collections.abc import Iterable
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from deployerp.api.contract import watcher
from deployerp.api.contract.watcher import Version, Watcher
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.steps import StepRun
from tests.api.writers import new_servers, write
from tests.conftest import Client, Fleet, new_client

LONG = 60


class Counting(Watcher):
    """Keeps what it was looked at, and cannot look for as long as it is told not to."""

    def __init__(self, sessions: SessionFactory) -> None:
        super().__init__(sessions)
        self.looks: list[set[UUID]] = []
        self.looks_at_operations: list[set[UUID]] = []
        self.broken = False

    async def _look(self, organizations: Iterable[UUID]) -> dict[UUID, int]:
        self.looks.append({*organizations})
        if self.broken:
            raise ConnectionError("nobody is there")
        return await super()._look(organizations)

    async def _look_at_operations(self, ids: Iterable[UUID]) -> dict[UUID, Version]:
        self.looks_at_operations.append({*ids})
        return await super()._look_at_operations(ids)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_LOOK_SECONDS", 0.01)


async def test_many_who_follow_are_told_by_one_look(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    looking = Counting(sessions)
    clients = [client, await new_client(client.http, settings), await new_client(client.http, settings)]
    servers = [(await new_servers(sessions, each.organization_id))[0] for each in clients]

    async def told(organization_id: UUID) -> int:
        with looking.following(organization_id) as log:
            await log.beyond(0, within=LONG)
            return log.latest

    async with looking.looking():
        followers = [asyncio.create_task(told(each.organization_id)) for each in clients[:2] * 10]
        await asyncio.sleep(0)
        await write(sessions, servers[1], "server.created", "server.deleted")
        await write(sessions, servers[0], "server.created")
        await write(sessions, servers[2], "server.created")
        found = await asyncio.gather(*followers)
    assert set(found[0::2]) == {1}
    # Of the second organization both came at once.
    assert set(found[1::2]) == {2}
    both = {each.organization_id for each in clients[:2]}
    assert both in looking.looks
    assert all(each <= both for each in looking.looks)


@pytest.mark.fault("24")
async def test_many_who_follow_an_operation_are_told_of_each_change_by_one_look(
    client: Client, fleet: Fleet, sessions: SessionFactory
) -> None:
    looking = Counting(sessions)
    operation_id = (await fleet.begin_server())["operation"]["id"]
    known = asyncio.Semaphore(0)

    async def changes() -> list[int]:
        with looking.following_operation(client.organization_id, UUID(operation_id)) as operation:
            await operation.beyond(0, within=LONG)
            seen = [operation.latest]
            for _ in range(2):
                known.release()
                await operation.beyond(seen[-1], within=LONG)
                seen.append(operation.latest)
            return seen

    async with looking.looking():
        followers = [asyncio.create_task(changes()) for _ in range(10)]
        for change in (
            lambda: fleet.records.begin_step(StepRun(operation_id, "create_node")),
            lambda: fleet.records.detail_step(StepRun(operation_id, "create_node"), "Asking"),
        ):
            for _ in followers:
                await known.acquire()
            assert looking.streams(client.organization_id) == 10
            await change()
        assert await asyncio.gather(*followers) == [[1, 2, 3]] * 10
    assert looking.streams(client.organization_id) == 0
    assert looking.looks_at_operations
    assert all(look == {UUID(operation_id)} for look in looking.looks_at_operations)


async def test_where_nobody_follows_nobody_looks(client: Client, sessions: SessionFactory) -> None:
    looking = Counting(sessions)
    async with looking.looking():
        with looking.following(client.organization_id), looking.following(client.organization_id):
            while not looking.looks:
                await asyncio.sleep(0.01)
        seen = len(looking.looks)
        await asyncio.sleep(0.1)
    # One may have been under way.
    assert len(looking.looks) <= seen + 1
    assert set(map(frozenset, looking.looks)) == {frozenset({client.organization_id})}


async def test_a_look_that_fails_is_followed_by_another(client: Client, sessions: SessionFactory) -> None:
    looking = Counting(sessions)
    (server_id,) = await new_servers(sessions, client.organization_id)
    await write(sessions, server_id, "server.created")
    looking.broken = True
    with capture_logs() as lines:
        async with looking.looking():
            with looking.following(client.organization_id) as log:
                while not lines:
                    await asyncio.sleep(0.01)
                assert log.latest == 0
                looking.broken = False
                await log.beyond(0, within=LONG)
                assert log.latest == 1
    assert lines[0]["event"] == "the event log cannot be watched"


async def test_whoever_waits_in_vain_goes_on(client: Client, sessions: SessionFactory) -> None:
    looking = Counting(sessions)
    async with looking.looking():
        with looking.following(client.organization_id) as log:
            await log.beyond(0, within=0.05)
            assert log.latest == 0


async def test_the_latest_is_read_anew(client: Client, sessions: SessionFactory) -> None:
    looking = Watcher(sessions)
    (server_id,) = await new_servers(sessions, client.organization_id)
    for expected in range(3):
        assert await looking.latest(client.organization_id) == expected
        await write(sessions, server_id, "server.restarted")


async def test_nobody_looks_any_more_after_an_error(client: Client, sessions: SessionFactory) -> None:
    looking = Counting(sessions)
    with pytest.raises(ZeroDivisionError):
        async with looking.looking():
            raise ZeroDivisionError
    assert looking.closed.is_set()
