"""A request that is sent again does nothing twice, whoever asks how often, where, and what dies meanwhile."""

import asyncio
import base64
import re
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from deployerp.api.access.callers import Caller
from deployerp.api.contract.idempotency import IdempotentRequest
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.database.tenancy import Tenant
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.idempotency import IdempotencyRecord
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation
from deployerp.domain.plans import Limits
from deployerp.domain.providers import Provider
from deployerp.domain.webhooks.endpoints import WebhookEndpoint
from tests.api.calls import CALLS, GUARDED, PREPARATIONS, Call
from tests.api.contents import everything
from tests.api.people import person
from tests.api.processes import api_processes
from tests.conftest import Client, Fleet, new_client

UNSAFE = [call for call in GUARDED if not call.is_safe]
# They take secrets that prove who somebody is; what they answer is not kept.
SIGNING_IN = {"create_token", "refresh_token", "revoke_token", "set_password", "change_own_password"}
# What these show, they show once.
REVEALING = {
    "create_api_key",
    "create_user",
    "create_webhook_endpoint",
    "reset_password",
    "reveal_admin_password",
    "rotate_webhook_secret",
}
PROVIDER = {"name": "here", "kind": "docker"}
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def keyed(
    client: Client, method: str, path: str, body: object = None, key: str = "key"
) -> httpx.Response:
    return await client.request(method, path, body, headers={"Idempotency-Key": key})


async def count(sessions: SessionFactory, model: Any, **values: Any) -> int:
    """How many rows have these values."""
    fits = [getattr(model, name) == value for name, value in values.items()]
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(model).where(*fits)) or 0


def assert_same(replayed: httpx.Response, first: httpx.Response) -> None:
    """Whether one is the other again, byte for byte."""
    assert replayed.headers.get("Idempotent-Replayed") == "true", replayed.text
    assert (replayed.status_code, replayed.content) == (first.status_code, first.content)
    for name in ("Content-Type", "ETag", "Location"):
        assert replayed.headers.get(name) == first.headers.get(name), name
    assert replayed.headers["X-Request-Id"] != first.headers["X-Request-Id"]


async def colleague(client: Client, sessions: SessionFactory, level: str) -> Client:
    """Another key of the client's organization."""
    key, token = new_api_key(client.organization_id, level, level)
    async with sessions() as session, session.begin():
        session.add(key)
    return Client(client.http, client.organization_id, token)


def test_every_other_change_needs_a_permission() -> None:
    unguarded = {call.name for call in CALLS if call.permission is None and not call.is_safe}
    assert unguarded == SIGNING_IN


def secrets_in(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """Fields of the answer, by their names, that look like secrets."""
    data = answer.json()["data"] if answer.content else None
    for name, value in data.items() if isinstance(data, dict) else ():
        if isinstance(value, str) and re.search("(secret|token|password)$", name, re.IGNORECASE):
            yield name, value


def assert_same_without_secret(replayed: httpx.Response, first: httpx.Response) -> None:
    """Whether one is the other again, except for what was shown once."""
    assert replayed.headers.get("Idempotent-Replayed") == "true", replayed.text
    assert replayed.status_code == first.status_code
    assert replayed.headers.get("ETag") == first.headers.get("ETag")
    ((name, secret),) = secrets_in(first)
    assert secret not in replayed.text
    assert replayed.json()["data"] == first.json()["data"] | {name: None}
    note = f"`{name}` was shown once, in the first answer, and is not kept: make a new one."
    assert replayed.json()["meta"] == first.json()["meta"] | {"note": note}


@pytest.mark.parametrize("call", UNSAFE, ids=lambda call: call.name)
async def test_every_change_is_carried_out_once(
    call: Call, fleet: Fleet, sessions: SessionFactory, settings: Settings
) -> None:
    ask = await PREPARATIONS[call.name](fleet)
    path = ask.path(call)
    first = await keyed(fleet.client, call.method, path, ask.body)
    assert first.is_success, first.text
    assert "Idempotent-Replayed" not in first.headers
    done = await everything(sessions)
    replayed = await keyed(fleet.client, call.method, path, ask.body)
    if call.name in REVEALING:
        assert_same_without_secret(replayed, first)
    else:
        assert_same(replayed, first)
    other = await keyed(fleet.client, call.method, f"{path}?other=1", ask.body)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert await everything(sessions) == done

    secrets = [value for _, value in secrets_in(first)]
    assert bool(secrets) is (call.name in REVEALING)
    written = str(done).encode() + b"".join(each.read_bytes() for each in files_of(settings))
    assert [each for each in secrets if each.encode() in written] == []


def files_of(settings: Settings) -> list[Path]:
    """The database's own, where it is one of files: with what has not yet been moved into the main one."""
    url = settings.database_url
    if not url.startswith("sqlite"):
        return []
    path = Path(url.partition("///")[2])
    found = list(path.parent.glob(f"{path.name}*"))
    assert found
    return found


@pytest.mark.fault("19")
async def test_a_kept_answer_is_sealed_and_kept_for_a_day_without_its_secret(
    client: Client, sessions: SessionFactory, settings: Settings
) -> None:
    endpoint = await keyed(client, "POST", "/v1/webhook-endpoints", {"url": "https://example.com/"})
    async with sessions() as session:
        (record,) = await session.scalars(select(IdempotencyRecord))
    actor_id = (await client.data("GET", "/v1/me"))["id"]
    assert record.organization_id == client.organization_id
    assert (record.key, record.status) == (f"{actor_id}:key", 201)
    assert timedelta(hours=24) <= record.expires_at - record.created_at + timedelta(seconds=1)
    assert record.expires_at - utc_now() <= timedelta(hours=24)
    kept = Vault(settings.encryption_keys).open_mapping(record.sealed_answer)
    assert kept.keys() == {"headers", "body"}
    assert "https://example.com/" not in record.sealed_answer
    body = base64.b64decode(kept["body"]).decode()
    assert "https://example.com/" in body
    assert endpoint.json()["data"]["secret"] not in body


async def test_a_key_is_for_one_request(fleet: Fleet, sessions: SessionFactory) -> None:
    client = fleet.client
    instance = await fleet.instance((await fleet.server())["id"])
    path, renamed = f"/v1/instances/{instance['id']}", {"name": "New name"}
    first = await keyed(client, "PATCH", path, renamed)
    assert first.is_success
    done = await everything(sessions)
    for what, method, where, body in (
        ("payload", "PATCH", path, {"name": "Another name"}),
        ("no payload", "PATCH", path, None),
        ("query", "PATCH", f"{path}?x=1", renamed),
        ("path", "PATCH", f"/v1/instances/{uuid4()}", renamed),
        ("resource", "POST", "/v1/providers", renamed),
        ("method", "DELETE", path, renamed),
    ):
        answer = await keyed(client, method, where, body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "idempotency_key_reused"), what
        assert "new key" in error["message"]
    assert await everything(sessions) == done
    assert_same(await keyed(client, "PATCH", path, renamed), first)
    assert (await keyed(client, "DELETE", path, renamed, key="another")).status_code == 202


async def test_an_expired_key_is_new(client: Client, sessions: SessionFactory) -> None:
    endpoint = {"url": "https://example.com/"}
    first = await keyed(client, "POST", "/v1/webhook-endpoints", endpoint)
    async with sessions() as session, session.begin():
        await session.execute(update(IdempotencyRecord).values(expires_at=utc_now()))
    # What it stood for is forgotten: another request may have it.
    second = await keyed(client, "POST", "/v1/webhook-endpoints", endpoint | {"types": ["server.*"]})
    assert second.status_code == 201
    assert "Idempotent-Replayed" not in second.headers
    assert second.json()["data"]["id"] != first.json()["data"]["id"]
    again = await keyed(client, "POST", "/v1/webhook-endpoints", endpoint | {"types": ["server.*"]})
    assert_same_without_secret(again, second)
    assert await count(sessions, IdempotencyRecord) == 1


async def test_an_expired_key_whose_request_fails_stays_expired(
    client: Client, sessions: SessionFactory
) -> None:
    assert (await keyed(client, "POST", "/v1/providers", PROVIDER)).status_code == 201
    async with sessions() as session, session.begin():
        await session.execute(update(IdempotencyRecord).values(expires_at=utc_now()))
    for _ in range(2):
        # Its name is taken, by itself.
        assert (await keyed(client, "POST", "/v1/providers", PROVIDER)).status_code == 409
    other = await keyed(client, "POST", "/v1/providers", PROVIDER | {"name": "there"})
    assert other.status_code == 201


@one_database
async def test_what_stands_around_a_key_is_no_part_of_it(client: Client) -> None:
    body = {"name": "one", "kind": "docker"}
    first = await keyed(client, "POST", "/v1/providers", body, key="key")
    assert_same(await keyed(client, "POST", "/v1/providers", body, key=" key\t "), first)


async def test_a_key_that_is_not_sane_is_refused(client: Client, sessions: SessionFactory) -> None:
    bearer = (b"Authorization", f"Bearer {client.token}".encode())
    for keys in (
        [b""],
        [b"x" * 256],
        [b"with space"],
        [b"tab\there"],
        ["é".encode()],
        [b"\xff"],
        [b"\x7f"],
        [b"one", b"two"],
        [b"same", b"same"],
    ):
        headers = [bearer, *((b"Idempotency-Key", key) for key in keys)]
        answer = await client.http.post("/v1/providers", json=PROVIDER, headers=headers)
        assert answer.status_code == 422, keys
        error = answer.json()["error"]
        assert error["code"] == "validation_error"
        assert [each["field"] for each in error["details"]["fields"]] == ["Idempotency-Key"]
    assert await count(sessions, Provider) == 0
    for number, key in enumerate(("x" * 255, "".join(map(chr, range(0x21, 0x7F))))):
        body = PROVIDER | {"name": str(number)}
        first = await keyed(client, "POST", "/v1/providers", body, key)
        assert first.status_code == 201
        assert_same(await keyed(client, "POST", "/v1/providers", body, key), first)


async def test_organizations_have_their_own_keys(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    stranger = await new_client(client.http, settings)
    answers = [await keyed(each, "POST", "/v1/providers", PROVIDER) for each in (client, stranger)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert not any("Idempotent-Replayed" in answer.headers for answer in answers)
    other = await keyed(stranger, "POST", "/v1/providers", PROVIDER | {"name": "there"})
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    for each, first in zip((client, stranger), answers, strict=True):
        assert_same(await keyed(each, "POST", "/v1/providers", PROVIDER), first)
    assert await count(sessions, Provider) == 2


@one_database
@pytest.mark.fault("19")
async def test_callers_of_an_organization_have_their_own_keys(
    client: Client, sessions: SessionFactory
) -> None:
    endpoint = {"url": "https://example.com/"}
    reader = await colleague(client, sessions, "read")
    others = [await colleague(client, sessions, "write"), await person(client, sessions, "admin")]
    answers = [await keyed(each, "POST", "/v1/webhook-endpoints", endpoint) for each in (client, *others)]
    assert [answer.status_code for answer in answers] == [201] * 3
    assert not any("Idempotent-Replayed" in answer.headers for answer in answers)
    assert (await keyed(reader, "POST", "/v1/webhook-endpoints", endpoint)).status_code == 403
    for each, first in zip((client, *others), answers, strict=True):
        assert_same_without_secret(await keyed(each, "POST", "/v1/webhook-endpoints", endpoint), first)
    assert await count(sessions, WebhookEndpoint) == 3


async def test_failures_are_not_kept(
    fleet: Fleet, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fleet.client
    server_id = str(uuid4())
    body = {"name": "A", "slug": "a", "serverId": server_id, "odooVersion": "19.0"}
    assert (await keyed(client, "POST", "/v1/instances", body | {"slug": "A B"})).status_code == 422
    assert (await keyed(client, "POST", "/v1/instances", body)).status_code == 404
    assert await count(sessions, IdempotencyRecord) == 0
    begun = await fleet.begin_server()
    body["serverId"] = begun["id"]
    assert (await keyed(client, "POST", "/v1/instances", body)).json()["error"]["code"] == "invalid_state"
    await fleet.end(begun)
    with capture_logs() as logged, monkeypatch.context() as broken:
        broken.setattr(Vault, "seal_mapping", lambda *_: 1 / 0)
        assert (await keyed(client, "POST", "/v1/instances", body)).status_code == 500
    assert [each for each in logged if each["log_level"] == "error"]
    assert await count(sessions, IdempotencyRecord) == await count(sessions, Instance) == 0
    # The same key, and now there is nothing in the way.
    first = await keyed(client, "POST", "/v1/instances", body)
    assert first.status_code == 202
    assert_same(await keyed(client, "POST", "/v1/instances", body), first)


async def test_an_answer_is_given_again_even_when_it_could_not_be_made_again(fleet: Fleet) -> None:
    client = fleet.client
    instance = await fleet.instance((await fleet.server())["id"])
    path = f"/v1/instances/{instance['id']}"
    tag = (await client.request("GET", path)).headers["ETag"]
    headers = {"If-Match": tag, "Idempotency-Key": "key"}
    first = await client.request("PATCH", path, {"name": "New name"}, headers)
    assert first.status_code == 200
    assert_same(await client.request("PATCH", path, {"name": "New name"}, headers), first)
    deleted = await keyed(client, "DELETE", path, key="another")
    await fleet.end(deleted.json()["data"])
    assert (await client.request("GET", path)).status_code == 404
    assert_same(await keyed(client, "DELETE", path, key="another"), deleted)


@one_database
async def test_what_is_only_read_is_not_kept(client: Client, sessions: SessionFactory) -> None:
    for path in ("/v1/providers", "/v1/providers?per_page=1"):
        assert (await keyed(client, "GET", path)).status_code == 200
    assert await count(sessions, IdempotencyRecord) == 0
    assert (await keyed(client, "POST", "/v1/providers", PROVIDER)).status_code == 201


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_request_that_is_being_carried_out_is_told(client: Client, sessions: SessionFactory) -> None:
    key_id = UUID((await client.data("GET", "/v1/me"))["id"])
    caller = Caller(Tenant(client.organization_id), "api_key", key_id, "", frozenset(), Limits(None, None))
    async with sessions() as session, session.begin():
        await IdempotentRequest(caller, "key", "fingerprint").replay(session, Vault.__new__(Vault))
        answer = await keyed(client, "POST", "/v1/providers", PROVIDER)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_in_progress")
        assert answer.headers["Retry-After"] == "1"
        # Others do not wait for it.
        other = await keyed(client, "POST", "/v1/providers", PROVIDER | {"name": "there"}, "another")
        assert other.status_code == 201
    assert (await keyed(client, "POST", "/v1/providers", PROVIDER)).status_code == 201


async def until_done(client: Client, path: str, body: object) -> list[httpx.Response]:
    """The answers to a client that tries until it has more than a word of patience."""
    answers = [await keyed(client, "POST", path, body)]
    while answers[-1].status_code == 409:
        assert answers[-1].json()["error"]["code"] == "idempotency_in_progress"
        await asyncio.sleep(0.05)
        answers.append(await keyed(client, "POST", path, body))
    return answers


async def test_fifty_at_once_in_two_processes_make_one(
    settings: Settings, fleet: Fleet, sessions: SessionFactory
) -> None:
    server = await fleet.server()
    body = {"name": "A", "slug": "only-one", "serverId": server["id"], "odooVersion": "19.0"}
    async with api_processes(settings) as apis:
        clients = [api.seen_by(fleet.client) for api in apis]
        tries = await asyncio.gather(*(until_done(clients[n % 2], "/v1/instances", body) for n in range(50)))
    answers = [answer for each in tries for answer in each if answer.status_code != 409]
    assert Counter(answer.status_code for answer in answers) == {202: 50}
    assert Counter(answer.headers.get("Idempotent-Replayed") for answer in answers) == {None: 1, "true": 49}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["Location"] for answer in answers}) == 1
    (instance_id,) = {answer.json()["data"]["id"] for answer in answers}
    assert await count(sessions, Instance) == 1
    assert await count(sessions, Operation, resource_type="instance") == 1
    assert await count(sessions, AuditEntry, action="create_instance") == 1
    assert await count(sessions, IdempotencyRecord) == 1
    assert (await fleet.client.data("GET", f"/v1/instances/{instance_id}"))["slug"] == "only-one"


# Serves as `deployerp serve` does, and dies with its first change: before the commit, or after it, when it is
# about to send the answer, of which it leaves a copy.
DYING = """
import os, signal, sys
import uvicorn
from deployerp.api.app import create_app
from deployerp.api.access.callers import Caller
from deployerp.api.contract.idempotency import IdempotentRequest
from deployerp.core import logging
from deployerp.core.settings import Settings
from deployerp.domain.webhooks.endpoints import WebhookEndpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "before":
    IdempotentRequest.keep = die
logging.configure("INFO")
settings = Settings()
app = create_app(settings)

async def dying(scope, receive, send):
    async def send_or_die(message):
        if scope.get("method") != "POST":
            await send(message)
        elif message["type"] == "http.response.body":
            sys.stdout.buffer.write(message["body"])
            sys.stdout.flush()
            die()
    await app(scope, receive, send_or_die)

uvicorn.run(dying, host="127.0.0.1", port=settings.api_port, log_config=None)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_the_commit_it_answers_as_if_it_had_not_been(
    settings: Settings, client: Client, sessions: SessionFactory, moment: str
) -> None:
    body = PROVIDER
    async with api_processes(settings, [("-c", DYING, moment)]) as (dying,):
        with pytest.raises(httpx.RemoteProtocolError):
            await keyed(dying.seen_by(client), "POST", "/v1/providers", body)
        unsent = await dying.end()
        assert dying.process.returncode == -signal.SIGKILL
    assert bool(unsent) is (moment == "after")
    assert await count(sessions, IdempotencyRecord) == (moment == "after")
    # By way of this process, which knows of the other what the database does.
    (*_, answer) = await until_done(client, "/v1/providers", body)
    assert answer.status_code == 201
    assert answer.headers.get("Idempotent-Replayed") == ("true" if unsent else None)
    assert answer.content == (unsent or answer.content)
    (provider,) = await client.data("GET", "/v1/providers")
    assert provider["id"] == answer.json()["data"]["id"]
    assert await count(sessions, AuditEntry) == 1
