"""Passwords that their users choose, and what an organization cannot do to accounts of others."""

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.api import passwords, sign_ins
from deployerp.api.access import guesses
from deployerp.core import passwords as hashes
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.audit.verification import Verified, verify
from deployerp.domain.permissions import Role
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.set_password_tokens import SetPasswordToken
from deployerp.domain.users import User
from tests.api.people import PASSWORD, Person, add_user, choose_password, person, sign_in
from tests.conftest import Client, new_client, open_api

pytestmark = pytest.mark.fault("18")
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

EMAIL = "ada@example.com"
ADA = {"email": EMAIL, "name": "Ada", "role": "developer"}
NEW = "another horse battery"


async def run(sessions: SessionFactory, statement: Any) -> None:
    async with sessions() as session, session.begin():
        await session.execute(statement)


async def status_of(http: httpx.AsyncClient, organization: object = None, password: str = PASSWORD) -> int:
    body = {"email": EMAIL, "password": password}
    if organization is not None:
        body["organization"] = str(organization)
    return (await http.post("/v1/auth/token", json=body)).status_code


async def make_ada(client: Client, password: str | None = PASSWORD) -> dict[str, Any]:
    """An unverified user of the client's organization, who has chosen this password."""
    made: dict[str, Any] = await client.data("POST", "/v1/users", ADA, 201)
    if password is not None:
        assert (await choose_password(client.http, made["setPasswordToken"], password)).status_code == 200
    return made


async def renews(http: httpx.AsyncClient, signed_in: Person) -> bool:
    answer = await http.post("/v1/auth/refresh", json={"refreshToken": signed_in.refresh_token})
    return answer.status_code == 200


async def actions(sessions: SessionFactory, organization_id: UUID) -> list[tuple[str, str]]:
    own = col(AuditEntry.organization_id) == organization_id
    async with sessions() as session:
        entries = await session.scalars(select(AuditEntry).where(own).order_by(col(AuditEntry.sequence)))
        told = [(entry.action, str(entry.actor_id)) for entry in entries]
    assert isinstance(await verify(sessions, organization_id), Verified)
    return told


# Set-password tokens.


async def test_a_user_chooses_the_password_with_the_token_that_the_answer_shows(
    client: Client, sessions: SessionFactory
) -> None:
    made = await make_ada(client, None)
    answer = await choose_password(client.http, made["setPasswordToken"])
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    told = answer.json()["data"]
    assert told["email"] == EMAIL
    assert told["organization"]["id"] == str(client.organization_id)
    ada = await sign_in(client.http, EMAIL, told["organization"]["slug"])
    assert (str(ada.user_id), ada.organization_id) == (made["id"], client.organization_id)
    assert ("set_password", made["id"]) in await actions(sessions, client.organization_id)
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry))).all()
    assert made["setPasswordToken"] not in str(entries)
    assert PASSWORD not in str(entries)


async def test_nobody_chooses_the_password_of_another(client: Client) -> None:
    error = await client.error("POST", "/v1/users", ADA | {"password": PASSWORD}, code="validation_error")
    assert [each["field"] for each in error["details"]["fields"]] == ["password"]


async def test_a_token_is_good_once(client: Client) -> None:
    made = await make_ada(client)
    answer = await choose_password(client.http, made["setPasswordToken"], NEW)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert await status_of(client.http, client.organization_id) == 200
    assert await status_of(client.http, client.organization_id, NEW) == 401


async def test_of_uses_at_once_one_is_good(client: Client, sessions: SessionFactory) -> None:
    for number in range(3):
        body = ADA | {"email": f"ada{number}@example.com"}
        token = (await client.data("POST", "/v1/users", body, 201))["setPasswordToken"]
        chosen = [f"horse battery number {each}" for each in range(4)]
        answers = await asyncio.gather(*(choose_password(client.http, token, each) for each in chosen))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 3}
        (won,) = [each for each, answer in zip(chosen, answers, strict=True) if answer.status_code == 200]
        assert await sign_in(client.http, body["email"], client.organization_id, password=won)


async def test_a_token_is_kept_as_a_hash_and_expires(client: Client, sessions: SessionFactory) -> None:
    made = await make_ada(client, None)
    async with sessions() as session:
        token = (await session.scalars(select(SetPasswordToken))).one()
    assert made["setPasswordToken"] not in repr(token)
    assert timedelta(days=6) < token.expires_at - utc_now() <= timedelta(days=7)
    await run(sessions, update(SetPasswordToken).values(expires_at=utc_now()))
    assert (await choose_password(client.http, made["setPasswordToken"])).status_code == 401


@one_database
@pytest.mark.parametrize("token", ["x", "dep_password_" + "A" * 43, "é" * 20])
async def test_what_is_no_token_is_refused_without_work(
    client: Client, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    async def never(password: str) -> str:
        raise AssertionError(password)

    monkeypatch.setattr(passwords, "hashed", never)
    assert (await choose_password(client.http, token)).status_code == 401


@one_database
async def test_guesses_at_tokens_are_slowed_down(
    settings: Settings, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(guesses, "sleep", sleep)
    settings = settings.model_copy(update={"address_requests_per_minute": 3})
    async with open_api(settings) as http:
        client = await new_client(http, settings)
        statuses = [(await choose_password(http, f"unknown {number}")).status_code for number in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        assert len(waited) == 2
        # Who has a good one is let in.
        await make_ada(client)


@one_database
@pytest.mark.parametrize("password", ["x" * 11, "x" * 257, "e\u0301" * 8, "ADA@example.com"])
async def test_a_password_that_breaks_a_rule_does_not_use_the_token_up(client: Client, password: str) -> None:
    made = await make_ada(client, None)
    answer = await choose_password(client.http, made["setPasswordToken"], password)
    error = answer.json()["error"]
    assert (answer.status_code, error["details"]["fields"][0]["field"]) == (422, "password")
    assert (await choose_password(client.http, made["setPasswordToken"])).status_code == 200


async def test_a_disabled_user_and_one_who_has_left_choose_no_password(
    client: Client, sessions: SessionFactory
) -> None:
    made = await make_ada(client, None)
    await run(sessions, update(User).values(disabled_at=utc_now()))
    assert (await choose_password(client.http, made["setPasswordToken"])).status_code == 401
    error = await client.error("POST", f"/v1/users/{made['id']}/reset-password", code="conflict")
    assert "disabled" in error["message"]
    await run(sessions, update(User).values(disabled_at=None))
    await client.call("DELETE", f"/v1/users/{made['id']}", status=204)
    assert (await choose_password(client.http, made["setPasswordToken"])).status_code == 401


async def test_while_passwords_are_hashed_nobody_waits_for_the_database(
    client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, go_on = passwords.hashed, asyncio.Event()

    async def later(password: str) -> str:
        await go_on.wait()
        return await hashed(password)

    tokens = [
        (await client.data("POST", "/v1/users", ADA | {"email": f"ada{number}@example.com"}, 201))[
            "setPasswordToken"
        ]
        for number in range(15)
    ]
    monkeypatch.setattr(passwords, "hashed", later)
    # More than there are connections.
    chosen = [asyncio.create_task(choose_password(client.http, token)) for token in tokens]
    other = await new_client(client.http, settings)
    async with asyncio.timeout(20):
        await other.data("POST", "/v1/providers", {"name": "one", "kind": "docker"}, 201)
    assert not any(each.done() for each in chosen)
    go_on.set()
    assert {each.status_code for each in await asyncio.gather(*chosen)} == {200}


# Resetting.


async def test_an_admin_resets_a_user_who_is_in_this_organization_alone(
    client: Client, sessions: SessionFactory
) -> None:
    made = await make_ada(client)
    ada = await sign_in(client.http, EMAIL, client.organization_id)
    path = f"/v1/users/{made['id']}/reset-password"
    first, second = [await client.data("POST", path) for _ in range(2)]
    # Until it is used everything is as it was; and the one before is not good any more.
    assert await status_of(client.http, client.organization_id) == 200
    assert (await choose_password(client.http, first["setPasswordToken"], NEW)).status_code == 401
    assert (await choose_password(client.http, second["setPasswordToken"], NEW)).status_code == 200
    assert await status_of(client.http, client.organization_id) == 401
    assert await status_of(client.http, client.organization_id, NEW) == 200
    assert not await renews(client.http, ada)
    told = [action for action, _ in await actions(sessions, client.organization_id)]
    assert told.count("reset_password") == 2
    assert told.count("set_password") == 2


async def test_a_reset_is_shown_once_also_where_it_is_asked_for_again(client: Client) -> None:
    made = await make_ada(client)
    path, key = f"/v1/users/{made['id']}/reset-password", {"Idempotency-Key": "k"}
    first = (await client.request("POST", path, headers=key)).json()["data"]
    again = (await client.request("POST", path, headers=key)).json()
    assert again["data"] == first | {"setPasswordToken": None}
    assert "shown once" in again["meta"]["note"]
    assert (await choose_password(client.http, first["setPasswordToken"], NEW)).status_code == 200


@pytest.mark.parametrize("role", ["owner", "billing", "developer"])
async def test_nobody_resets_who_may_do_more(client: Client, sessions: SessionFactory, role: Role) -> None:
    admin = await person(client, sessions, "admin")
    user = await add_user(sessions, EMAIL, {client.organization_id: role}, verified=False)
    answer = await admin.request("POST", f"/v1/users/{user.id}/reset-password")
    assert answer.status_code == (200 if role == "developer" else 403)


async def test_who_has_a_token_does_not_come_by_a_role_that_is_given_later(
    client: Client, sessions: SessionFactory
) -> None:
    admin = await person(client, sessions, "admin")
    made = await make_ada(client)
    kept = await admin.data("POST", f"/v1/users/{made['id']}/reset-password")
    await client.data("PATCH", f"/v1/users/{made['id']}", {"name": "Ada L.", "role": "developer"})
    await client.data("PATCH", f"/v1/users/{made['id']}", {"role": "owner"})
    assert (await choose_password(client.http, kept["setPasswordToken"], NEW)).status_code == 401
    await admin.error("POST", f"/v1/users/{made['id']}/reset-password", code="forbidden")


async def test_nobody_resets_a_verified_user_or_themselves(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    other = await new_client(client.http, settings)
    for number, organizations in enumerate(([client], [client, other])):
        roles: dict[UUID, Role] = {each.organization_id: "viewer" for each in organizations}
        user = await add_user(sessions, f"ada{number}@example.com", roles)
        error = await client.error("POST", f"/v1/users/{user.id}/reset-password", code="conflict")
        assert "is verified" in error["message"]
    # A stolen access token must not make a password of it.
    await add_user(sessions, EMAIL, {client.organization_id: "admin"}, verified=False)
    admin = await sign_in(client.http, EMAIL, client.organization_id)
    error = await admin.error("POST", f"/v1/users/{admin.user_id}/reset-password", code="conflict")
    assert "/v1/me/password" in error["message"]
    async with sessions() as session:
        assert (await session.scalars(select(SetPasswordToken))).all() == []


async def test_users_of_another_organization_are_not_there_to_be_reset(
    client: Client, settings: Settings
) -> None:
    made = await make_ada(client)
    stranger = await new_client(client.http, settings)
    await stranger.error("POST", f"/v1/users/{made['id']}/reset-password", code="not_found")


# The same address in several organizations.


async def test_an_address_that_is_not_verified_blocks_nobody(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    mallory = await new_client(client.http, settings)
    trap = await make_ada(mallory, "mallory knows this")
    ours = await make_ada(client)
    assert trap["id"] != ours["id"]
    verified = await add_user(
        sessions, EMAIL, {(await new_client(client.http, settings)).organization_id: "owner"}
    )
    # And a verified one does not block others, nor tells that it is there.
    third = await new_client(client.http, settings)
    answer = await third.data("POST", "/v1/users", ADA, 201)
    assert answer.keys() == ours.keys()
    assert (answer["emailVerifiedAt"], answer["name"]) == (None, "Ada")
    assert str(verified.id) not in {answer["id"], ours["id"], trap["id"]}
    # Once in each organization.
    for caller in (client, mallory, third):
        await caller.error("POST", "/v1/users", ADA, code="conflict")


async def test_each_signs_in_where_they_are(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    mallory = await new_client(client.http, settings)
    home = await new_client(client.http, settings)
    await make_ada(mallory, "mallory knows this")
    ours = await make_ada(client)
    verified = await add_user(sessions, EMAIL, {home.organization_id: "owner"})
    assert (await sign_in(client.http, EMAIL)).user_id == verified.id
    assert (await sign_in(client.http, EMAIL, home.organization_id)).user_id == verified.id
    assert str((await sign_in(client.http, EMAIL, client.organization_id)).user_id) == ours["id"]
    # With their password nobody gets anywhere else.
    for organization in (None, client.organization_id, home.organization_id, "nowhere"):
        assert await status_of(client.http, organization, "mallory knows this") == 401
    assert await status_of(client.http, mallory.organization_id, "mallory knows this") == 200
    assert await status_of(client.http, mallory.organization_id) == 401


async def test_the_owner_of_a_verified_address_and_an_unverified_user_are_not_in_one_organization(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    other = await new_client(client.http, settings)
    await add_user(sessions, EMAIL, {other.organization_id: "viewer"})
    both: dict[UUID, Role] = {client.organization_id: "admin", other.organization_id: "admin"}
    await add_user(sessions, "both@example.com", both)
    admin = await sign_in(client.http, "both@example.com", client.organization_id)
    answers = await asyncio.gather(
        *(caller.request("POST", "/v1/users", ADA) for _ in range(3) for caller in (client, admin))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 5}


@one_database
async def test_a_sign_in_does_not_tell_whether_an_address_is_known_elsewhere(
    client: Client, settings: Settings, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile admin sees the same, with the same work, whoever else has the address."""
    mallory = await new_client(client.http, settings)
    await make_ada(mallory, "mallory knows this")
    worked: list[str] = []
    verify_hash = hashes._verify

    def counted(password: str, kept: str) -> bool:
        worked.append(kept)
        return verify_hash(password, kept)

    monkeypatch.setattr(hashes, "_verify", counted)

    async def seen() -> list[Any]:
        told: list[Any] = []
        for organization in (None, mallory.organization_id, client.organization_id, "nowhere"):
            worked.clear()
            body = {"email": EMAIL, "password": "mallory knows this"}
            if organization is not None:
                body["organization"] = str(organization)
            answer = await client.http.post("/v1/auth/token", json=body)
            told.append((answer.status_code, answer.json().get("error"), len(worked)))
        return told

    alone = await seen()
    await make_ada(client)
    await add_user(sessions, EMAIL, {(await new_client(client.http, settings)).organization_id: "owner"})
    assert await seen() == alone
    assert [work for *_, work in alone] == [1, 1, 1, 1]


@one_database
async def test_who_signs_in_to_their_own_organization_guesses_no_faster_elsewhere(
    client: Client, settings: Settings, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(guesses, "sleep", sleep)
    monkeypatch.setattr(sign_ins, "_FROM_EVERYWHERE", sign_ins.Limits(2, 60))
    mallory = await new_client(client.http, settings)
    await make_ada(mallory, "mallory knows this")
    await add_user(sessions, EMAIL, {client.organization_id: "owner"})
    assert await status_of(client.http, mallory.organization_id, "mallory knows this") == 200
    statuses = [await status_of(client.http, None, f"guess number {number}") for number in range(4)]
    assert statuses == [401, 401, 429, 429]
    # There are pauses: that they are known at their own does not count here.
    assert len(waited) == 2


# Changing one's own password.


def body_of(current: str = PASSWORD, new: str = NEW) -> dict[str, str]:
    return {"currentPassword": current, "newPassword": new}


async def test_a_user_changes_the_password_and_other_sign_ins_end(
    client: Client, sessions: SessionFactory, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.api.access.authentication.REMEMBERED_SECONDS", 0)
    elsewhere = await new_client(client.http, settings)
    roles: dict[UUID, Role] = {client.organization_id: "viewer", elsewhere.organization_id: "viewer"}
    await add_user(sessions, EMAIL, roles)
    ada = await sign_in(client.http, EMAIL, client.organization_id)
    others = [await sign_in(client.http, EMAIL, each.organization_id) for each in (client, elsewhere)]
    # Access tokens have whole seconds.
    await asyncio.sleep(1.1 - time.time() % 1)
    answer = await ada.request("POST", "/v1/me/password", body_of())
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    for other in (ada, *others):
        await other.error("GET", "/v1/servers", code="unauthorized")
        assert not await renews(client.http, other)
    tokens = answer.json()["data"]
    again = Client(client.http, client.organization_id, tokens["accessToken"])
    assert await again.data("GET", "/v1/servers") == []
    refreshed = await client.http.post("/v1/auth/refresh", json={"refreshToken": tokens["refreshToken"]})
    assert refreshed.status_code == 200
    assert await status_of(client.http, client.organization_id) == 401
    assert await status_of(client.http, client.organization_id, NEW) == 200
    told = await actions(sessions, client.organization_id)
    assert ("change_own_password", str(ada.user_id)) in told
    async with sessions() as session:
        entries = str((await session.scalars(select(AuditEntry))).all())
    assert PASSWORD not in entries
    assert NEW not in entries


async def test_a_change_ends_a_reset_that_others_hold(client: Client, sessions: SessionFactory) -> None:
    made = await make_ada(client)
    ada = await sign_in(client.http, EMAIL, client.organization_id)
    reset = await client.data("POST", f"/v1/users/{made['id']}/reset-password")
    await ada.data("POST", "/v1/me/password", body_of())
    assert (
        await choose_password(client.http, reset["setPasswordToken"], "mallory knows this")
    ).status_code == 401


async def test_a_wrong_present_password_changes_nothing_and_is_slowed_down(
    client: Client, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(guesses, "sleep", sleep)
    monkeypatch.setattr(sign_ins, "_FROM_ONE_ADDRESS", sign_ins.Limits(2, 60))
    ada = await person(client, sessions, "viewer", EMAIL)
    answers = [await ada.request("POST", "/v1/me/password", body_of("wrong horse battery")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [422, 422, 429, 429]
    assert answers[0].json()["error"]["details"]["fields"] == [
        {"field": "currentPassword", "message": "is not your password"}
    ]
    assert len(waited) == 2
    assert await status_of(client.http) == 200
    # And the owner is let in, slowly.
    assert await ada.data("POST", "/v1/me/password", body_of())
    assert len(waited) == 3


@one_database
@pytest.mark.parametrize("new", ["x" * 11, "x" * 257, "e\u0301" * 8, EMAIL.upper(), PASSWORD])
async def test_a_new_password_keeps_to_the_rules(client: Client, sessions: SessionFactory, new: str) -> None:
    ada = await person(client, sessions, "viewer", EMAIL)
    error = await ada.error("POST", "/v1/me/password", body_of(new=new), code="validation_error")
    assert [each["field"] for each in error["details"]["fields"]] == ["newPassword"]
    assert await status_of(client.http) == 200


async def test_a_key_has_no_password_and_nobody_is_not_let_in(client: Client) -> None:
    error = await client.error("POST", "/v1/me/password", body_of(), code="forbidden")
    assert "An API key has no password" in error["message"]
    assert (await client.http.post("/v1/me/password", json=body_of())).status_code == 401


async def test_who_has_no_password_is_told_so(client: Client, sessions: SessionFactory) -> None:
    ada = await person(client, sessions, "viewer", EMAIL)
    await run(sessions, update(User).values(password_hash=None))
    error = await ada.error("POST", "/v1/me/password", body_of(), code="conflict")
    assert "identity provider" in error["message"]


async def test_no_sign_in_and_no_exchange_gets_past_a_change(
    client: Client, sessions: SessionFactory
) -> None:
    ada = await person(client, sessions, "viewer", EMAIL)
    old, new = PASSWORD, NEW
    for _ in range(4):
        other = await sign_in(client.http, EMAIL, password=old)
        changed, _, _ = await asyncio.gather(
            ada.request("POST", "/v1/me/password", body_of(old, new)),
            client.http.post("/v1/auth/refresh", json={"refreshToken": other.refresh_token}),
            client.http.post("/v1/auth/token", json={"email": EMAIL, "password": old}),
        )
        assert changed.status_code == 200, changed.text
        async with sessions() as session:
            alive = await session.scalars(select(RefreshToken).where(col(RefreshToken.revoked_at).is_(None)))
            assert len(alive.all()) == 1
        tokens = changed.json()["data"]
        ada = Person(
            client.http, client.organization_id, tokens["accessToken"], ada.user_id, tokens["refreshToken"]
        )
        old, new = new, old


async def test_of_two_changes_at_once_one_counts(client: Client, sessions: SessionFactory) -> None:
    ada = await person(client, sessions, "viewer", EMAIL)
    chosen = [f"horse battery number {each}" for each in range(3)]
    answers = await asyncio.gather(
        *(ada.request("POST", "/v1/me/password", body_of(new=each)) for each in chosen)
    )
    assert [answer.status_code for answer in answers].count(200) == 1
    assert {answer.status_code for answer in answers} <= {200, 401, 409, 422}
    good = [each for each in chosen if await status_of(client.http, None, each) == 200]
    assert len(good) == 1
