"""Every change is in the audit log, once, with who and what and without a secret; what is refused is not."""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col
from structlog.testing import capture_logs

from deployerp.api.contract import changes
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.audit.verification import Verified, verify
from deployerp.domain.permissions import LEVELS, ROLES
from deployerp.domain.tables import metadata
from tests.api.calls import CALLS, CREDENTIAL, GUARDED, PREPARATIONS, VARIABLE, Ask, Call
from tests.api.contents import everything
from tests.api.people import person
from tests.conftest import Client, Fleet, new_client

CHANGES = [call for call in GUARDED if not call.is_safe]
# What an entry is about, where it is not what the path names.
SUBJECTS = {"retry_operation": "server", "resend_webhook_delivery": "webhook_delivery"}
# Nothing of what they change is to be seen, or all of it is in other rows; what is resent here is under way.
UNSEEN = {
    "reset_password",
    "reveal_admin_password",
    "ping_webhook_endpoint",
    "replay_events",
    "resend_webhook_delivery",
}
_SECRET_COLUMN = re.compile("sealed_.*|.*_digest|.*_hash")
Log = Callable[[], Awaitable[list[AuditEntry]]]
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def log(client: Client, sessions: SessionFactory) -> Log:
    """Reads the entries of the client's organization, in their order."""

    async def entries() -> list[AuditEntry]:
        own = col(AuditEntry.organization_id) == client.organization_id
        async with sessions() as session:
            found = await session.scalars(select(AuditEntry).where(own).order_by(col(AuditEntry.sequence)))
            return list(found)

    return entries


async def send(client: Client, call: Call, ask: Ask, **headers: str) -> httpx.Response:
    return await client.request(call.method, ask.path(call), ask.body, headers)


async def done(client: Client, call: Call, ask: Ask, **headers: str) -> httpx.Response:
    """The answer, which must tell of success."""
    answer = await send(client, call, ask, **headers)
    assert answer.is_success, f"{call.name}: {answer.text}"
    return answer


def test_every_operation_that_changes_something_has_a_case() -> None:
    assert {call.name for call in CHANGES} <= set(PREPARATIONS), "tests/api/calls.py has the requests"


async def test_every_change_is_one_entry(
    client: Client, fleet: Fleet, log: Log, sessions: SessionFactory
) -> None:
    async with sessions() as session:
        own = col(ApiKey.organization_id) == client.organization_id
        key_id = await session.scalar(select(col(ApiKey.id)).where(own))
    for call in CHANGES:
        ask = await PREPARATIONS[call.name](fleet)
        before = len(await log())
        answer = await done(client, call, ask)
        entry, *others = (await log())[before:]
        assert others == [], call.name
        assert entry.sequence == before + 1
        assert (entry.actor_type, entry.actor_id) == ("api_key", key_id)
        assert (entry.action, entry.address) == (call.name, "127.0.0.1")
        assert entry.request_id == answer.headers["X-Request-Id"]
        check_what(call, entry, ask, answer.json()["data"] if answer.content else {})
    assert await verify(sessions, client.organization_id) == Verified(
        len(await log()), (await log())[-1].hash
    )


def check_what(call: Call, entry: AuditEntry, ask: Ask, told: dict) -> None:
    """The entry is about the path's object or the one that the answer tells of, and says what that says."""
    plural = call.path.split("/")[2]
    assert entry.resource_type == SUBJECTS.get(call.name, plural.removesuffix("s").replace("-", "_"))
    if call.name not in SUBJECTS:
        assert str(entry.resource_id) == (ask.id or told["id"])
    operation = told if "resourceId" in told else told.get("operation")
    assert entry.operation_id == (operation and UUID(operation["id"]))
    assert (entry.before is None) is (ask.id is None), call.name
    assert (entry.before == entry.after) is (call.name in UNSEEN), call.name
    if told.get("id") == str(entry.resource_id):
        assert entry.after is not None
        assert {name: entry.after[name] for name in entry.after.keys() & told.keys()} == {
            name: told[name] for name in entry.after.keys() & told.keys()
        }


async def test_the_same_request_again_is_no_change(client: Client, fleet: Fleet, log: Log) -> None:
    for call in CHANGES:
        ask = await PREPARATIONS[call.name](fleet)
        key = {"Idempotency-Key": call.name}
        first = await done(client, call, ask, **key)
        known = len(await log())
        again = await done(client, call, ask, **key)
        assert again.headers["Idempotent-Replayed"] == "true"
        # All but a secret that was shown once.
        told = first.json()["data"] if first.content else {}
        kept = again.json()["data"] if again.content else {}
        assert told == kept | {name: told[name] for name, value in kept.items() if value is None}
        assert len(await log()) == known, call.name


async def test_what_is_refused_is_not_in_the_log(
    client: Client, fleet: Fleet, sessions: SessionFactory
) -> None:
    viewer = await person(client, sessions, "viewer")
    asks = {call.name: await PREPARATIONS[call.name](fleet) for call in CHANGES}
    known = await everything(sessions)
    for call in CHANGES:
        ask = asks[call.name]
        tries = [
            (403, await send(viewer, call, ask)),
            (401, await client.http.request(call.method, ask.path(call), json=ask.body)),
            (422, await send(client, call, ask, **{"Idempotency-Key": "not sane"})),
        ]
        if ask.ids:
            tries.append((404, await send(client, call, ask.with_other_ids())))
        if ask.body is not None:
            tries.append((422, await send(client, call, Ask(ask.id, ask.body | {"unknown": 1}))))
        if "412" in call.described["responses"]:
            tries.append((412, await send(client, call, ask, **{"If-Match": '"old"'})))
        assert [answer.status_code for _, answer in tries] == [status for status, _ in tries], call.name
    assert await everything(sessions) == known


async def test_a_change_and_its_entry_are_there_together_or_not_at_all(
    client: Client, fleet: Fleet, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = {call.name: await PREPARATIONS[call.name](fleet) for call in CHANGES}
    known = await everything(sessions)
    append = changes.append

    async def and_fail(*given: Any) -> None:
        await append(*given)
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patched, capture_logs() as lines:
        patched.setattr(changes, "append", and_fail)
        for call in CHANGES:
            answer = await send(client, call, asks[call.name], **{"Idempotency-Key": call.name})
            assert answer.status_code == 500, f"{call.name}: {answer.text}"
    assert len([each for each in lines if each["event"] == "unexpected"]) == len(CHANGES)
    assert await everything(sessions) == known
    for call in CHANGES:
        await done(client, call, asks[call.name], **{"Idempotency-Key": call.name})


async def test_no_secret_is_in_the_log(client: Client, fleet: Fleet, sessions: SessionFactory) -> None:
    secrets = {CREDENTIAL, VARIABLE}
    for call in CHANGES:
        answer = await done(client, call, await PREPARATIONS[call.name](fleet))
        told = answer.json()["data"] if answer.content else {}
        secrets |= {
            told[name] for name in ("secret", "token", "password", "setPasswordToken") if name in told
        }
    assert len(secrets) > 5
    columns = [
        each
        for table in metadata.sorted_tables
        for each in table.columns
        if _SECRET_COLUMN.fullmatch(each.name) and not table.name.startswith("audit_")
    ]
    async with sessions() as session:
        kept = {value for each in columns for value in await session.scalars(select(each))}
        rows = (await session.execute(select(metadata.tables["audit_log"]))).all()
    assert {CREDENTIAL, VARIABLE}.isdisjoint(kept)
    log = repr(rows)
    assert [each for each in (secrets | kept) - {None} if each in log] == []
    assert "hunter2" not in log


async def test_the_entry_of_a_user_names_the_user(client: Client, sessions: SessionFactory, log: Log) -> None:
    ada = await person(client, sessions, "developer")
    await ada.data("POST", "/v1/webhook-endpoints", {"url": "https://example.com/"}, 201)
    entry = (await log())[-1]
    assert (entry.actor_type, entry.actor_id) == ("user", ada.user_id)


async def test_a_deletion_by_force_says_so(client: Client, fleet: Fleet, log: Log) -> None:
    async def deleted(server: dict, query: str) -> tuple[AuditEntry, dict]:
        begun = await client.data("DELETE", f"/v1/servers/{server['id']}{query}", status=202)
        return (await log())[-1], begun["operation"]

    # While it is being made: that operation is ended, and another one begun.
    entry, operation = await deleted(await fleet.begin_server("a"), "?force=true")
    assert entry.operation_id == UUID(operation["id"])
    assert entry.after is not None
    assert (entry.after["status"], entry.after["force"]) == ("deleting", True)
    entry, failed = await deleted(await fleet.server("b"), "?force=true")
    assert entry.after is not None
    assert entry.after["force"] is True
    await fleet.end({"operation": failed}, "failed")
    await client.call("POST", f"/v1/operations/{failed['id']}/retry", status=202)
    retried = (await log())[-1].after
    assert retried is not None
    assert retried["force"] is True
    entry, _ = await deleted(await fleet.server("c"), "")
    assert entry.after is not None
    assert "force" not in entry.after


async def test_an_entry_is_told_as_it_is_kept(client: Client, fleet: Fleet, log: Log) -> None:
    await client.data(
        "PATCH", f"/v1/instances/{(await fleet.instance((await fleet.server())['id']))['id']}", {"name": "B"}
    )
    kept = await log()
    told = await client.data("GET", "/v1/audit-log?order=asc")
    assert [each["hash"] for each in told] == [each.hash for each in kept]
    last = told[-1]
    assert last == await client.data("GET", f"/v1/audit-log/{last['id']}")
    assert last["previousHash"] == told[-2]["hash"]
    assert (last["action"], last["before"]["name"], last["after"]["name"]) == (
        "update_instance",
        kept[-1].before["name"],
        "B",
    )


@one_database
async def test_only_administrators_read_it(
    client: Client, sessions: SessionFactory, settings: Settings
) -> None:
    callers = {level: await new_client(client.http, settings, level) for level in LEVELS}
    callers |= {f"role {role}": await person(client, sessions, role) for role in ROLES}
    read = {
        name
        for name, each in callers.items()
        if (await each.request("GET", "/v1/audit-log")).status_code == 200
    }
    assert read == {"admin", "role owner", "role admin"}


def test_no_operation_changes_or_deletes_entries() -> None:
    assert {call.method for call in CALLS if "audit" in call.path} == {"GET"}


async def test_entries_are_found_by_any_id_that_a_request_may_have(client: Client) -> None:
    for request_id in ("r" * 8, "r" * 128):
        headers = {"X-Request-Id": request_id}
        await client.request("POST", "/v1/providers", {"name": request_id[:50], "kind": "docker"}, headers)
        (entry,) = await client.data("GET", f"/v1/audit-log?request_id={request_id}")
        assert entry["requestId"] == request_id
    await client.error("GET", "/v1/audit-log?request_id=no%20id%20at%20all", code="validation_error")
