"""Who is behind a token, asked of the authenticator itself, on real databases."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import RSAAlgorithm
from sqlalchemy import delete, event, select, update
from sqlmodel import col
from structlog.testing import capture_logs

from deployerp.api.access.authentication import REMEMBERED_SECONDS, Authenticator
from deployerp.api.access.callers import Caller
from deployerp.api.access.external_identities import Origin
from deployerp.core.background import Background
from deployerp.core.errors import Unauthorized
from deployerp.core.secrets import new_encryption_key
from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain import refresh_tokens, set_password_tokens
from deployerp.domain.api_keys import ApiKey, new_api_key
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.organizations import Organization
from deployerp.domain.permissions import LEVEL_PERMISSIONS, LEVELS, ROLE_PERMISSIONS, ROLES
from deployerp.domain.plans import PLAN_LIMITS, Limits
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.set_password_tokens import SetPasswordToken
from deployerp.domain.users import Identity, Member, User
from tests.forged_tokens import FORGERIES, Forge, base64url, token_of

ISSUER = "https://issuer.example/"
# The year 2100.
FAR = 4_102_444_800
RSA, OTHER = (rsa.generate_private_key(65537, 2048) for _ in range(2))


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """An authenticator, and what it looks at."""

    settings: Settings
    sessions: SessionFactory
    background: Background
    clock: Clock
    authenticator: Authenticator
    statements: list[str]

    async def add(self, *records: Any) -> None:
        async with self.sessions() as session, session.begin():
            for record in records:
                session.add(record)
                await session.flush()

    async def change(self, statement: Any) -> None:
        async with self.sessions() as session, session.begin():
            await session.execute(statement)

    async def organization(self, slug: str = "acme", **more: Any) -> Organization:
        made = Organization(name=slug, slug=slug, **more)
        await self.add(made)
        return made

    async def key(self, organization: Organization, level: str = "read", **more: Any) -> tuple[ApiKey, str]:
        key, token = new_api_key(organization.id, "test", level, **more)
        await self.add(key)
        return key, token

    async def user(
        self,
        *organizations: Organization,
        role: str = "viewer",
        email: str = "ada@example.com",
        verified: bool = True,
        **more: Any,
    ) -> User:
        home = {"email_verified_at": utc_now()} if verified else {"home_organization_id": organizations[0].id}
        user = User(email=email, name="Ada", **home, **more)
        await self.add(
            user, *(Member(organization_id=each.id, user_id=user.id, role=role) for each in organizations)
        )
        return user

    def trust(self, **changes: Any) -> None:
        """Begins anew, with other settings of the issuer."""
        (trusted,) = self.settings.trusted_issuers
        settings = self.settings.model_copy(update={"trusted_issuers": [trusted.model_copy(update=changes)]})
        self.authenticator = Authenticator(settings, self.sessions, self.background, clock=self.clock)

    def issue(self, user: User, organization: Organization) -> str:
        return self.authenticator.tokens.issue(user.id, organization.id)

    async def refuses(self, token: str) -> None:
        with pytest.raises(Unauthorized) as caught:
            await self.authenticator.caller(token)
        assert caught.value.message.startswith("A valid API key or access token is needed")
        assert self.authenticator.remembered(token) is None


@pytest.fixture
async def published() -> AsyncIterator[str]:
    """The address of an issuer's keys: `one`, and `ec` which is of another algorithm."""
    keys = [
        RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "one", "use": "sig"},
        jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
        | {"kid": "ec"},
    ]

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"keys": keys})

    application = web.Application()
    application.router.add_get("/keys", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    await runner.cleanup()


@pytest.fixture
async def world(database_url: str, published: str) -> AsyncIterator[World]:
    trusted = {"issuer": ISSUER, "jwks_url": published, "audience": "erp"}
    settings = Settings.model_validate(
        {"encryption_keys": [new_encryption_key()], "trusted_issuers": [trusted]}
    )
    database = open_database(database_url)
    statements: list[str] = []
    event.listen(
        database.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    sessions, background, clock = session_factory(database), Background(), Clock()
    authenticator = Authenticator(settings, sessions, background, clock=clock)
    yield World(settings, sessions, background, clock, authenticator, statements)
    await background.drain()
    await database.dispose()


# API keys.


@pytest.mark.parametrize("level", LEVELS)
async def test_a_key_is_its_organization_with_the_permissions_of_its_level(world: World, level: str) -> None:
    organization = await world.organization(plan="professional")
    key, token = await world.key(organization, level)
    caller = await world.authenticator.caller(token)
    assert (caller.organization_id, caller.actor_type, caller.actor_id) == (
        organization.id,
        "api_key",
        key.id,
    )
    assert caller.holds == f"level `{level}`"
    assert caller.permissions == LEVEL_PERMISSIONS[level]
    assert caller.limits == PLAN_LIMITS["professional"]


async def test_an_organization_can_have_limits_of_its_own(world: World) -> None:
    _, token = await world.key(await world.organization(plan="enterprise", requests_per_minute=7))
    assert (await world.authenticator.caller(token)).limits == Limits(7, None)


async def test_keys_that_are_wrong_expired_or_revoked_are_refused(world: World) -> None:
    organization = await world.organization()
    _, right = await world.key(organization)
    _, expired = await world.key(organization, expires_at=utc_now() - timedelta(seconds=1))
    revoked_key, revoked = await world.key(organization)
    await world.change(update(ApiKey).where(col(ApiKey.id) == revoked_key.id).values(revoked_at=utc_now()))
    last = "a" if right[-1] != "a" else "b"
    for token in (
        expired,
        revoked,
        right[:-1] + last,
        right + "a",
        new_api_key(organization.id, "x", "read")[1],
    ):
        await world.refuses(token)
    assert await world.authenticator.caller(right)


@pytest.mark.parametrize(
    "token", ["", "garbage", "dep_live_", "a" * 100_000, "\udc80", "é", "dep_refresh_x", "a.b.c"]
)
async def test_what_is_no_token_is_refused(world: World, token: str) -> None:
    await world.refuses(token)


async def test_the_last_use_is_noted_once_a_minute_and_is_no_change(world: World) -> None:
    organization = await world.organization()
    key, token = await world.key(organization)

    async def used_at() -> Any:
        world.clock.now += REMEMBERED_SECONDS
        await world.authenticator.caller(token)
        await world.background.drain()
        async with world.sessions() as session:
            kept = await session.get_one(ApiKey, key.id)
        assert kept.updated_at == key.updated_at
        return kept.last_used_at

    first = await used_at()
    assert first is not None
    assert await used_at() == first
    long_ago = first - timedelta(seconds=61)
    await world.change(update(ApiKey).values(last_used_at=long_ago, updated_at=key.updated_at))
    assert await used_at() > first


# Users with a token of ours.


@pytest.mark.parametrize("role", ROLES)
async def test_a_user_has_the_permissions_of_the_role_in_the_organization_of_the_token(
    world: World, role: str
) -> None:
    acme, beta = await world.organization("acme", plan="enterprise"), await world.organization("beta")
    user = await world.user(acme, role=role)
    await world.add(Member(organization_id=beta.id, user_id=user.id, role="viewer"))
    caller = await world.authenticator.caller(world.issue(user, acme))
    assert (caller.organization_id, caller.actor_type, caller.actor_id) == (acme.id, "user", user.id)
    assert caller.holds == f"role `{role}`"
    assert caller.permissions == ROLE_PERMISSIONS[role]
    assert caller.limits == PLAN_LIMITS["enterprise"]


async def test_who_is_disabled_gone_or_no_member_is_refused(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    disabled, gone = await world.user(acme), await world.user(acme, email="gone@example.com")
    await world.change(update(User).where(col(User.id) == disabled.id).values(disabled_at=utc_now()))
    await world.change(delete(Member).where(col(Member.user_id) == gone.id))
    member = await world.user(acme, email="member@example.com")
    await world.refuses(world.issue(disabled, acme))
    await world.refuses(world.issue(gone, acme))
    await world.refuses(world.issue(member, beta))
    await world.refuses(world.issue(User(id=uuid4(), email="", name=""), acme))


async def test_an_organization_named_like_the_id_of_another_is_not_mistaken_for_it(world: World) -> None:
    acme = await world.organization("acme")
    alike = await world.organization(str(acme.id))
    user = await world.user(acme, alike)
    for organization in (acme, alike):
        caller = await world.authenticator.caller(world.issue(user, organization))
        assert caller.organization_id == organization.id


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_forged_tokens_of_a_real_user_are_refused(world: World, name: str) -> None:
    organization = await world.organization()
    user = await world.user(organization)
    forge = Forge(world.settings.encryption_keys[0].get_secret_value(), user.id, organization.id)
    assert await world.authenticator.caller(forge.token())
    await world.refuses(FORGERIES[name](forge))


async def test_the_reason_of_a_refusal_is_logged_without_the_token(world: World) -> None:
    forge = Forge(world.settings.encryption_keys[0].get_secret_value())
    token = FORGERIES["expired"](forge)
    with capture_logs() as logs:
        await world.refuses(token)
    (line,) = logs
    assert line["reason"].startswith("Signature has expired")
    assert token not in json.dumps(logs)


# Users with a token of another issuer.


def external(key: Any = RSA, kid: str = "one", algorithm: str = "RS256", **changes: Any) -> str:
    now = int(time.time())
    right = {
        "iss": ISSUER,
        "aud": "erp",
        "sub": "u-1",
        "iat": now,
        "exp": now + 60,
        "email": "Ada@Example.com",
    }
    claims = right | {"email_verified": True} | changes
    told = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(told, key, algorithm, headers={"kid": kid})


async def identities(world: World) -> list[tuple[UUID, str, str]]:
    async with world.sessions() as session:
        found = await session.scalars(select(Identity))
        return [(each.user_id, each.issuer, each.subject) for each in found]


async def test_a_verified_address_links_the_subject_to_its_user_for_good(world: World) -> None:
    organization = await world.organization()
    user = await world.user(organization, role="developer")
    caller = await world.authenticator.caller(external())
    assert (caller.actor_id, caller.holds) == (user.id, "role `developer`")
    assert caller.permissions == ROLE_PERMISSIONS["developer"]
    assert await identities(world) == [(user.id, ISSUER, "u-1")]
    # From now on it is the subject that counts, whatever its address.
    later = external(email="new@example.com", email_verified=False)
    assert (await world.authenticator.caller(later)).actor_id == user.id
    assert len(await identities(world)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email": None},
        {"email": ["ada@example.com"]},
        {"email": "nobody@example.com"},
        {"email": "a\u0000da@example.com"},
        {"sub": "a\u0000"},
        {"sub": "x" * 256},
        {"sub": ""},
        {"sub": None},
        {"aud": "somebody else"},
        {"aud": ["somebody else"]},
        {"aud": []},
        {"aud": ["erp", 1]},
        {"aud": None},
        {"iss": "https://other.example/"},
        {"iss": None},
        {"iss": ISSUER.rstrip("/")},
        {"exp": 1},
        {"exp": None},
        {"iat": FAR},
        {"nbf": FAR},
        {"organization": "beta"},
        {"organization": ["acme"]},
        {"organization": ""},
        {"kid": "unknown"},
        {"kid": "ec"},
        {"key": OTHER},
        {"key": "a secret of 32 bytes or rather more", "algorithm": "HS256"},
        {"algorithm": "RS512"},
        {"algorithm": "PS256"},
    ],
    # What the workers of a run must agree on: no times, no addresses of objects.
    ids=lambda changes: "-".join(f"{name} {each if isinstance(each, str | None) else type(each).__name__}"
        for name, each in changes.items())[:40],
)  # fmt: skip
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_tokens_of_an_issuer_that_are_wrong_link_nobody(world: World, changes: dict[str, Any]) -> None:
    await world.organization("beta")
    await world.user(await world.organization())
    await world.refuses(external(**changes))
    assert await identities(world) == []
    assert await world.authenticator.caller(external())


@pytest.mark.fault("20")
@pytest.mark.parametrize("audience", ["erp", ["erp"], ["account", "erp"]])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_token_of_an_issuer_may_be_for_several_audiences(world: World, audience: object) -> None:
    user = await world.user(await world.organization())
    assert (await world.authenticator.caller(external(aud=audience))).actor_id == user.id


@pytest.mark.fault("20")
@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", ["10**309", "-(10**309)", "253402300800", "-1"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_times_that_are_no_dates_are_refused(world: World, claim: str, value: str) -> None:
    await world.user(await world.organization())
    # Evaluated here: the name of a test must not have 309 digits.
    number = {"10**309": 10**309, "-(10**309)": -(10**309)}.get(value) or int(value)
    await world.refuses(external(**{claim: number}))


async def test_an_unsigned_token_of_an_issuer_is_refused(world: World) -> None:
    await world.user(await world.organization())
    claims = jwt.decode(external(), options={"verify_signature": False})
    await world.refuses(token_of({"alg": "none", "kid": "one"}, claims, lambda _: b""))
    header, _, signature = external().split(".")
    await world.refuses(f"{header}.{base64url(json.dumps(claims | {'sub': 'u-2'}).encode())}.{signature}")


async def test_an_issuer_cannot_speak_for_us_nor_we_for_it(world: World) -> None:
    organization = await world.organization()
    user = await world.user(organization)
    ours = Forge(world.settings.encryption_keys[0].get_secret_value(), user.id, organization.id)
    await world.refuses(external(**ours.claims()))
    await world.refuses(ours.token(claims={"iss": ISSUER, "aud": "erp"}))
    await world.refuses(external(kid=ours.kid))


async def test_the_organization_is_the_named_one_or_the_only_one(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    user = await world.user(acme)
    assert (await world.authenticator.caller(external())).organization_id == acme.id
    await world.add(Member(organization_id=beta.id, user_id=user.id, role="viewer"))
    await world.refuses(external(jti="2"))
    for named, meant in (("acme", acme), ("beta", beta), (str(acme.id), acme), (str(beta.id), beta)):
        assert (await world.authenticator.caller(external(organization=named))).organization_id == meant.id
    await world.refuses(external(organization="gamma"))


async def test_an_issuer_speaks_for_the_organizations_that_the_operator_names(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    await world.user(beta, role="owner")
    world.trust(organizations=["acme"])
    for named in (None, "beta", str(beta.id)):
        await world.refuses(external(organization=named))
    assert await identities(world) == []
    # A member of both comes to the one, also without naming it.
    await world.user(acme, beta, email="both@example.com")
    both: dict[str, Any] = {"sub": "u-2", "email": "both@example.com"}
    for named in (None, "acme", str(acme.id)):
        caller = await world.authenticator.caller(external(organization=named, **both))
        assert caller.organization_id == acme.id
    for named in ("beta", str(beta.id)):
        await world.refuses(external(organization=named, **both))


async def test_a_linked_subject_gets_no_further_than_its_issuer(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    user = await world.user(acme)
    world.trust(organizations=["acme"])
    await world.authenticator.caller(external())
    await world.change(update(Member).values(organization_id=beta.id))
    assert [user_id for user_id, *_ in await identities(world)] == [user.id]
    for number, named in enumerate((None, "beta", str(beta.id))):
        await world.refuses(external(organization=named, jti=str(number)))
    world.trust(organizations=["acme", "beta"])
    assert (await world.authenticator.caller(external())).organization_id == beta.id


async def test_the_link_of_a_subject_is_told_to_the_audit_log_once(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    user = await world.user(acme, beta)
    origin = Origin("203.0.113.7", "the-request")
    await world.refuses(external())
    assert await entries(world) == []
    for number in range(2):
        await world.authenticator.caller(external(organization="beta", jti=str(number)), origin)
    (entry,) = await entries(world)
    assert (entry.organization_id, entry.action) == (beta.id, "link_identity")
    assert (entry.actor_type, entry.actor_id) == ("user", user.id)
    assert (entry.resource_type, entry.resource_id) == ("user", user.id)
    assert (entry.address, entry.request_id) == ("203.0.113.7", "the-request")
    assert entry.after is not None
    assert (entry.after["issuer"], entry.after["subject"]) == (ISSUER, "u-1")


async def entries(world: World) -> list[AuditEntry]:
    async with world.sessions() as session:
        return list(await session.scalars(select(AuditEntry)))


async def test_an_address_that_is_given_to_somebody_new_does_not_give_them_the_user(world: World) -> None:
    await world.user(await world.organization())
    await world.authenticator.caller(external())
    await world.refuses(external(sub="u-2"))
    assert len(await identities(world)) == 1


async def test_many_first_tokens_at_once_link_once(world: World) -> None:
    user = await world.user(await world.organization())
    callers = await asyncio.gather(
        *(world.authenticator.caller(external(jti=str(number))) for number in range(10))
    )
    assert {caller.actor_id for caller in callers} == {user.id}
    assert len(await identities(world)) == 1
    assert len(await entries(world)) == 1


async def test_a_disabled_user_of_an_issuer_is_refused(world: World) -> None:
    await world.user(await world.organization())
    await world.authenticator.caller(external())
    await world.change(update(User).values(disabled_at=utc_now()))
    await world.refuses(external(jti="2"))


# What is remembered.


async def test_who_was_found_is_remembered_for_seconds_and_no_longer(world: World) -> None:
    _, token = await world.key(await world.organization())
    found = await world.authenticator.caller(token)
    await world.background.drain()
    await world.change(update(ApiKey).values(revoked_at=utc_now()))
    world.statements.clear()
    world.clock.now += REMEMBERED_SECONDS - 0.1
    assert world.authenticator.remembered(token) is found
    assert await world.authenticator.caller(token) is found
    assert world.statements == []
    world.clock.now += 0.1
    assert world.authenticator.remembered(token) is None
    await world.refuses(token)


async def test_a_role_that_changes_counts_within_seconds(world: World) -> None:
    organization = await world.organization()
    user = await world.user(organization)
    token = world.issue(user, organization)
    assert (await world.authenticator.caller(token)).holds == "role `viewer`"
    await world.change(update(Member).values(role="admin"))
    world.clock.now += REMEMBERED_SECONDS
    assert (await world.authenticator.caller(token)).holds == "role `admin`"


async def test_nobody_is_remembered_longer_than_their_token_is_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.api.access.authentication.REMEMBERED_SECONDS", 10_000)
    organization = await world.organization()
    _, token = await world.key(organization, expires_at=utc_now() + timedelta(hours=1))
    await world.authenticator.caller(token)
    world.clock.now += 3000
    assert world.authenticator.remembered(token) is not None
    world.clock.now += 600
    assert world.authenticator.remembered(token) is None


async def test_who_is_forgotten_is_looked_up_again_and_nobody_else(world: World) -> None:
    organization = await world.organization()
    key, token = await world.key(organization)
    _, other = await world.key(organization)
    await world.authenticator.caller(token)
    await world.authenticator.caller(other)
    await world.change(update(ApiKey).values(revoked_at=utc_now()))
    world.authenticator.forget(key.id)
    await world.refuses(token)
    assert world.authenticator.remembered(other) is not None


async def test_many_at_once_share_one_look_and_one_who_leaves_takes_nothing_along(world: World) -> None:
    _, token = await world.key(await world.organization())
    world.statements.clear()
    asking = [asyncio.create_task(world.authenticator.caller(token)) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    found = await asyncio.gather(*asking[1:])
    assert len({id(caller) for caller in found}) == 1
    await world.background.drain()
    looks = [statement for statement in world.statements if "token_digest" in statement]
    assert len(looks) == 1


async def test_what_was_read_before_a_change_is_not_remembered_after_it(world: World) -> None:
    key, token = await world.key(await world.organization())
    asking = asyncio.create_task(world.authenticator.caller(token))
    await asyncio.sleep(0)
    world.authenticator.forget(key.id)
    await asking
    assert world.authenticator.remembered(token) is None


async def test_memory_has_a_bound(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployerp.api.access.authentication._MOST_REMEMBERED", 3)
    organization = await world.organization()
    tokens = [(await world.key(organization))[1] for _ in range(5)]
    for token in tokens:
        await world.authenticator.caller(token)
    known = [world.authenticator.remembered(token) is not None for token in tokens]
    assert known == [False, False, True, True, True]
    world.clock.now += REMEMBERED_SECONDS
    await world.authenticator.caller(tokens[0])
    assert len(world.authenticator._remembered) == 1


# Users whose address is not verified yet.


async def stored(world: World) -> dict[UUID, User]:
    async with world.sessions() as session:
        return {user.id: user for user in await session.scalars(select(User))}


@pytest.mark.fault("18")
async def test_an_issuer_of_all_organizations_verifies_an_address_and_ends_what_others_know(
    world: World,
) -> None:
    acme = await world.organization()
    user = await world.user(acme, verified=False, password_hash="known to the admin who has made it")
    async with world.sessions() as session, session.begin():
        await set_password_tokens.issue(session, user.id, acme.id)
        refresh_tokens.issue(session, user.id, acme.id, timedelta(days=1))
    assert (await world.authenticator.caller(external())).actor_id == user.id
    kept = (await stored(world))[user.id]
    assert kept.email_verified_at is not None
    assert (kept.home_organization_id, kept.password_hash) == (None, None)
    async with world.sessions() as session:
        assert (await session.scalars(select(SetPasswordToken))).all() == []
        assert [each.revoked_at is None for each in await session.scalars(select(RefreshToken))] == [False]
    assert [entry.action for entry in await entries(world)] == ["link_identity"]


@pytest.mark.fault("18")
async def test_an_issuer_of_some_organizations_does_not_decide_whose_an_address_is(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    here = await world.user(acme, verified=False)
    elsewhere = await world.user(beta, verified=False)
    world.trust(organizations=["acme"])
    assert (await world.authenticator.caller(external())).actor_id == here.id
    await world.refuses(external(organization="beta"))
    assert [user.email_verified_at for user in (await stored(world)).values()] == [None, None]
    assert [user_id for user_id, *_ in await identities(world)] == [here.id]
    assert elsewhere.id not in {user_id for user_id, *_ in await identities(world)}


@pytest.mark.fault("18")
async def test_a_user_that_another_organization_has_made_does_not_keep_the_owner_out(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    ada = await world.user(acme)
    trap = await world.user(beta, verified=False, password_hash="known to the admin who has made it")
    caller = await world.authenticator.caller(external())
    assert (caller.actor_id, caller.organization_id) == (ada.id, acme.id)
    # Where she names the other organization she is its member, and nobody else is any more.
    caller = await world.authenticator.caller(external(organization="beta"))
    assert (caller.actor_id, caller.organization_id) == (ada.id, beta.id)
    assert set(await stored(world)) == {ada.id}
    assert trap.id not in await stored(world)
    assert [entry.action for entry in await entries(world)] == ["link_identity", "verify_address"]
    await world.refuses(external(organization="gamma"))


@pytest.mark.fault("18")
async def test_a_subject_with_another_address_does_not_come_by_its_user(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    await world.user(acme)
    await world.authenticator.caller(external())
    grace = await world.user(beta, email="grace@example.com", verified=False)
    await world.refuses(external(email="grace@example.com", organization="beta"))
    kept = (await stored(world))[grace.id]
    assert (kept.email_verified_at, kept.home_organization_id) == (None, beta.id)


@pytest.mark.fault("18")
async def test_an_address_is_verified_once_also_by_many_tokens_at_once(world: World) -> None:
    acme, beta = await world.organization("acme"), await world.organization("beta")
    for organization in (acme, beta):
        await world.user(organization, verified=False)
    tokens = [
        external(organization=slug, jti=str(number)) for number, slug in enumerate(("acme", "beta") * 3)
    ]
    answers = await asyncio.gather(
        *(world.authenticator.caller(token) for token in tokens), return_exceptions=True
    )
    assert all(isinstance(answer, Caller | Unauthorized) for answer in answers), answers
    # In the end it is one user, who is in both.
    callers = [
        await world.authenticator.caller(external(organization=slug, jti="again"))
        for slug in ("acme", "beta")
    ]
    assert len({caller.actor_id for caller in callers}) == 1
    assert len(await stored(world)) == len(await identities(world)) == 1
