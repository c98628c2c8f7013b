"""The audit log: one row per change, each sealed to the one before it by a hash."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal
from uuid import UUID

from pydantic.alias_generators import to_camel
from pydantic_core import to_jsonable_python
from sqlalchemy import JSON, Index, UniqueConstraint, bindparam, event, insert, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session
from sqlmodel import Field, SQLModel

from deployerp.database.base import UtcDateTime, metadata, new_id, utc_now
from deployerp.database.statements import Statement, run

ActorType = Literal["user", "api_key", "system"]
GENESIS = "0" * 64
_Values = dict[str, Any]
# Nothing is NULL here, not the `null` of JSON.
_Told = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


class AuditEntry(SQLModel, table=True):
    """Who did what to which resource, from where; never changed and never deleted."""

    __tablename__ = "audit_log"
    __table_args__ = (
        UniqueConstraint("organization_id", "sequence"),
        Index("ix_audit_log_listing", "organization_id", "created_at", "id"),
        Index("ix_audit_log_resource", "organization_id", "resource_id", "created_at"),
    )

    id: UUID = Field(default_factory=new_id, primary_key=True)
    created_at: datetime = Field(sa_type=UtcDateTime)
    organization_id: UUID = Field(foreign_key="organizations.id")
    sequence: int
    actor_type: str
    actor_id: UUID | None
    # The operation id of the API's document: `create_instance`.
    action: str
    resource_type: str
    resource_id: UUID | None
    operation_id: UUID | None
    address: str | None
    request_id: str
    before: dict[str, Any] | None = Field(sa_type=_Told, nullable=True)
    after: dict[str, Any] | None = Field(sa_type=_Told, nullable=True)
    previous_hash: str
    hash: str


class AuditHead(SQLModel, table=True):
    """The end of an organization's chain: writers queue on it, and a cut tail shows."""

    __tablename__ = "audit_heads"

    organization_id: UUID = Field(primary_key=True, foreign_key="organizations.id")
    sequence: int
    # The entry's too: with it here, one statement moves the head and writes the entry.
    previous_hash: str = Field(default=GENESIS, sa_column_kwargs={"server_default": GENESIS})
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What an entry tells, before it has its place in the chain; `before` and `after` are JSON."""

    actor_type: ActorType
    actor_id: UUID | None
    action: str
    resource_type: str
    resource_id: UUID | None = None
    operation_id: UUID | None = None
    address: str | None = None
    request_id: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


async def append(session: AsyncSession, organization_id: UUID, deed: AuditRecord) -> int:
    """Adds the next entry of an organization's chain and returns its sequence.

    It comes last in a transaction: other writers of the organization wait from here to its end.
    """
    content: _Values = {name: getattr(deed, name) for name in AuditRecord.__slots__}
    content |= {"id": new_id(), "created_at": utc_now(), "organization_id": organization_id}
    content |= {"before": _settled(deed.before), "after": _settled(deed.after)}
    at_once = session.get_bind().dialect.name == "postgresql"
    return await (_append_at_once if at_once else _append_in_steps)(session, content)


async def _append_at_once(session: AsyncSession, content: _Values) -> int:
    # One round trip, and the lock on the head begins as late as it can.
    (row,) = await run(session, _AT_ONCE, {**content, "digest": digest_of(content)})
    sequence: int = row["sequence"]
    return sequence


async def _append_in_steps(session: AsyncSession, content: _Values) -> int:
    # On SQLite a transaction is the only writer from its beginning: there is nothing to lock.
    organization_id = content["organization_id"]
    head = (await session.execute(_HEAD, {"of": organization_id})).one_or_none()
    sequence, previous_hash = (head.sequence + 1, head.hash) if head else (1, GENESIS)
    own_hash = chained(previous_hash, sequence, digest_of(content))
    place = {"sequence": sequence, "previous_hash": previous_hash, "hash": own_hash}
    await session.execute(_PUT_HEAD, {"organization_id": organization_id, **place})
    await session.execute(insert(_LOG), content | place)
    return sequence


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 over what an entry tells, without its place in the chain, as JSON with sorted keys."""
    told = {name: _plain(value) for name, value in content.items() if name not in _PLACE}
    return _sha256(json.dumps(told, sort_keys=True, separators=(",", ":")))


def chained(previous_hash: str, sequence: int, digest: str) -> str:
    """An entry's hash: SHA-256 over the hash before it, its sequence and its digest, with dots between."""
    return _sha256(f"{previous_hash}.{sequence}.{digest}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    return str(value) if isinstance(value, UUID) else value


def _settled(value: Any) -> Any:
    """JSON that comes back as it was: JSONB writes out 1e16, which is then an integer."""
    if isinstance(value, Mapping):
        return {name: _settled(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_settled(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


_PLACE = ("sequence", "previous_hash", "hash")
_LOG, _HEADS = metadata.tables["audit_log"], metadata.tables["audit_heads"]
_CONTENT = [column for column in _LOG.columns if column.name not in _PLACE]

_HEAD = select(_HEADS).where(_HEADS.c.organization_id == bindparam("of"))
_PUT = sqlite.insert(_HEADS)
_PUT_HEAD = _PUT.on_conflict_do_update(
    index_elements=["organization_id"], set_={name: _PUT.excluded[name] for name in _PLACE}
)

# `chained`, as PostgreSQL says it.
_CHAINED = "encode(sha256(convert_to({previous} || '.' || {sequence} || '.' || :digest, 'UTF8')), 'hex')"
_AT_ONCE = Statement(
    text(
        f"""
    WITH place AS (
        INSERT INTO audit_heads AS head (organization_id, sequence, previous_hash, hash)
        VALUES (:organization_id, 1, '{GENESIS}', {_CHAINED.format(previous=f"'{GENESIS}'", sequence="1")})
        ON CONFLICT (organization_id) DO UPDATE SET
            sequence = head.sequence + 1,
            previous_hash = head.hash,
            hash = {_CHAINED.format(previous="head.hash", sequence="head.sequence + 1")}
        RETURNING sequence, previous_hash, hash
    )
    INSERT INTO audit_log ({", ".join(column.name for column in _CONTENT)}, {", ".join(_PLACE)})
    SELECT {", ".join(f":{column.name}" for column in _CONTENT)}, {", ".join(_PLACE)} FROM place
    RETURNING sequence
    """  # noqa: S608  (all of it is ours)
    ).bindparams(*(bindparam(column.name, type_=column.type) for column in _CONTENT))
)


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record that a transaction made (no `before`), changed, or deleted (no `after`)."""

    record: SQLModel
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def snapshot(record: SQLModel) -> dict[str, Any]:
    """A row as JSON, camelCase, without secrets; columns that are not loaded are left out."""
    return _serialize(type(record), _loaded(record))


# In a session's `info`. Listeners of a single session would cost more than all that they see.
_TRAIL = "trail"


class ChangeTracker:
    """Which records a session's transaction makes, changes and deletes; begin it before the first change.

    Statements of the session show as well, for the rows of which it holds records.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._begun: dict[int, tuple[SQLModel, _Values | None]] = {}
        self._made: set[int] = set()
        session.info[_TRAIL] = self

    def add(self, record: SQLModel) -> None:
        """Notes a record that was inserted past the session."""
        self._begun[id(record)] = (record, None)
        self._made.add(id(record))

    def changes(self) -> list[RecordChange]:
        """In the order in which they began; ask after the last flush and before the commit.

        A record of which only what is not told has changed, such as a secret, is among them.
        """
        return [
            RecordChange(
                record, before and _serialize(type(record), before), after and _serialize(type(record), after)
            )
            for record, before in self._begun.values()
            if _differ(before, after := self._present(record))
        ]

    def _present(self, record: SQLModel) -> _Values | None:
        state = inspect(record)
        is_there = state.persistent or state.pending or id(record) in self._made
        return _loaded(record) if is_there else None

    def see_flush(self, session: Session) -> None:
        for record in session.new:
            self._begun.setdefault(id(record), (record, None))
        for record in (*session.dirty, *session.deleted):
            self._see(record)

    def see_statement(self, statement: ORMExecuteState) -> None:
        mapper = statement.bind_mapper
        if mapper is not None and (statement.is_update or statement.is_delete):
            for record in statement.session.identity_map.values():
                if isinstance(record, mapper.class_):
                    self._see(record)

    def _see(self, record: SQLModel) -> None:
        if id(record) not in self._begun:
            self._begun[id(record)] = (record, _committed(record))


@event.listens_for(Session, "before_flush")
def _see_flush(session: Session, *_: object) -> None:
    if _TRAIL in session.info:
        session.info[_TRAIL].see_flush(session)


@event.listens_for(Session, "do_orm_execute")
def _see_statement(statement: ORMExecuteState) -> None:
    if _TRAIL in statement.session.info:
        statement.session.info[_TRAIL].see_statement(statement)


_SECRET = re.compile(r"sealed_.*|token.*|.*_digest|.*_hash")
# Says no more than the entry's own time.
_NOISE = "updated_at"


def _loaded(record: SQLModel) -> _Values:
    """The columns of a record that are there without asking the database."""
    values: _Values = inspect(record).dict
    return {name: values[name] for name in _columns(type(record)) if name in values}


def _committed(record: SQLModel) -> _Values:
    """A record as it was before the changes that the next flush will write."""
    values = _loaded(record)
    for name, attribute in inspect(record).attrs.items():
        changed = attribute.history
        if changed.deleted:
            values[name] = changed.deleted[0]
        elif changed.added:
            # It was set without having been loaded: nobody knows what it was.
            values.pop(name, None)
    return values


def _differ(before: _Values | None, after: _Values | None) -> bool:
    if before is None or after is None:
        return before is not after
    return any(before.get(name) != after.get(name) for name in before.keys() | after.keys() if name != _NOISE)


def _serialize(model: type[SQLModel], values: _Values) -> dict[str, Any]:
    disclose = getattr(model, "disclose", None)
    if disclose is not None:
        values = disclose(values)
    told: dict[str, Any] = to_jsonable_python(
        {shown: values[name] for name, shown in _columns(model).items() if shown and name in values}
    )
    return told


@cache
def _columns(model: type[SQLModel]) -> dict[str, str | None]:
    """Each column of a table and its name in the log; None for what has no place there."""
    return {
        name: None if name == _NOISE or _SECRET.fullmatch(name) else to_camel(name)
        for name in inspect(model).columns.keys()  # noqa: SIM118  (iterated, it gives columns)
    }
