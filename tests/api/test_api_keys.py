"""API keys through the API."""

import re
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlmodel import col

from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.api_keys import ApiKey
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.permissions import LEVEL_PERMISSIONS, LEVELS
from tests.api.people import person
from tests.conftest import Client, new_client

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def made(client: Client, level: str = "read", **more: object) -> tuple[dict, Client]:
    """A key as it is told without its token, and the API as it sees it."""
    told = await client.data("POST", "/v1/api-keys", {"name": "ci", "level": level, **more}, 201)
    token = told.pop("token")
    return told, Client(client.http, client.organization_id, token)


async def test_a_key_is_shown_once_and_works_at_once(client: Client, sessions: SessionFactory) -> None:
    told, key = await made(client)
    assert re.fullmatch(rf"dep_live_{told['keyId']}_[0-9A-Za-z]{{43}}", key.token)
    assert await key.data("GET", "/v1/servers") == []
    path = f"/v1/api-keys/{told['id']}"
    answers = [await client.request("GET", at) for at in (path, "/v1/api-keys", "/v1/audit-log")]
    assert all(key.token not in answer.text for answer in answers)
    async with sessions() as session:
        kept = await session.get_one(ApiKey, UUID(told["id"]))
    assert key.token not in repr(kept)
    assert answers[0].json()["data"].keys() == told.keys()


@pytest.mark.parametrize("level", LEVELS)
async def test_a_key_may_what_its_level_says(client: Client, level: str) -> None:
    _, key = await made(client, level)
    me = await key.data("GET", "/v1/me")
    assert me["level"] == level
    assert set(me["permissions"]) == LEVEL_PERMISSIONS[level]


async def test_keys_are_listed_with_their_last_use(client: Client) -> None:
    told, key = await made(client)
    assert told["lastUsedAt"] is None
    before = utc_now() - timedelta(seconds=1)
    await key.data("GET", "/v1/servers")
    await client.http._transport.app.state.context.background.drain()  # type: ignore[attr-defined]
    listed = {each["id"]: each for each in await client.data("GET", "/v1/api-keys")}
    assert len(listed) == 2
    assert before < datetime.fromisoformat(listed[told["id"]]["lastUsedAt"]) <= utc_now()
    assert [each["id"] for each in await client.data("GET", "/v1/api-keys?level=read")] == [told["id"]]
    assert [each["id"] for each in await client.data("GET", f"/v1/api-keys?q={told['keyId']}")] == [
        told["id"]
    ]


async def test_a_key_ends_when_it_expires(client: Client, sessions: SessionFactory) -> None:
    at = utc_now() + timedelta(hours=1)
    told, key = await made(client, expiresAt=at.isoformat())
    assert datetime.fromisoformat(told["expiresAt"]) == at
    async with sessions() as session, session.begin():
        (await session.get_one(ApiKey, UUID(told["id"]))).expires_at = utc_now()
    await key.error("GET", "/v1/servers", code="unauthorized")


@one_database
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"expiresAt": "2999-01-01T00:00:00"}, "expiresAt"),
        ({"expiresAt": "tomorrow"}, "expiresAt"),
        ({"level": "owner"}, "level"),
        ({"level": None}, "level"),
        ({"name": ""}, "name"),
        ({"name": "a\u202eb"}, "name"),
        ({"keyId": "0" * 16}, "keyId"),
    ],
)
async def test_keys_that_break_a_rule_are_not_made(client: Client, changes: dict, field: str) -> None:
    error = await client.error(
        "POST", "/v1/api-keys", {"name": "ci", "level": "read", **changes}, code="validation_error"
    )
    assert [each["field"] for each in error["details"]["fields"]] == [field]
    assert len(await client.data("GET", "/v1/api-keys")) == 1


async def test_a_key_is_renamed_and_nothing_else(client: Client) -> None:
    told, key = await made(client)
    path = f"/v1/api-keys/{told['id']}"
    changed = await client.data("PATCH", path, {"name": "releases"})
    assert changed == told | {"name": "releases", "updatedAt": changed["updatedAt"]}
    for body in ({"level": "admin"}, {"name": "x", "expiresAt": None}, {}):
        await client.error("PATCH", path, body, code="validation_error")
    await key.error("POST", "/v1/providers", {"name": "x", "kind": "docker"}, code="forbidden")


async def test_if_match_holds_back_who_knows_an_older_key(client: Client) -> None:
    told, _ = await made(client)
    path = f"/v1/api-keys/{told['id']}"
    tag = (await client.request("GET", path)).headers["ETag"]
    changed = await client.request("PATCH", path, {"name": "b"}, {"If-Match": tag})
    assert changed.status_code == 200
    assert (await client.request("PATCH", path, {"name": "c"}, {"If-Match": tag})).status_code == 412
    assert (await client.request("DELETE", path, headers={"If-Match": tag})).status_code == 412
    newer = {"If-Match": changed.headers["ETag"]}
    assert (await client.request("DELETE", path, headers=newer)).status_code == 204


async def test_a_revoked_key_ends_at_once_for_good_and_stays_listed(client: Client) -> None:
    told, key = await made(client)
    await key.data("GET", "/v1/servers")
    path = f"/v1/api-keys/{told['id']}"
    await client.call("DELETE", path, status=204)
    await key.error("GET", "/v1/servers", code="unauthorized")
    revoked = await client.data("GET", path)
    assert revoked["revokedAt"] is not None
    await client.call("DELETE", path, status=204)
    assert (await client.data("GET", path))["revokedAt"] == revoked["revokedAt"]
    assert len(await client.data("GET", "/v1/api-keys")) == 2


async def test_a_key_may_revoke_itself(client: Client) -> None:
    told, key = await made(client, "admin")
    await key.call("DELETE", f"/v1/api-keys/{told['id']}", status=204)
    await key.error("GET", f"/v1/api-keys/{told['id']}", code="unauthorized")


async def test_nobody_makes_a_key_that_may_more_than_they(client: Client, sessions: SessionFactory) -> None:
    for level in LEVELS:
        _, key = await made(client, level)
        for wanted in LEVELS:
            answer = await key.request("POST", "/v1/api-keys", {"name": "x", "level": wanted})
            assert answer.status_code == (201 if level == "admin" else 403), (level, wanted)
    await made(await person(client, sessions, "owner"), "admin")
    admin = await person(client, sessions, "admin")
    await made(admin, "delete")
    # A key of this level manages billing too, which the role does not.
    await admin.error("POST", "/v1/api-keys", {"name": "x", "level": "admin"}, code="forbidden")
    for role in ("developer", "billing", "viewer"):
        user = await person(client, sessions, role)
        await user.error("POST", "/v1/api-keys", {"name": "x", "level": "read"}, code="forbidden")


async def test_keys_of_another_organization_are_not_there(client: Client, settings: Settings) -> None:
    told, key = await made(client)
    stranger = await new_client(client.http, settings)
    for path in (f"/v1/api-keys/{told['id']}", f"/v1/api-keys/{uuid4()}"):
        await stranger.error("GET", path, code="not_found")
        await stranger.error("PATCH", path, {"name": "x"}, code="not_found")
        await stranger.error("DELETE", path, code="not_found")
    assert told["id"] not in {each["id"] for each in await stranger.data("GET", "/v1/api-keys")}
    assert await key.data("GET", "/v1/servers") == []


async def test_the_audit_log_tells_of_keys_without_their_secrets(
    client: Client, sessions: SessionFactory
) -> None:
    told, _ = await made(client)
    path = f"/v1/api-keys/{told['id']}"
    await client.data("PATCH", path, {"name": "b"})
    await client.call("DELETE", path, status=204)
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry).order_by(col(AuditEntry.sequence)))).all()
    assert [entry.action for entry in entries] == ["create_api_key", "update_api_key", "revoke_api_key"]
    assert {str(entry.resource_id) for entry in entries} == {told["id"]}
    assert "tokenDigest" not in (entries[0].after or {})
    assert (entries[1].before or {})["name"] == "ci"
    assert (entries[2].after or {})["revokedAt"] is not None


async def test_a_key_that_was_used_has_not_changed(client: Client) -> None:
    made = await client.data("POST", "/v1/api-keys", {"name": "a", "level": "read"}, 201)
    path = f"/v1/api-keys/{made['id']}"
    tag = (await client.request("GET", path)).headers["ETag"]
    used = Client(client.http, client.organization_id, made["token"])
    await used.call("GET", "/v1/servers", status=200)
    # It is noted beside the answer.
    await client.http._transport.app.state.context.background.drain()
    read = await client.request("GET", path)
    assert read.json()["data"]["lastUsedAt"] is not None
    assert read.headers["ETag"] == tag
    assert (await client.request("DELETE", path, headers={"If-Match": tag})).status_code == 204
