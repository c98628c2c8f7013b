"""The migration to accounts with verified addresses keeps the users that are there."""

from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from deployerp.migrations import configuration
from tests.migrations.test_migrations import empty_url, looked_at

__all__ = ["empty_url"]
pytestmark = pytest.mark.fault("18")

ACME, BETA = uuid4(), uuid4()
# By name: their organizations, and whether `deployerp bootstrap` has made them.
USERS = {"boot": ([ACME], True), "made": ([ACME], False), "both": ([ACME, BETA], False), "none": ([], False)}
IDS = {name: uuid4() for name in USERS}
_OF_USER = ("members", "identities", "refresh_tokens")


def _put(connection: Connection, table: str, **values: Any) -> None:
    values = {"id": uuid4(), **values}
    if table not in ("audit_log", "audit_heads"):
        values |= {"updated_at": "2026-01-01 00:00:00+00"}
    values |= {"created_at": "2026-01-01 00:00:00+00"}
    if connection.dialect.name == "sqlite":
        values = {name: getattr(value, "hex", value) for name, value in values.items()}
    else:
        values = {name: str(value) if hasattr(value, "hex") else value for name, value in values.items()}
    given = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in values.values())
    connection.execute(text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({given})"))


def _fill(connection: Connection) -> None:
    for organization_id, slug in ((ACME, "acme"), (BETA, "beta")):
        _put(connection, "organizations", id=organization_id, name=slug, slug=slug, event_sequence=0)
    for number, (name, (organizations, by_operator)) in enumerate(USERS.items()):
        user_id = IDS[name]
        _put(connection, "users", id=user_id, email=f"{name}@example.com", name=name)
        for organization in organizations:
            _put(connection, "members", user_id=user_id, organization_id=organization, role="owner")
        _put(connection, "identities", user_id=user_id, issuer="https://issuer.example", subject=name)
        _put(
            connection,
            "refresh_tokens",
            family_id=uuid4(),
            user_id=user_id,
            organization_id=ACME,
            token_digest=name,
            expires_at="2030-01-01 00:00:00+00",
        )
        if organizations:
            _put(
                connection,
                "audit_log",
                organization_id=ACME,
                sequence=number + 1,
                actor_type="system" if by_operator else "user",
                action="create_user",
                resource_type="user",
                resource_id=user_id,
                request_id="r",
                previous_hash="0",
                hash="0",
            )
    connection.commit()


def _counts(connection: Connection) -> list[int]:
    return [
        connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        for table in ("users", *_OF_USER)
    ]


def _verified(connection: Connection) -> dict[str, tuple[bool, bool]]:
    query = (
        "SELECT name, email_verified_at IS NOT NULL AS verified, home_organization_id IS NOT NULL AS home"
        " FROM users"
    )
    return {row.name: (bool(row.verified), bool(row.home)) for row in connection.execute(text(query))}


def test_users_that_are_there_stay_and_only_some_are_verified(empty_url: str) -> None:
    config = configuration(empty_url)
    command.upgrade(config, "0010")
    looked_at(empty_url, _fill)
    counted = looked_at(empty_url, _counts)
    assert counted == [4, 4, 4, 4]
    command.upgrade(config, "0011")
    assert looked_at(empty_url, _counts) == counted
    assert looked_at(empty_url, _verified) == {
        "boot": (True, False),
        "made": (False, True),
        "both": (True, False),
        "none": (True, False),
    }
    command.downgrade(config, "0010")
    assert looked_at(empty_url, _counts) == counted
    command.upgrade(config, "0011")
    assert looked_at(empty_url, _counts) == counted


def test_the_database_holds_addresses_apart(empty_url: str) -> None:
    command.upgrade(configuration(empty_url), "head")

    def put(connection: Connection, **values: Any) -> None:
        _put(connection, "users", email="ada@example.com", name="Ada", **values)

    def fill(connection: Connection) -> None:
        for organization_id, slug in ((ACME, "acme"), (BETA, "beta")):
            _put(connection, "organizations", id=organization_id, name=slug, slug=slug, event_sequence=0)
        verified = {"email_verified_at": "2026-01-01 00:00:00+00"}
        put(connection, **verified)
        put(connection, home_organization_id=ACME)
        put(connection, home_organization_id=BETA)
        connection.commit()
        for values in (
            verified,
            {"home_organization_id": ACME},
            {},
            verified | {"home_organization_id": ACME},
        ):
            with pytest.raises(IntegrityError):
                put(connection, **values)
            connection.rollback()

    looked_at(empty_url, fill)
