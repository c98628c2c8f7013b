"""The audit log's chain: every tampering shows, and writers at once leave no gap."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Row, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deployerp.database.base import metadata, new_id
from deployerp.database.sessions import (
    SessionFactory,
    open_database,
    session_factory,
    tenant_transaction,
)
from deployerp.database.tenancy import Tenant
from deployerp.domain.audit import verification
from deployerp.domain.audit.log import GENESIS, AuditRecord, append, chained, digest_of
from deployerp.domain.audit.verification import Broken, Verified, verify
from deployerp.domain.organizations import Organization

LOG = metadata.tables["audit_log"]


@pytest.fixture
async def organization_id(sessions: SessionFactory) -> UUID:
    return await new_organization(sessions)


async def new_organization(sessions: SessionFactory) -> UUID:
    organization = Organization(name="acme", slug=f"acme-{uuid4().hex}")
    async with sessions() as session, session.begin():
        session.add(organization)
    return organization.id


def deed(**more: Any) -> AuditRecord:
    return AuditRecord(
        **{
            "actor_type": "api_key",
            "actor_id": new_id(),
            "action": "update_instance",
            "resource_type": "instance",
            "resource_id": new_id(),
            "operation_id": new_id(),
            "address": "192.0.2.7",
            "request_id": "req-1",
            "before": {"name": "one", "port": 22, "tags": ["a", None], "deletedAt": None},
            "after": {"name": "zwei €", "port": 23, "tags": [{"b": 0.5}], "deletedAt": None},
        }
        | more
    )


async def add(sessions: SessionFactory, organization_id: UUID, *deeds: AuditRecord) -> list[int]:
    sequences = []
    for each in deeds:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            sequences.append(await append(session, organization_id, each))
    return sequences


async def entries(sessions: SessionFactory, organization_id: UUID) -> Sequence[Row[Any]]:
    async with sessions() as session:
        query = select(LOG).where(LOG.c.organization_id == organization_id).order_by(LOG.c.sequence)
        return (await session.execute(query)).all()


@asynccontextmanager
async def disarmed(database: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """The database as its master has it, whom the triggers do not stop."""
    async with database.begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            yield connection
            return
        query = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        triggers = (await connection.execute(query)).all()
        for trigger in triggers:
            await connection.execute(text(f"DROP TRIGGER {trigger.name}"))
        yield connection
        for trigger in triggers:
            await connection.execute(text(trigger.sql))


async def tamper(database: AsyncEngine, *statements: str, **values: Any) -> None:
    async with disarmed(database) as connection:
        for statement in statements:
            await connection.execute(text(statement), values)


async def test_an_entry_tells_what_was_done_and_follows_the_one_before(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    given = [deed(), deed(before=None, address=None, actor_type="system", actor_id=None)]
    assert await add(sessions, organization_id, *given) == [1, 2]
    first, second = await entries(sessions, organization_id)
    for row, told in zip((first, second), given, strict=True):
        assert {name: getattr(row, name) for name in AuditRecord.__slots__} == {
            name: getattr(told, name) for name in AuditRecord.__slots__
        }
    assert (first.previous_hash, second.previous_hash) == (GENESIS, first.hash)
    assert second.hash == chained(first.hash, 2, digest_of(second._asdict()))
    assert await verify(sessions, organization_id) == Verified(2, second.hash)


async def test_nothing_is_null_and_not_the_null_of_json(
    sessions: SessionFactory, organization_id: UUID, database: AsyncEngine
) -> None:
    await add(sessions, organization_id, deed(before=None, after=None))
    async with database.connect() as connection:
        query = text("SELECT count(*) FROM audit_log WHERE before IS NULL AND after IS NULL")
        assert (await connection.execute(query)).scalar_one() == 1


async def test_an_empty_log_is_whole(sessions: SessionFactory, organization_id: UUID) -> None:
    assert await verify(sessions, organization_id) == Verified(0, GENESIS)


async def test_numbers_that_the_database_writes_in_its_own_way_keep_the_chain_whole(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    numbers = [0, -0.0, 0.1, 1.0, 1e16, 1.5e300, 1e-300, -1e22, 2**53 + 1, 10**30, True]
    odd = {"numbers": numbers, "deep": {"list": [[1e20]]}, "text": '\u2028\\ " \U0001f418'}
    await add(sessions, organization_id, deed(after=odd))
    (entry,) = await entries(sessions, organization_id)
    assert entry.after == odd
    assert isinstance(await verify(sessions, organization_id), Verified)


async def test_a_transaction_that_fails_leaves_no_entry_and_no_gap(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    await add(sessions, organization_id, deed())

    async def fail() -> None:
        async with tenant_transaction(sessions, Tenant(organization_id)) as session:
            await append(session, organization_id, deed())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await add(sessions, organization_id, deed()) == [2]
    assert isinstance(await verify(sessions, organization_id), Verified)


async def test_one_transaction_may_write_several_entries(
    sessions: SessionFactory, organization_id: UUID
) -> None:
    async with tenant_transaction(sessions, Tenant(organization_id)) as session:
        assert [await append(session, organization_id, deed()) for _ in range(3)] == [1, 2, 3]
    assert isinstance(await verify(sessions, organization_id), Verified)


async def test_writers_at_once_leave_no_gap(sessions: SessionFactory, organization_id: UUID) -> None:
    other = await new_organization(sessions)

    async def write(of: UUID) -> None:
        await add(sessions, of, deed(), deed())

    # 20 of one organization, whose very first entry they race for, and some of another beside them.
    await asyncio.gather(*(write(organization_id) for _ in range(20)), *(write(other) for _ in range(5)))
    for of, count in ((organization_id, 40), (other, 10)):
        written = await entries(sessions, of)
        assert [entry.sequence for entry in written] == list(range(1, count + 1))
        assert await verify(sessions, of) == Verified(count, written[-1].hash)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET action = 'nothing'",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET before = NULL",
    ],
)
async def test_entries_cannot_be_changed_or_deleted(
    sessions: SessionFactory, organization_id: UUID, statement: str
) -> None:
    await add(sessions, organization_id, deed())
    async with sessions() as session:
        with pytest.raises(DBAPIError, match="append-only"):
            await session.execute(text(statement))
    assert len(await entries(sessions, organization_id)) == 1


def copied(*more: str, **instead: str) -> str:
    """The first entry once more, with other values in some columns."""
    names = [*more, *LOG.columns.keys()]
    values = [instead.get(name, name) for name in names]
    return f"INTO audit_log ({', '.join(names)}) SELECT {', '.join(values)} FROM audit_log WHERE sequence = 1"


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(copied(action="'x'"), id="the same"),
        pytest.param(copied(sequence="9"), id="its id"),
        pytest.param(copied(id="'x'"), id="its place"),
        pytest.param(copied("rowid", id="'x'", sequence="9"), id="its row"),
        pytest.param(
            "INTO audit_heads (organization_id, sequence, previous_hash, hash)"
            " SELECT organization_id, 1, 'x', 'x' FROM audit_heads",
            id="the head",
        ),
        pytest.param(
            "INTO audit_heads (rowid, organization_id, sequence, previous_hash, hash)"
            " SELECT audit_heads.rowid, id, 1, 'x', 'x' FROM audit_heads, organizations"
            " WHERE id <> organization_id",
            id="the head's row",
        ),
    ],
)
async def test_sqlite_replaces_nothing(sqlite_url: str, statement: str) -> None:
    # Only SQLite knows such a statement, and no trigger on DELETE sees what it deletes.
    engine = open_database(sqlite_url)
    sessions = session_factory(engine)
    organization_id = await new_organization(sessions)
    await new_organization(sessions)
    await add(sessions, organization_id, deed(), deed())
    known = await entries(sessions, organization_id)
    async with sessions() as session, session.begin():
        for way in ("INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE"):
            with pytest.raises(DBAPIError, match="append-only"):
                await session.execute(text(f"{way} {statement}"))
    assert await entries(sessions, organization_id) == known
    assert await verify(sessions, organization_id) == Verified(2, known[-1].hash)
    assert await add(sessions, organization_id, deed()) == [3]
    await engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_heads",
        "UPDATE audit_heads SET sequence = sequence",
        "UPDATE audit_heads SET hash = previous_hash",
        "UPDATE audit_heads SET sequence = sequence - 1",
        "UPDATE audit_heads SET sequence = sequence + 2",
        "UPDATE audit_heads SET sequence = sequence + 1, organization_id = '{}'",
    ],
)
async def test_a_head_moves_on_by_one_and_no_other_way(
    sessions: SessionFactory, organization_id: UUID, statement: str
) -> None:
    await add(sessions, organization_id, deed(), deed())
    other = (await new_organization(sessions)).hex
    async with sessions() as session:
        with pytest.raises(DBAPIError, match="append-only"):
            await session.execute(text(statement.format(other)))
    assert await add(sessions, organization_id, deed()) == [3]
    assert isinstance(await verify(sessions, organization_id), Verified)


async def test_a_head_is_not_moved_onto_another(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    sessions = session_factory(engine)
    ids = [await new_organization(sessions), await new_organization(sessions)]
    for each in ids:
        await add(sessions, each, deed())
    move = (
        "UPDATE OR REPLACE audit_heads SET sequence = sequence + 1,"
        " rowid = (SELECT max(rowid) FROM audit_heads)"
        " WHERE rowid = (SELECT min(rowid) FROM audit_heads)"
    )
    async with sessions() as session:
        with pytest.raises(DBAPIError, match="append-only"):
            await session.execute(text(move))
    for each in ids:
        assert isinstance(await verify(sessions, each), Verified)
    await engine.dispose()


@pytest.mark.parametrize(
    "statement", ["TRUNCATE audit_log", "TRUNCATE audit_heads", "TRUNCATE organizations CASCADE"]
)
async def test_the_log_cannot_be_emptied(postgres_url: str, statement: str) -> None:
    # SQLite knows no such statement.
    engine = open_database(postgres_url)
    async with engine.connect() as connection:
        with pytest.raises(DBAPIError, match="append-only"):
            await connection.execute(text(statement))
    await engine.dispose()


# Another value of the same kind for every column that an entry tells.
FORGED: dict[str, Any] = {
    "id": lambda entry: new_id(),
    "created_at": lambda entry: entry.created_at + timedelta(microseconds=1),
    "sequence": lambda entry: 7,
    "actor_type": lambda entry: "user",
    "actor_id": lambda entry: new_id(),
    "action": lambda entry: "update_server",
    "resource_type": lambda entry: "server",
    "resource_id": lambda entry: None,
    "operation_id": lambda entry: new_id(),
    "address": lambda entry: "192.0.2.8",
    "request_id": lambda entry: "req-2",
    "before": lambda entry: entry.before | {"port": 24},
    "after": lambda entry: None,
    "previous_hash": lambda entry: GENESIS,
    "hash": lambda entry: "f" * 64,
}


def test_every_column_is_forged() -> None:
    # `organization_id` is forged by moving an entry, below.
    assert FORGED.keys() | {"organization_id"} == set(LOG.columns.keys())


@pytest.mark.parametrize("column", FORGED)
async def test_a_changed_entry_shows(
    database: AsyncEngine, sessions: SessionFactory, organization_id: UUID, column: str
) -> None:
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    (entry,) = [each for each in await entries(sessions, organization_id) if each.sequence == 3]
    change = LOG.update().where(LOG.c.id == entry.id).values({column: FORGED[column](entry)})
    async with disarmed(database) as connection:
        await connection.execute(change)
    found = await verify(sessions, organization_id)
    assert isinstance(found, Broken)
    assert found.sequence == 3


async def test_a_forger_who_hashes_anew_is_found_at_the_next_entry(
    database: AsyncEngine, sessions: SessionFactory, organization_id: UUID
) -> None:
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    entry = (await entries(sessions, organization_id))[2]._asdict()
    entry["action"] = "nothing"
    forged = chained(entry["previous_hash"], 3, digest_of(entry))
    await tamper(
        database, "UPDATE audit_log SET action = 'nothing', hash = :forged WHERE sequence = 3", forged=forged
    )
    found = await verify(sessions, organization_id)
    assert found == Broken(4, "it does not follow the entry before it")


HEAD_AT_4 = """
    UPDATE audit_heads SET sequence = 4,
    hash = (SELECT hash FROM audit_log WHERE sequence = 4),
    previous_hash = (SELECT hash FROM audit_log WHERE sequence = 3)
"""


@pytest.mark.parametrize(
    ("statements", "sequence"),
    [
        pytest.param(["DELETE FROM audit_log WHERE sequence = 1"], 1, id="the first is gone"),
        pytest.param(["DELETE FROM audit_log WHERE sequence = 3"], 3, id="one in the middle is gone"),
        pytest.param(["DELETE FROM audit_log WHERE sequence > 3"], 4, id="the tail is cut"),
        pytest.param(["DELETE FROM audit_log"], 1, id="all is gone"),
        pytest.param(["DELETE FROM audit_heads"], 1, id="the head is gone"),
        pytest.param(
            ["DELETE FROM audit_log WHERE sequence > 3", "UPDATE audit_heads SET sequence = 3"],
            3,
            id="the tail is cut and the head moved",
        ),
        pytest.param(["UPDATE audit_heads SET sequence = 6"], 6, id="the head is moved on"),
        pytest.param(["UPDATE audit_heads SET sequence = 2"], 2, id="the head is moved back"),
        pytest.param(["UPDATE audit_heads SET hash = previous_hash"], 5, id="the head's hash is changed"),
        pytest.param(
            ["UPDATE audit_heads SET previous_hash = hash"], 5, id="the head's other hash is changed"
        ),
        pytest.param(
            [
                "UPDATE audit_log SET sequence = 100 WHERE sequence = 2",
                "UPDATE audit_log SET sequence = 2 WHERE sequence = 3",
                "UPDATE audit_log SET sequence = 3 WHERE sequence = 100",
            ],
            2,
            id="two are swapped",
        ),
        pytest.param(
            [
                "UPDATE audit_log SET sequence = -1 WHERE sequence = 5",
                HEAD_AT_4,
            ],
            -1,
            id="one is put before the beginning",
        ),
        pytest.param(
            [
                HEAD_AT_4,
            ],
            5,
            id="the head names an earlier entry as the last",
        ),
    ],
)
async def test_a_changed_chain_shows(
    database: AsyncEngine,
    sessions: SessionFactory,
    organization_id: UUID,
    statements: list[str],
    sequence: int,
) -> None:
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    await tamper(database, *statements)
    found = await verify(sessions, organization_id)
    assert isinstance(found, Broken)
    assert found.sequence == sequence


async def test_an_entry_that_is_moved_to_another_organization_shows_in_both(
    database: AsyncEngine, sessions: SessionFactory, organization_id: UUID
) -> None:
    other = await new_organization(sessions)
    await add(sessions, organization_id, deed(), deed())
    move = LOG.update().where(LOG.c.sequence == 2).values(organization_id=other, sequence=1)
    async with disarmed(database) as connection:
        await connection.execute(move)
    assert await verify(sessions, organization_id) == Broken(2, "it is missing")
    assert isinstance(await verify(sessions, other), Broken)


async def test_an_organization_does_not_answer_for_another(
    database: AsyncEngine, sessions: SessionFactory, organization_id: UUID
) -> None:
    other = await new_organization(sessions)
    await add(sessions, other, deed())
    await tamper(database, "UPDATE audit_log SET action = 'nothing'")
    await add(sessions, organization_id, deed())
    assert isinstance(await verify(sessions, organization_id), Verified)


@pytest.mark.parametrize(
    ("column", "garbage"), [("after", "{"), ("created_at", "yesterday"), ("actor_id", "nobody"), ("id", 7)]
)
async def test_an_entry_that_cannot_be_read_shows(sqlite_url: str, column: str, garbage: object) -> None:
    # PostgreSQL keeps nothing in a column that does not belong there.
    engine = open_database(sqlite_url)
    sessions = session_factory(engine)
    organization_id = await new_organization(sessions)
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    await tamper(engine, f"UPDATE audit_log SET {column} = :garbage WHERE sequence = 3", garbage=garbage)
    assert await verify(sessions, organization_id) == Broken(3, "it cannot be read")
    await engine.dispose()


@pytest.mark.parametrize("size", [1, 2, 5])
async def test_a_long_log_is_read_in_parts(
    sessions: SessionFactory, organization_id: UUID, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(verification, "_BATCH", size)
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    (last,) = (await entries(sessions, organization_id))[-1:]
    assert await verify(sessions, organization_id) == Verified(5, last.hash)


async def test_a_log_that_is_written_to_meanwhile_is_whole(
    sessions: SessionFactory, organization_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_BATCH", 2)
    await add(sessions, organization_id, *(deed() for _ in range(5)))
    original = verification._batch

    async def beside_a_writer(*arguments: Any) -> Any:
        await add(sessions, organization_id, deed())
        return await original(*arguments)

    monkeypatch.setattr(verification, "_batch", beside_a_writer)
    found = await verify(sessions, organization_id)
    assert isinstance(found, Verified)
    assert found.entries == 5


async def test_the_formula_is_the_documented_one(sessions: SessionFactory, organization_id: UUID) -> None:
    await add(sessions, organization_id, deed())
    (entry,) = await entries(sessions, organization_id)
    told = entry._asdict()
    place = {name: told.pop(name) for name in ("sequence", "previous_hash", "hash")}
    told = {name: str(value) if isinstance(value, UUID) else value for name, value in told.items()}
    told["created_at"] = entry.created_at.strftime("%Y-%m-%dT%H:%M:%S.%f+00:00")
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    link = f"{place['previous_hash']}.{place['sequence']}.{digest}"
    assert place["hash"] == hashlib.sha256(link.encode()).hexdigest()
