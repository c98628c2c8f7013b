"""What every table shares: identity, time, and types that behave the same on SQLite and PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, CheckConstraint, DateTime, Dialect, MetaData, TypeDecorator, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel
from uuid_utils.compat import uuid7

# Alembic can only alter what has a name, and SQLite names nothing by itself.
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata: MetaData = SQLModel.metadata


def new_id() -> UUID:
    """A UUID version 7: unique everywhere and sorted by the time it was made."""
    return uuid7()


def utc_now() -> datetime:
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite would hand back naive ones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


JsonType = JSON().with_variant(JSONB(), "postgresql")


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """A CHECK constraint that holds `column` to `values`, which come from the code and never from a user."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def where(condition: str) -> dict[str, Any]:
    """The options of an index that holds only the rows for which an SQL condition is true."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


# Of an index that leaves out what is deleted but kept.
PRESENT = where("deleted_at IS NULL")


class Record(SQLModel):
    """A row with an id and the times of its creation and last change."""

    id: UUID = Field(default_factory=new_id, primary_key=True)
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    updated_at: datetime = Field(
        default_factory=utc_now, sa_type=UtcDateTime, sa_column_kwargs={"onupdate": utc_now}
    )

    def __init__(self, **given: Any) -> None:
        # All at once: one by one, each with an event that says nothing about a new record, costs more than
        # to insert its row.
        now = utc_now()
        own = {"id": new_id(), "created_at": now, "updated_at": now}
        values, factories = _defaults(type(self))
        made = {name: factory() for name, factory in factories.items() if name not in given}
        self.__dict__.update(values | made | own | given)
        object.__setattr__(self, "__pydantic_fields_set__", set(given))


@cache
def _defaults(model: type[Record]) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """What fields that are not given have, and what makes it anew for every record."""
    fields = {name: field for name, field in model.model_fields.items() if name not in Record.model_fields}
    factories: Any = {name: field.default_factory for name, field in fields.items() if field.default_factory}
    optional = {name: field for name, field in fields.items() if not field.is_required()}
    return {name: field.default for name, field in optional.items() if name not in factories}, factories


def time_field(**options: Any) -> Any:
    """An optional UTC time."""
    return Field(default=None, nullable=True, sa_type=UtcDateTime, **options)


def json_field(**options: Any) -> Any:
    """A JSON document: JSONB on PostgreSQL."""
    return Field(sa_type=JsonType, **options)
