"""The event log as server-sent events: from any point, to whoever may read it, from whatever process."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from uuid import UUID

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col
from structlog.testing import capture_logs

from deployerp.api.access import authentication
from deployerp.api.contract import streams
from deployerp.api.events import LOG
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.users import Member
from tests.api.following import following
from tests.api.people import person
from tests.api.processes import SERVE, api_processes
from tests.api.writers import new_servers, write
from tests.conftest import Client, Fleet, new_client
from tests.serving import listening

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
# More than the connections that a process has to its database.
MANY = 25


@pytest.fixture
async def address(settings: Settings) -> AsyncIterator[str]:
    """Of the API."""
    async with listening(settings) as opened:
        yield opened


@pytest.fixture
async def server_id(client: Client, sessions: SessionFactory) -> UUID:
    (found,) = await new_servers(sessions, client.organization_id)
    return found


@pytest.fixture
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat comes whenever there is nothing to tell."""
    monkeypatch.setattr(streams, "_HEARTBEAT_SECONDS", 0)


async def test_a_stream_tells_what_is_written_from_now_on(
    client: Client, address: str, sessions: SessionFactory, server_id: UUID
) -> None:
    await write(sessions, server_id, "server.created")
    async with following(client, address) as stream:
        assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
        assert stream.answer.headers["Cache-Control"] == "no-store"
        assert await stream.block() == ["retry: 1000"]
        await write(sessions, server_id, "server.stopped", "server.deleted")
        blocks = [await stream.block() for _ in range(2)]
    for block, event in zip(blocks, await client.data("GET", "/v1/events?after=1"), strict=True):
        assert block is not None
        numbered, named, data = block
        assert (numbered, named) == (f"id: {event['sequence']}", f"event: {event['type']}")
        assert json.loads(data.removeprefix("data: ")) == event


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("after=0", {}, 1),
        ("after=2", {}, 3),
        ("", {"Last_Event_ID": "1"}, 2),
        # A client that has lost its stream comes again with the address that it came with at first.
        ("after=0", {"Last_Event_ID": "2"}, 3),
        ("after=3", {"Last_Event_ID": "0"}, 1),
        ("", {"Last_Event_ID": "3"}, 4),
    ],
)
async def test_a_stream_begins_where_the_client_was(
    client: Client,
    address: str,
    sessions: SessionFactory,
    server_id: UUID,
    query: str,
    headers: Mapping[str, str],
    first: int,
) -> None:
    await write(sessions, server_id, "server.created", "server.stopped", "server.started")
    async with following(client, address, query, **headers) as stream:
        told = await stream.next(4 - first)
        await write(sessions, server_id, "server.deleted")
        told += await stream.next(1)
    assert [each.sequence for each in told] == [*range(first, 5)]
    assert [each.id for each in told] == [str(each) for each in range(first, 5)]


async def test_a_long_log_is_told_to_its_end_and_goes_on(
    client: Client, address: str, sessions: SessionFactory, server_id: UUID
) -> None:
    await write(sessions, server_id, *["server.restarted"] * 250)
    async with following(client, address, "after=0") as stream:
        assert await stream.sequences(250) == [*range(1, 251)]
        await write(sessions, server_id, "server.created")
        assert await stream.sequences(1) == [251]


async def test_a_stream_tells_what_is_asked_for(
    client: Client, address: str, sessions: SessionFactory
) -> None:
    one, other = await new_servers(sessions, client.organization_id, 2)
    await write(sessions, one, *["server.restarted"] * 120, "server.stopped")
    await write(sessions, other, "server.stop_failed", "server.stopped")
    for query, expected in (
        ("type=server.stop*", [121, 122, 123, 125]),
        ("type=server.stopped", [121, 123, 125]),
        (f"resource_id={other}", [122, 123, 125]),
        (f"resource_id={other}&type=*.stopped", [123, 125]),
    ):
        async with following(client, address, f"after=0&{query}") as stream:
            assert await stream.sequences(len(expected) - 1) == expected[:-1], query
            if not (await client.data("GET", "/v1/events?after=123")):
                await write(sessions, one, "server.restarted")
                await write(sessions, other, "server.stopped")
            assert await stream.sequences(1) == expected[-1:], query


async def test_another_organization_s_events_are_not_told(
    client: Client, address: str, settings: Settings, sessions: SessionFactory, server_id: UUID
) -> None:
    stranger = await new_client(client.http, settings)
    (theirs,) = await new_servers(sessions, stranger.organization_id)
    async with following(stranger, address, "after=0") as stream:
        await write(sessions, server_id, "server.created", "server.deleted")
        await write(sessions, theirs, "server.stopped")
        (told,) = await stream.next(1)
    assert (told.sequence, told.event, told.data["resourceId"]) == (1, "server.stopped", str(theirs))


@one_database
async def test_what_cannot_be_followed_is_refused_by_its_name(
    client: Client, sessions: SessionFactory, server_id: UUID
) -> None:
    await write(sessions, server_id, "server.created")
    for query, header, field in (
        ("", "2", "Last-Event-ID"),
        ("", "-1", "Last-Event-ID"),
        ("", "x", "Last-Event-ID"),
        ("", "", "Last-Event-ID"),
        ("", "9" * 30, "Last-Event-ID"),
        ("after=2", None, "after"),
        ("after=-1", None, "after"),
        ("type=server.exploded", None, "type"),
        ("resource_id=x", None, "resource_id"),
        ("types=server.*", None, "types"),
    ):
        headers = {} if header is None else {"Last-Event-ID": header}
        answer = await client.request("GET", f"/v1/events/stream?{query}", headers=headers)
        assert answer.status_code == 422, (query, header)
        assert [each["field"] for each in answer.json()["error"]["details"]["fields"]] == [field]
    error = await client.error("GET", "/v1/events/stream?after=2", code="validation_error")
    assert error["message"] == "after: must be at most 1, the sequence of the latest event"


@one_database
async def test_an_organization_has_no_more_streams_than_it_may(
    client: Client,
    settings: Settings,
    address: str,
    server_id: UUID,
    sessions: SessionFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_MOST_STREAMS", 2)
    other = await new_client(client.http, settings)

    async def refused(http: httpx.AsyncClient) -> httpx.Response | None:
        """The answer to one more stream, if it is an error."""
        bearer = {"Authorization": f"Bearer {client.token}"}
        async with http.stream("GET", "/v1/events/stream", headers=bearer) as answer:
            if answer.is_success:
                return None
            await answer.aread()
            return answer

    async with httpx.AsyncClient(base_url=address) as http:
        async with following(client, address) as one, following(client, address) as two:
            await write(sessions, server_id, "server.created")
            assert await one.sequences(1) == await two.sequences(1) == [1]
            answer = await refused(http)
            assert answer is not None
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
            assert "close one" in answer.json()["error"]["message"]
            async with following(other, address):
                pass
        async with asyncio.timeout(10):
            while await refused(http):
                await asyncio.sleep(0.05)


@one_database
@pytest.mark.usefixtures("_restless")
async def test_a_silent_stream_has_a_heartbeat(client: Client, address: str) -> None:
    async with following(client, address) as stream:
        assert await stream.block() == ["retry: 1000"]
        for _ in range(2):
            assert await stream.block() == [": still here"]


@one_database
@pytest.mark.usefixtures("_restless")
async def test_a_stream_ends_when_its_key_is_revoked(
    client: Client, address: str, settings: Settings
) -> None:
    key = await client.data("POST", "/v1/api-keys", {"name": "short", "level": "read"})
    async with (
        following(replace(client, token=key["token"]), address) as revoked,
        following(client, address) as kept,
        httpx.AsyncClient(base_url=address) as http,
    ):
        assert await revoked.block() == ["retry: 1000"]
        await replace(client, http=http).call("DELETE", f"/v1/api-keys/{key['id']}")
        assert [each async for each in revoked.events()] == []
        assert await kept.block() == ["retry: 1000"]
        assert await kept.block() == [": still here"]


@one_database
@pytest.mark.usefixtures("_restless")
async def test_a_stream_ends_when_its_user_may_read_it_no_more(
    client: Client, address: str, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED_SECONDS", 0)
    user = await person(client, sessions, "viewer")
    async with following(user, address) as stream:
        assert await stream.block() == ["retry: 1000"]
        async with sessions() as session, session.begin():
            theirs = col(Member.user_id) == user.user_id
            await session.execute(update(Member).where(theirs).values(role="billing"))
        assert [each async for each in stream.events()] == []


async def test_streams_hold_no_connections_while_they_wait(
    client: Client, address: str, sessions: SessionFactory, server_id: UUID
) -> None:
    async def first(number: int) -> list[int]:
        async with following(client, address) as stream:
            assert await stream.block() == ["retry: 1000"], number
            opened.release()
            return await stream.sequences(1)

    opened = asyncio.Semaphore(0)
    streaming = [asyncio.create_task(first(number)) for number in range(MANY)]
    for _ in range(MANY):
        await opened.acquire()
    async with httpx.AsyncClient(base_url=address) as http:
        assert await replace(client, http=http).data("GET", "/v1/events") == []
    await write(sessions, server_id, "server.created")
    assert await asyncio.gather(*streaming) == [[1]] * MANY


@one_database
async def test_a_stream_ends_when_the_database_goes(
    client: Client,
    address: str,
    sessions: SessionFactory,
    server_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("nobody is there")

    async with following(client, address) as stream:
        await write(sessions, server_id, "server.created")
        # With that it waits for the next one: it is not in the middle of a look.
        assert await stream.sequences(1) == [1]
        monkeypatch.setattr(type(LOG), "query", away)
        with capture_logs() as lines:
            await write(sessions, server_id, "server.stopped")
            assert [each async for each in stream.events()] == []
    (told,) = [line for line in lines if line["log_level"] == "error"]
    assert told["event"] == "the database does not answer"


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_consumer_goes_on_at_another_process_when_its_own_is_killed(
    client: Client, settings: Settings, sessions: SessionFactory, server_id: UUID
) -> None:
    async with api_processes(settings) as (one, other):
        async with following(one.seen_by(client), query="after=0") as stream:
            await write(sessions, server_id, *["server.restarted"] * 10)
            seen = await stream.next(7)
            one.process.kill()
            with pytest.raises(httpx.TransportError):
                seen += [each async for each in stream.events()]
        await write(sessions, server_id, *["server.restarted"] * 10)
        # As a browser does it: the same address, and the id of the last that has come.
        last = {"Last_Event_ID": str(seen[-1].id)}
        async with following(other.seen_by(client), query="after=0", **last) as stream:
            seen += await stream.next(20 - len(seen))
            await write(sessions, server_id, "server.deleted")
            seen += await stream.next(1)
    assert [each.sequence for each in seen] == [*range(1, 22)]


async def test_a_process_that_is_to_stop_ends_its_streams(
    client: Client, fleet: Fleet, settings: Settings, sessions: SessionFactory
) -> None:
    begun = await fleet.begin_server()
    steps = f"/v1/operations/{begun['operation']['id']}/events"
    async with api_processes(settings, [SERVE]) as (api,):
        bearer = {"Authorization": f"Bearer {client.token}"}
        async with (
            following(api.seen_by(client)) as stream,
            api.http.stream("GET", steps, headers=bearer) as other,
        ):
            assert await stream.block() == ["retry: 1000"]
            lines = other.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            api.process.terminate()
            # To their end, and not cut off.
            assert [each async for each in stream.events()] == []
            assert [line async for line in lines][-1] == ""
        await api.end()
    # What it would say had it waited for them in vain.
    assert "Cancel" not in api.log.read_text()
