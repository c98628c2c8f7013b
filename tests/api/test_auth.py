"""Signing in, renewing and signing out, through the API."""

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import jwt
import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col
from structlog.testing import capture_logs

from deployerp.activities.expired import forget_expired
from deployerp.api import sign_ins
from deployerp.api.access import guesses
from deployerp.core import passwords
from deployerp.core.passwords import is_outdated
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.audit.verification import Verified, verify
from deployerp.domain.plans import Limits
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.users import Member, User
from tests.api.people import PASSWORD, add_user, person, sign_in
from tests.conftest import Client, new_client, open_api
from tests.forged_tokens import FORGERIES, Forge

EMAIL = "ada@example.com"
WRONG = (
    "The e-mail address or the password is wrong. A user whose address is not verified must name their"
    " `organization`."
)
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
async def ada(client: Client, sessions: SessionFactory) -> User:
    return await add_user(sessions, EMAIL, {client.organization_id: "developer"})


async def post(http: httpx.AsyncClient, what: str, body: object) -> httpx.Response:
    # Written here, so that it can hold what no proper client would send.
    return await http.post(
        f"/v1/auth/{what}", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )


async def refused(http: httpx.AsyncClient, what: str, body: object, status: int = 401) -> dict[str, Any]:
    answer = await post(http, what, body)
    assert answer.status_code == status, answer.text
    assert ("WWW-Authenticate" in answer.headers) is (status == 401)
    error: dict[str, Any] = answer.json()["error"]
    return error


async def renewed(http: httpx.AsyncClient, secret: str) -> dict[str, Any]:
    answer = await post(http, "refresh", {"refreshToken": secret})
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def ended(http: httpx.AsyncClient, secret: str) -> None:
    error = await refused(http, "refresh", {"refreshToken": secret})
    assert error["message"] == "The refresh token is not good any more: sign in again."


async def run(sessions: SessionFactory, statement: Any) -> None:
    async with sessions() as session, session.begin():
        await session.execute(statement)


# Signing in.


async def test_the_right_password_gives_tokens_that_work(
    client: Client, ada: User, settings: Settings
) -> None:
    answer = await post(client.http, "token", {"email": EMAIL.upper(), "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    data = answer.json()["data"]
    assert data["tokenType"] == "Bearer"
    assert data["expiresIn"] == settings.access_token_minutes * 60
    assert data["organization"]["id"] == str(client.organization_id)
    assert data["role"] == "developer"
    user = Client(client.http, client.organization_id, data["accessToken"])
    assert await user.data("GET", "/v1/servers") == []
    assert (await user.error("POST", "/v1/providers", {"name": "x", "kind": "docker"}, code="forbidden"))[
        "message"
    ].startswith("Your role `developer`")


@one_database
async def test_whatever_is_wrong_the_answer_and_the_work_are_the_same(
    client: Client, ada: User, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_user(sessions, "disabled@example.com", {client.organization_id: "viewer"})
    await run(sessions, update(User).where(col(User.name) == "disabled").values(disabled_at=utc_now()))
    await add_user(sessions, "nowhere@example.com", {})
    await add_user(sessions, "external@example.com", {client.organization_id: "owner"}, password_hash=None)
    verified: list[str] = []
    verify = passwords._verify

    def counted(password: str, kept: str) -> bool:
        verified.append(kept)
        return verify(password, kept)

    monkeypatch.setattr(passwords, "_verify", counted)
    tries = [
        (EMAIL, "wrong horse battery"),
        ("nobody@example.com", PASSWORD),
        ("disabled@example.com", PASSWORD),
        ("nowhere@example.com", PASSWORD),
        ("external@example.com", PASSWORD),
    ]
    for email, password in tries:
        error = await refused(client.http, "token", {"email": email, "password": password})
        assert error == {"code": "unauthorized", "message": WRONG, "details": {}}
    assert len(verified) == len(tries)


async def test_a_user_of_several_organizations_names_one(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    acme = await new_client(client.http, settings, slug="acme")
    beta = await new_client(client.http, settings, slug="beta")
    await add_user(sessions, EMAIL, {acme.organization_id: "viewer", beta.organization_id: "owner"})
    body = {"email": EMAIL, "password": PASSWORD}
    error = await refused(client.http, "token", body, 422)
    assert error["message"] == "organization: must be one of yours: acme, beta"
    assert error["details"]["organizations"] == [
        {"id": str(acme.organization_id), "slug": "acme"},
        {"id": str(beta.organization_id), "slug": "beta"},
    ]
    # Where another is named, the address is looked for there.
    for organization in ("gamma", str(client.organization_id)):
        await refused(client.http, "token", body | {"organization": organization})
    # Nobody is told that without the password.
    await refused(client.http, "token", body | {"password": "wrong horse battery"})
    for organization in ("beta", str(beta.organization_id)):
        assert (await sign_in(client.http, EMAIL, organization)).organization_id == beta.organization_id


@one_database
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": EMAIL},
        {"email": "no address", "password": PASSWORD},
        {"email": EMAIL, "password": ""},
        {"email": EMAIL, "password": "x" * 1025},
        {"email": EMAIL, "password": "\ud800" * 12},
        {"email": EMAIL, "password": PASSWORD, "role": "owner"},
        {"email": "é@example.com", "password": PASSWORD},
    ],
)
async def test_requests_that_break_a_rule_are_invalid(client: Client, body: dict[str, str]) -> None:
    assert (await refused(client.http, "token", body, 422))["code"] == "validation_error"


async def test_a_hash_of_old_parameters_is_made_anew(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    assert ada.password_hash is not None
    assert is_outdated(ada.password_hash)
    await sign_in(client.http, EMAIL)
    async with sessions() as session:
        kept = (await session.get_one(User, ada.id)).password_hash
    assert kept is not None
    assert not is_outdated(kept)
    await sign_in(client.http, EMAIL)


async def statuses_of_wrong(client: Client, times: int, email: str = EMAIL) -> list[int]:
    body = {"email": email, "password": "wrong horse battery"}
    return [(await post(client.http, "token", body)).status_code for _ in range(times)]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long those had to wait who took their turn."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(guesses, "sleep", sleep)
    return waited


@pytest.mark.fault("17")
async def test_wrong_sign_ins_slow_an_account_down_and_do_not_lock_it(
    client: Client, ada: User, pauses: list[float]
) -> None:
    statuses = await statuses_of_wrong(client, 60)
    assert statuses == [401] * 10 + [429] * 50
    assert len(pauses) == 50
    assert (await sign_in(client.http, EMAIL.title())).organization_id == client.organization_id
    assert len(pauses) > 50
    # Neither other accounts nor tokens that are there already feel it.
    await refused(client.http, "token", {"email": "grace@example.com", "password": PASSWORD})
    assert await client.data("GET", "/v1/servers") == []


async def test_right_sign_ins_are_no_failures(client: Client, ada: User, pauses: list[float]) -> None:
    for _ in range(12):
        await sign_in(client.http, EMAIL)
    assert pauses == []


async def test_an_account_is_tried_from_an_address_by_few_at_once(
    client: Client, ada: User, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_ins, "_FROM_ONE_ADDRESS", Limits(1, 60))
    statuses = Counter(
        status
        for each in await asyncio.gather(*(statuses_of_wrong(client, 1) for _ in range(20)))
        for status in each
    )
    # One is looked at, others in turn, and those for which there is no place are sent away.
    assert statuses == {401: 1, 429: 19}
    assert 1 <= len(pauses) <= 9


@pytest.mark.fault("17")
async def test_wrong_sign_ins_from_many_addresses_let_the_owner_in(
    client: Client, ada: User, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_ins, "_FROM_EVERYWHERE", Limits(2, 60))
    monkeypatch.setattr(sign_ins, "address_of", lambda _: "203.0.113.7")
    await sign_in(client.http, EMAIL)
    for number, status in enumerate((401, 401, 429)):
        monkeypatch.setattr(sign_ins, "address_of", lambda _, number=number: f"198.51.100.{number}")
        assert await statuses_of_wrong(client, 1) == [status]
    assert len(pauses) == 1
    # From elsewhere slowly, and from where they were before at once.
    monkeypatch.setattr(sign_ins, "address_of", lambda _: "2001:db8::1")
    await sign_in(client.http, EMAIL)
    assert len(pauses) == 2
    monkeypatch.setattr(sign_ins, "address_of", lambda _: "203.0.113.7")
    await sign_in(client.http, EMAIL)
    assert len(pauses) == 2


@one_database
async def test_tries_at_many_accounts_from_one_network_are_counted_whoever_asks(
    settings: Settings, sessions: SessionFactory, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"address_requests_per_minute": 3})
    monkeypatch.setattr(sign_ins, "_FROM_EVERYWHERE", Limits(1, 60))
    async with open_api(settings) as http:
        # A key that counts for an organization without a limit.
        client = await new_client(http, settings)
        await add_user(sessions, EMAIL, {client.organization_id: "viewer"})
        statuses = [
            (await client.request("POST", "/v1/auth/token", body_of(f"{number}@example.com"))).status_code
            for number in range(4)
        ]
        assert statuses == [401, 401, 401, 429]
        waited = len(pauses)
        assert await client.data("POST", "/v1/auth/token", body_of(EMAIL))
        assert len(pauses) == waited + 1


@one_database
async def test_what_strangers_of_an_address_ask_and_guess_does_not_end_sign_ins(
    settings: Settings, sessions: SessionFactory, pauses: list[float]
) -> None:
    settings = settings.model_copy(update={"address_requests_per_minute": 3})
    async with open_api(settings) as http:
        client = await new_client(http, settings)
        await add_user(sessions, EMAIL, {client.organization_id: "viewer"})
        ada = await sign_in(http, EMAIL)
        assert [(await http.get("/v1/servers")).status_code for _ in range(4)] == [401, 401, 401, 429]
        for number in range(4):
            error = {"code": "unauthorized"} if number < 3 else {"code": "rate_limit_exceeded"}
            answer = await post(http, "refresh", {"refreshToken": f"unknown {number}"})
            assert answer.json()["error"]["code"] == error["code"]
        assert await renewed(http, ada.refresh_token)
        assert await sign_in(http, EMAIL)


def body_of(email: str) -> dict[str, str]:
    return {"email": email, "password": PASSWORD}


async def test_a_sign_in_is_told_to_the_audit_log(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    await sign_in(client.http, EMAIL)
    (entry,) = await told(sessions)
    assert (entry.organization_id, entry.action) == (client.organization_id, "create_token")
    assert (entry.actor_type, entry.actor_id, entry.resource_id) == ("user", ada.id, ada.id)


async def told(sessions: SessionFactory) -> list[AuditEntry]:
    async with sessions() as session:
        return list(await session.scalars(select(AuditEntry).order_by(col(AuditEntry.sequence))))


async def ends_told(client: Client, ada: User, sessions: SessionFactory) -> list[tuple[str, str]]:
    """What the audit log tells of ends of sign-ins: actions, with the requests that had them done."""
    entries = [entry for entry in await told(sessions) if entry.action != "create_token"]
    for entry in entries:
        assert entry.organization_id == client.organization_id
        assert (entry.actor_type, entry.actor_id) == ("user", ada.id)
        assert (entry.resource_type, entry.resource_id) == ("user", ada.id)
        assert entry.address == "127.0.0.1"
    whole = await verify(sessions, client.organization_id)
    assert isinstance(whole, Verified)
    return [(entry.action, entry.request_id) for entry in entries]


# Renewing.


async def test_a_refresh_token_gives_a_new_pair_of_the_same_sign_in(client: Client, ada: User) -> None:
    first = await sign_in(client.http, EMAIL)
    second = await renewed(client.http, first.refresh_token)
    assert second["refreshToken"] != first.refresh_token
    assert second["role"] == "developer"
    assert second["organization"]["id"] == str(client.organization_id)
    third = await renewed(client.http, second["refreshToken"])
    user = Client(client.http, client.organization_id, third["accessToken"])
    assert await user.data("GET", "/v1/servers") == []


async def test_a_refresh_token_that_is_used_twice_ends_its_family_and_no_other(
    client: Client, ada: User
) -> None:
    stolen, other = await sign_in(client.http, EMAIL), await sign_in(client.http, EMAIL)
    thief = await renewed(client.http, stolen.refresh_token)
    with capture_logs() as logs:
        await ended(client.http, stolen.refresh_token)
    (warning,) = [line for line in logs if line["log_level"] == "warning"]
    assert warning["event"] == "refresh token used again"
    assert (warning["user_id"], warning["organization_id"]) == (str(ada.id), str(client.organization_id))
    await ended(client.http, thief["refreshToken"])
    await ended(client.http, stolen.refresh_token)
    await renewed(client.http, other.refresh_token)


async def test_the_end_of_a_family_by_a_second_use_is_told_to_the_audit_log_once(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    stolen = await sign_in(client.http, EMAIL)
    thief = await renewed(client.http, stolen.refresh_token)
    answer = await post(client.http, "refresh", {"refreshToken": stolen.refresh_token})
    assert answer.status_code == 401
    once = [("end_sign_in", answer.headers["X-Request-Id"])]
    assert await ends_told(client, ada, sessions) == once
    # Nothing is left that could end: whoever holds an old token does not fill the log with it.
    await ended(client.http, stolen.refresh_token)
    await ended(client.http, thief["refreshToken"])
    assert await ends_told(client, ada, sessions) == once


async def test_of_two_uses_at_once_one_wins_and_the_family_ends(client: Client, ada: User) -> None:
    for _ in range(5):
        signed_in = await sign_in(client.http, EMAIL)
        answers = await asyncio.gather(
            *(post(client.http, "refresh", {"refreshToken": signed_in.refresh_token}) for _ in range(4))
        )
        won = [answer.json()["data"] for answer in answers if answer.status_code == 200]
        assert [answer.status_code for answer in answers].count(401) == 3
        assert len(won) == 1
        await ended(client.http, won[0]["refreshToken"])


async def test_a_thief_and_an_exchange_at_once_leave_no_living_token(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    for _ in range(5):
        old = await sign_in(client.http, EMAIL)
        newest = await renewed(client.http, old.refresh_token)
        exchanged, _ = await asyncio.gather(
            post(client.http, "refresh", {"refreshToken": newest["refreshToken"]}),
            post(client.http, "refresh", {"refreshToken": old.refresh_token}),
        )
        if exchanged.status_code == 200:
            await ended(client.http, exchanged.json()["data"]["refreshToken"])
        async with sessions() as session:
            alive = await session.scalars(select(RefreshToken).where(col(RefreshToken.revoked_at).is_(None)))
        assert alive.all() == []


async def test_a_refresh_token_expires_and_is_forgotten_then(
    client: Client, ada: User, sessions: SessionFactory, settings: Settings
) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    async with sessions() as session:
        token = (await session.scalars(select(RefreshToken))).one()
    assert token.expires_at - token.created_at >= timedelta(days=settings.refresh_token_days, seconds=-1)
    assert signed_in.refresh_token not in repr(token)
    await run(sessions, update(RefreshToken).values(expires_at=utc_now()))
    await ended(client.http, signed_in.refresh_token)
    living = await sign_in(client.http, EMAIL)
    await forget_expired(sessions, timedelta(days=30))
    async with sessions() as session:
        assert len((await session.scalars(select(RefreshToken))).all()) == 1
    await renewed(client.http, living.refresh_token)


async def test_who_is_disabled_or_no_member_any_more_renews_nothing(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    first, second = await sign_in(client.http, EMAIL), await sign_in(client.http, EMAIL)
    await run(sessions, update(User).values(disabled_at=utc_now()))
    await ended(client.http, first.refresh_token)
    await run(sessions, update(User).values(disabled_at=None))
    await run(sessions, delete(Member))
    await ended(client.http, second.refresh_token)


async def test_a_new_role_is_told_at_the_next_exchange(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    await run(sessions, update(Member).values(role="billing"))
    assert (await renewed(client.http, signed_in.refresh_token))["role"] == "billing"


@one_database
@pytest.mark.parametrize("secret", ["x", "dep_refresh_" + "A" * 43, "é" * 20])
async def test_what_is_no_refresh_token_is_refused(client: Client, secret: str) -> None:
    await ended(client.http, secret)


async def test_a_refresh_token_is_no_access_token_nor_the_other_way(client: Client, ada: User) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    await Client(client.http, client.organization_id, signed_in.refresh_token).error(
        "GET", "/v1/servers", code="unauthorized"
    )
    answer = await post(client.http, "refresh", {"refreshToken": signed_in.token})
    assert answer.status_code in (401, 422)


# Signing out.


async def test_signing_out_ends_the_whole_sign_in_and_no_other(client: Client, ada: User) -> None:
    first, other = await sign_in(client.http, EMAIL), await sign_in(client.http, EMAIL)
    latest = await renewed(client.http, first.refresh_token)
    # With any token of the family, also a used one.
    answer = await post(client.http, "revoke", {"refreshToken": first.refresh_token})
    assert (answer.status_code, answer.content) == (204, b"")
    await ended(client.http, latest["refreshToken"])
    await renewed(client.http, other.refresh_token)


async def test_signing_out_is_told_to_the_audit_log_once(
    client: Client, ada: User, sessions: SessionFactory
) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    body = {"refreshToken": signed_in.refresh_token}
    first, second = [await post(client.http, "revoke", body) for _ in range(2)]
    assert (first.status_code, second.status_code) == (204, 204)
    await ended(client.http, signed_in.refresh_token)
    assert await ends_told(client, ada, sessions) == [("revoke_token", first.headers["X-Request-Id"])]


async def test_an_access_token_outlives_its_sign_in(client: Client, ada: User) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    await post(client.http, "revoke", {"refreshToken": signed_in.refresh_token})
    # As the document says.
    assert await signed_in.data("GET", "/v1/servers") == []


async def test_an_unknown_token_is_ended_already(client: Client) -> None:
    assert (await post(client.http, "revoke", {"refreshToken": "dep_refresh_nobody"})).status_code == 204


# Who I am.


async def test_users_and_keys_are_told_who_they_are(client: Client, sessions: SessionFactory) -> None:
    user = await person(client, sessions, "billing")
    told = await user.data("GET", "/v1/me")
    organization = told.pop("organization")
    assert organization["id"] == str(client.organization_id)
    assert organization["plan"] == "enterprise"
    assert told == {
        "type": "user",
        "id": str(user.user_id),
        "name": "billing",
        "email": "billing@example.com",
        "role": "billing",
        "level": None,
        "permissions": ["manage:billing", "read:billing", "read:users"],
    }
    key = await client.data("GET", "/v1/me")
    assert (key["type"], key["level"], key["role"], key["email"]) == ("api_key", "admin", None, None)
    assert key["organization"] == organization
    assert "manage:api-keys" in key["permissions"]


async def test_nobody_is_not_told_who_they_are(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/me")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


# Forged access tokens, over the API.


@one_database
async def test_forged_tokens_are_unauthorized(
    client: Client, sessions: SessionFactory, settings: Settings
) -> None:
    ada = await add_user(sessions, EMAIL, {client.organization_id: "owner"})
    key = settings.encryption_keys[0].get_secret_value()
    forge = Forge(key, ada.id, client.organization_id)
    assert await Client(client.http, client.organization_id, forge.token()).data("GET", "/v1/servers") == []
    told = set()
    for name, make in FORGERIES.items():
        bearer = {"Authorization": f"Bearer {make(forge)}".encode()}
        answer = await client.http.get("/v1/servers", headers=bearer)
        assert answer.status_code == 401, name
        assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"', name
        told.add(str(answer.json()["error"]))
    assert len(told) == 1


async def test_an_ended_membership_ends_access_within_seconds(
    client: Client, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.api.access.authentication.REMEMBERED_SECONDS", 0)
    user = await person(client, sessions, "viewer")
    assert await user.data("GET", "/v1/servers") == []
    await run(sessions, delete(RefreshToken))
    await run(sessions, delete(Member))
    await user.error("GET", "/v1/servers", code="unauthorized")


async def test_a_token_names_user_and_organization_and_no_role(client: Client, ada: User) -> None:
    signed_in = await sign_in(client.http, EMAIL)
    claims = jwt.decode(signed_in.token, options={"verify_signature": False})
    assert UUID(claims["org"]) == client.organization_id
    assert "role" not in claims
    assert UUID(claims["sub"]) == ada.id
