"""People for tests of the API: made in the database, signed in through the API."""

from dataclasses import dataclass
from uuid import UUID

import httpx
from argon2 import PasswordHasher

from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.permissions import Role
from deployerp.domain.users import Member, User
from tests.conftest import Client

PASSWORD = "correct horse battery"
# Today's parameters take a tenth of a second, and the first sign-in of each user makes the hash anew.
_QUICK = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)


@dataclass
class Person(Client):
    """The API as a user sees it who has signed in."""

    user_id: UUID
    refresh_token: str


async def add_user(
    sessions: SessionFactory,
    email: str,
    roles: dict[UUID, Role],
    *,
    password_hash: str | None = _QUICK,
    verified: bool = True,
) -> User:
    """A user with a role in each organization, and the password of all tests.

    One whose address is not verified is in one organization.
    """
    user = User(
        email=email,
        email_verified_at=utc_now() if verified else None,
        home_organization_id=None if verified else next(iter(roles)),
        name=email.partition("@")[0],
        password_hash=password_hash,
    )
    async with sessions() as session, session.begin():
        session.add(user)
        await session.flush()
        for organization_id, role in roles.items():
            session.add(Member(organization_id=organization_id, user_id=user.id, role=role))
    return user


async def sign_in(
    http: httpx.AsyncClient, email: str, organization: object = None, *, password: str = PASSWORD
) -> Person:
    body = {"email": email, "password": password}
    if organization is not None:
        body["organization"] = str(organization)
    answer = await http.post("/v1/auth/token", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    me = await http.get("/v1/me", headers={"Authorization": f"Bearer {data['accessToken']}"})
    return Person(
        http,
        UUID(data["organization"]["id"]),
        data["accessToken"],
        UUID(me.json()["data"]["id"]),
        data["refreshToken"],
    )


async def choose_password(http: httpx.AsyncClient, token: str, password: str = PASSWORD) -> httpx.Response:
    return await http.post("/v1/auth/set-password", json={"token": token, "password": password})


async def person(client: Client, sessions: SessionFactory, role: Role, email: str | None = None) -> Person:
    """A new user of a client's organization, signed in."""
    email = email or f"{role}@example.com"
    await add_user(sessions, email, {client.organization_id: role})
    return await sign_in(client.http, email)
