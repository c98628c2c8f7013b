"""Statements that are compiled once and sent past the ORM, whose work costs several times their own.

On PostgreSQL they go straight to asyncpg, within the session's transaction; elsewhere the session runs them.
"""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import asyncpg
from sqlalchemy import Executable, insert
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

Row = dict[str, Any]
DIALECT: Any = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
# In a session's `info`: the connection of asyncpg's that its transaction runs on.
DRIVER = "driver"


class Statement:
    """A statement with named parameters."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement

    @cached_property
    def _compiled(self) -> Any:
        return self.statement.compile(dialect=DIALECT)  # type: ignore[attr-defined]

    @cached_property
    def text(self) -> str:
        """As PostgreSQL reads it."""
        return str(self._compiled)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters in their order."""
        return tuple(self._compiled.positiontup or ())

    def ordered(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters, as asyncpg takes them."""
        return [
            values[name] if process is None else process(values[name])
            for name, process in zip(self.names, self._processes, strict=True)
        ]

    @cached_property
    def _processes(self) -> list[Callable[[Any], Any] | None]:
        types = [self._compiled.binds[name].type for name in self.names]
        return [each.dialect_impl(DIALECT).bind_processor(DIALECT) for each in types]


async def run(session: AsyncSession, statement: Statement, values: Mapping[str, Any]) -> list[Row]:
    """What the statement returns; what the session has not flushed it does not see.

    PostgreSQL gives JSON as text. Raises `IntegrityError`.
    """
    driver: asyncpg.Connection | None = session.info.get(DRIVER)
    if driver is None:
        found: Any = await session.execute(statement.statement, dict(values))
        # Of an entity's rows the ORM makes a result that does not have to say so.
        return [dict(row) for row in found.mappings()] if getattr(found, "returns_rows", True) else []
    try:
        rows = await driver.fetch(statement.text, *statement.ordered(values))
    except asyncpg.IntegrityConstraintViolationError as error:
        # The one error that callers tell from others, under one name on both databases.
        raise IntegrityError(None, None, error, hide_parameters=True) from None
    return [dict(row) for row in rows]


async def put(session: AsyncSession, record: SQLModel) -> None:
    """Inserts a new record as it is now; the session does not hold it. Raises `IntegrityError`."""
    model = type(record)
    await run(session, _insert(model), {name: getattr(record, name) for name in _names(model)})


@cache
def _insert(model: type[SQLModel]) -> Statement:
    return Statement(insert(_table(model)))


@cache
def _names(model: type[SQLModel]) -> tuple[str, ...]:
    return tuple(_table(model).columns.keys())


def _table(model: type[SQLModel]) -> Any:
    return model.__table__  # type: ignore[attr-defined]
