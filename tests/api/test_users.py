"""Users of an organization through the API."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from deployerp.core.settings import Settings
from deployerp.database.base import utc_now
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.permissions import ROLES, Role
from deployerp.domain.refresh_tokens import RefreshToken
from deployerp.domain.users import Identity, Member, User
from tests.api.people import PASSWORD, Person, add_user, choose_password, person, sign_in
from tests.conftest import Client, new_client

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ADA = {"email": "ada@example.com", "name": "Ada Lovelace", "role": "developer"}


@pytest.fixture
async def owner(client: Client, sessions: SessionFactory) -> Person:
    return await person(client, sessions, "owner")


async def rows(sessions: SessionFactory, model: type) -> list:
    async with sessions() as session:
        return list((await session.scalars(select(model))).all())


async def disable(sessions: SessionFactory, id: UUID) -> None:
    async with sessions() as session, session.begin():
        await session.execute(update(User).where(col(User.id) == id).values(disabled_at=utc_now()))


async def test_a_user_is_made_listed_read_and_signs_in(client: Client, sessions: SessionFactory) -> None:
    answer = await client.request("POST", "/v1/users", ADA | {"email": "Ada@Example.com"})
    assert answer.status_code == 201
    made = answer.json()["data"]
    token = made.pop("setPasswordToken")
    assert made.keys() == {"id", "email", "emailVerifiedAt", "name", "role", "createdAt"}
    assert made["emailVerifiedAt"] is None
    assert (made["email"], made["name"], made["role"]) == ("ada@example.com", "Ada Lovelace", "developer")
    assert await client.data("GET", "/v1/users") == [made]
    read = await client.request("GET", f"/v1/users/{made['id']}")
    assert read.json()["data"] == made
    assert read.headers["ETag"] == answer.headers["ETag"]
    assert (await choose_password(client.http, token)).status_code == 200
    ada = await sign_in(client.http, "ada@example.com", client.organization_id)
    assert (ada.organization_id, str(ada.user_id)) == (client.organization_id, made["id"])
    (user,) = await rows(sessions, User)
    assert user.password_hash.startswith("$argon2id$")
    for path in ("/v1/users", "/v1/audit-log", f"/v1/users/{made['id']}"):
        told = (await client.request("GET", path)).text
        assert PASSWORD not in told
        assert token not in told
        assert "argon2" not in told


async def test_lists_filter_search_and_sort(client: Client) -> None:
    for number, role in enumerate(("viewer", "admin", "viewer")):
        body = {"email": f"u{number}@example.com", "name": f"N{2 - number}", "role": role}
        await client.data("POST", "/v1/users", body, 201)

    async def names(query: str) -> list[str]:
        return [each["name"] for each in await client.data("GET", f"/v1/users?{query}")]

    assert await names("sort=name&order=asc") == ["N0", "N1", "N2"]
    assert await names("sort=email&order=asc") == ["N2", "N1", "N0"]
    assert await names("role=viewer&order=asc") == ["N2", "N0"]
    assert await names("email=U1@example.com") == ["N1"]
    assert await names("q=u2@") == ["N0"]
    page = await client.call("GET", "/v1/users?per_page=2&sort=name&order=asc")
    assert page["meta"]["total"] == 3
    rest = await client.call("GET", f"/v1/users?per_page=2&cursor={page['meta']['next_cursor']}")
    assert [each["name"] for each in page["data"] + rest["data"]] == ["N0", "N1", "N2"]


async def test_a_user_without_a_password_cannot_sign_in_with_one(client: Client) -> None:
    await client.data("POST", "/v1/users", ADA, 201)
    body = {"email": ADA["email"], "password": PASSWORD, "organization": str(client.organization_id)}
    answer = await client.http.post("/v1/auth/token", json=body)
    assert answer.status_code == 401


@one_database
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"email": "ada"}, "email"),
        ({"email": "ada@localhost"}, "email"),
        ({"email": "ada@example.com\n"}, "email"),
        ({"email": "Ada <ada@example.com>"}, "email"),
        ({"email": "adа@example.com"}, "email"),  # noqa: RUF001  (a Cyrillic letter)
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"name": ""}, "name"),
        ({"name": "Ada\u202e"}, "name"),
        ({"role": "root"}, "role"),
        ({"role": None}, "role"),
        ({"password": PASSWORD}, "password"),
        ({"id": "1"}, "id"),
    ],
    ids=str,
)
async def test_users_that_break_a_rule_are_not_made(client: Client, changes: dict, field: str) -> None:
    error = await client.error("POST", "/v1/users", ADA | changes, code="validation_error")
    assert [each["field"] for each in error["details"]["fields"]] == [field]
    assert await client.data("GET", "/v1/users") == []


async def test_who_is_a_member_already_is_not_added_twice(client: Client, sessions: SessionFactory) -> None:
    await client.data("POST", "/v1/users", ADA, 201)
    for body in (ADA, ADA | {"email": "ADA@example.com", "role": "viewer"}):
        error = await client.error("POST", "/v1/users", body, code="conflict")
        assert error["message"] == "ada@example.com is a member already."
    assert len(await rows(sessions, Member)) == 1


async def test_a_disabled_member_is_told_to_be_one(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    made = await client.data("POST", "/v1/users", ADA, 201)
    await disable(sessions, UUID(made["id"]))
    error = await client.error("POST", "/v1/users", ADA, code="conflict")
    assert error["message"].startswith("ada@example.com is a member already, and disabled")
    # To others it is what it was.
    other = await new_client(client.http, settings)
    assert (await other.data("POST", "/v1/users", ADA, 201))["id"] != made["id"]
    assert len(await rows(sessions, Member)) == 2


async def test_many_at_once_make_one_user(client: Client, sessions: SessionFactory) -> None:
    answers = await asyncio.gather(*(client.request("POST", "/v1/users", ADA) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert len(await rows(sessions, User)) == len(await rows(sessions, Member)) == 1


# Users of other organizations.


async def test_who_manages_users_in_both_organizations_adds_them_to_the_other(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    other = await new_client(client.http, settings)
    ada = await add_user(sessions, "ada@example.com", {other.organization_id: "viewer"})
    both: dict[UUID, Role] = {client.organization_id: "admin", other.organization_id: "admin"}
    await add_user(sessions, "both@example.com", both)
    admin = await sign_in(client.http, "both@example.com", client.organization_id)
    body = {"email": "ada@example.com", "name": "Not her name", "role": "developer"}
    added = await admin.data("POST", "/v1/users", body, 201)
    assert added["setPasswordToken"] is None
    assert (added["id"], added["name"], added["role"]) == (str(ada.id), ada.name, "developer")
    # In the other organization she is what she was, and each sees its own.
    assert (await other.data("GET", f"/v1/users/{ada.id}"))["role"] == "viewer"
    assert (await client.data("GET", f"/v1/users/{ada.id}"))["role"] == "developer"
    error = await client.error("PATCH", f"/v1/users/{ada.id}", {"name": "x"}, code="conflict")
    assert "other organizations" in error["message"]
    await client.data("PATCH", f"/v1/users/{ada.id}", {"role": "viewer", "name": ada.name})
    await client.call("DELETE", f"/v1/users/{ada.id}", status=204)
    assert (await other.data("GET", f"/v1/users/{ada.id}"))["role"] == "viewer"
    assert (await sign_in(client.http, "ada@example.com")).organization_id == other.organization_id


async def test_one_role_lower_in_one_of_them_is_not_enough(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    other = await new_client(client.http, settings)
    ada = await add_user(sessions, "ada@example.com", {other.organization_id: "viewer"})
    both: dict[UUID, Role] = {client.organization_id: "owner", other.organization_id: "developer"}
    await add_user(sessions, "both@example.com", both)
    user = await sign_in(client.http, "both@example.com", client.organization_id)
    body = {"email": "ada@example.com", "name": "Ada", "role": "viewer"}
    made = await user.data("POST", "/v1/users", body, 201)
    # Somebody else, who happens to have the same address.
    assert made["id"] != str(ada.id)
    assert (made["emailVerifiedAt"], made["setPasswordToken"][:13]) == (None, "dep_password_")


async def test_users_of_another_organization_are_not_there(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    stranger = await new_client(client.http, settings)
    ada = await add_user(sessions, "ada@example.com", {client.organization_id: "viewer"})
    for path in (f"/v1/users/{ada.id}", f"/v1/users/{uuid4()}"):
        await stranger.error("GET", path, code="not_found")
        await stranger.error("PATCH", path, {"role": "admin"}, code="not_found")
        await stranger.error("DELETE", path, code="not_found")
    assert await stranger.data("GET", "/v1/users") == []
    assert [each["role"] for each in await client.data("GET", "/v1/users")] == ["viewer"]


# Roles.


async def test_a_new_role_counts_at_once(owner: Person, client: Client, sessions: SessionFactory) -> None:
    viewer = await person(client, sessions, "viewer")
    await viewer.error("GET", "/v1/users", code="forbidden")
    changed = await owner.data("PATCH", f"/v1/users/{viewer.user_id}", {"role": "admin"})
    assert changed["role"] == "admin"
    assert len(await viewer.data("GET", "/v1/users")) == 2


async def test_a_name_is_changed_and_what_is_left_out_stays(client: Client) -> None:
    made = await client.data("POST", "/v1/users", ADA, 201)
    del made["setPasswordToken"]
    path = f"/v1/users/{made['id']}"
    assert await client.data("PATCH", path, {"name": "Ada King"}) == made | {"name": "Ada King"}
    assert await client.data("PATCH", path, {"role": "viewer", "name": None}) == made | {
        "name": "Ada King",
        "role": "viewer",
    }
    assert await client.data("PATCH", path, {}) == made | {"name": "Ada King", "role": "viewer"}
    for body in ({"email": "x@example.com"}, {"role": "root"}, {"name": ""}):
        await client.error("PATCH", path, body, code="validation_error")


@pytest.mark.parametrize("role", ROLES)
async def test_nobody_gives_a_role_that_may_more_than_they(
    owner: Person, client: Client, sessions: SessionFactory, role: Role
) -> None:
    admin = await person(client, sessions, "admin")
    target = await add_user(sessions, "ada@example.com", {client.organization_id: "developer"})
    path = f"/v1/users/{target.id}"
    # A key of level admin may do everything, a member with the role admin may not touch the money.
    by_admin = role not in ("owner", "billing")
    for caller, allowed in ((admin, by_admin), (client, True)):
        made = await caller.request(
            "POST", "/v1/users", ADA | {"email": f"{uuid4().hex}@example.com", "role": role}
        )
        assert made.status_code == (201 if allowed else 403)
        given = await caller.request("PATCH", path, {"role": role})
        assert given.status_code == (200 if allowed else 403)
    assert (await owner.data("PATCH", path, {"role": role}))["role"] == role
    # And nobody takes one.
    ended = await admin.request("DELETE", path)
    assert ended.status_code == (204 if by_admin else 403)
    taken = await admin.request("PATCH", path, {"role": "viewer"})
    assert taken.status_code == (404 if by_admin else 403)


async def test_the_last_owner_stays(owner: Person, client: Client, sessions: SessionFactory) -> None:
    path = f"/v1/users/{owner.user_id}"
    error = await owner.error("PATCH", path, {"role": "admin"}, code="conflict")
    assert "make somebody else an owner first" in error["message"]
    await owner.error("DELETE", path, code="conflict")
    second = await person(client, sessions, "owner", "second@example.com")
    assert (await owner.data("PATCH", path, {"role": "admin"}))["role"] == "admin"
    await second.error("DELETE", f"/v1/users/{second.user_id}", code="conflict")


async def test_an_owner_who_cannot_sign_in_does_not_let_the_last_one_leave(
    owner: Person, client: Client, sessions: SessionFactory
) -> None:
    second = await person(client, sessions, "owner", "second@example.com")
    await disable(sessions, second.user_id)
    path = f"/v1/users/{owner.user_id}"
    for method, body in (("PATCH", {"role": "admin"}), ("DELETE", None)):
        error = await owner.error(method, path, body, code="conflict")
        assert "make somebody else an owner first" in error["message"]
    # The one who cannot sign in is not needed.
    await owner.data("PATCH", f"/v1/users/{second.user_id}", {"role": "viewer"})
    await owner.call("DELETE", f"/v1/users/{second.user_id}", status=204)


async def test_two_owners_who_demote_each_other_at_once_leave_one(
    owner: Person, client: Client, sessions: SessionFactory
) -> None:
    second = await person(client, sessions, "owner", "second@example.com")
    for _ in range(5):
        await asyncio.gather(
            owner.request("PATCH", f"/v1/users/{second.user_id}", {"role": "viewer"}),
            second.request("PATCH", f"/v1/users/{owner.user_id}", {"role": "viewer"}),
        )
        left = [member for member in await rows(sessions, Member) if member.role == "owner"]
        assert len(left) == 1
        winner, loser = (owner, second) if left[0].user_id == owner.user_id else (second, owner)
        await winner.data("PATCH", f"/v1/users/{loser.user_id}", {"role": "owner"})


# Leaving.


async def test_who_leaves_is_out_at_once_and_forgotten(
    owner: Person, client: Client, sessions: SessionFactory
) -> None:
    ada = await person(client, sessions, "viewer", "ada@example.com")
    async with sessions() as session, session.begin():
        session.add(Identity(user_id=ada.user_id, issuer="https://issuer.example/", subject="1"))
    assert await ada.data("GET", "/v1/servers") == []
    path = f"/v1/users/{ada.user_id}"
    await owner.call("DELETE", path, status=204)
    await ada.error("GET", "/v1/servers", code="unauthorized")
    answer = await client.http.post("/v1/auth/refresh", json={"refreshToken": ada.refresh_token})
    assert answer.status_code == 401
    await owner.error("GET", path, code="not_found")
    await owner.error("DELETE", path, code="not_found")
    assert [user.email for user in await rows(sessions, User)] == ["owner@example.com"]
    assert await rows(sessions, Identity) == []
    # The same address is somebody new, with nothing of what was.
    body = {"email": "ada@example.com", "name": "Ada", "role": "viewer"}
    assert (await owner.data("POST", "/v1/users", body, 201))["id"] != str(ada.user_id)
    answer = await client.http.post("/v1/auth/token", json={"email": body["email"], "password": PASSWORD})
    assert answer.status_code == 401


async def test_leaving_one_organization_keeps_the_sign_ins_of_another(
    client: Client, settings: Settings, sessions: SessionFactory
) -> None:
    other = await new_client(client.http, settings)
    both: dict[UUID, Role] = {client.organization_id: "viewer", other.organization_id: "viewer"}
    ada = await add_user(sessions, "ada@example.com", both)
    here = await sign_in(client.http, "ada@example.com", client.organization_id)
    there = await sign_in(client.http, "ada@example.com", other.organization_id)
    await client.call("DELETE", f"/v1/users/{ada.id}", status=204)
    await here.error("GET", "/v1/servers", code="unauthorized")
    assert await there.data("GET", "/v1/servers") == []
    assert [token.organization_id for token in await rows(sessions, RefreshToken)] == [other.organization_id]
    answer = await client.http.post("/v1/auth/refresh", json={"refreshToken": there.refresh_token})
    assert answer.status_code == 200


async def test_if_match_holds_back_who_knows_an_older_user(client: Client) -> None:
    made = await client.request("POST", "/v1/users", ADA)
    path, old = f"/v1/users/{made.json()['data']['id']}", {"If-Match": made.headers["ETag"]}
    changed = await client.request("PATCH", path, {"role": "viewer"}, old)
    assert changed.status_code == 200
    refused = await client.request("PATCH", path, {"role": "admin"}, old)
    assert refused.status_code == 412
    assert refused.json()["error"]["details"] == {"etag": changed.headers["ETag"]}
    assert (await client.request("DELETE", path, headers=old)).status_code == 412
    assert (await client.request("DELETE", path, headers={"If-Match": "*"})).status_code == 204


async def test_the_audit_log_tells_of_users_without_their_passwords(
    client: Client, sessions: SessionFactory
) -> None:
    made = await client.data("POST", "/v1/users", ADA, 201)
    path = f"/v1/users/{made['id']}"
    await client.data("PATCH", path, {"role": "viewer"})
    await client.data("PATCH", path, {"name": "Ada King"})
    await client.call("DELETE", path, status=204)
    async with sessions() as session:
        entries = (await session.scalars(select(AuditEntry).order_by(col(AuditEntry.sequence)))).all()
    assert [entry.action for entry in entries] == ["create_user", "update_user", "update_user", "remove_user"]
    assert {(entry.resource_type, str(entry.resource_id)) for entry in entries} == {("user", made["id"])}
    told = [(entry.before or {}, entry.after or {}) for entry in entries]
    assert (told[0][1]["role"], told[0][1]["email"]) == ("developer", "ada@example.com")
    assert (told[1][0]["role"], told[1][1]["role"]) == ("developer", "viewer")
    assert (told[2][0]["name"], told[2][1]["name"]) == ("Ada Lovelace", "Ada King")
    assert (told[3][0]["role"], told[3][1]) == ("viewer", {})
    assert "passwordHash" not in str(told)
    assert made["setPasswordToken"] not in str(told)
