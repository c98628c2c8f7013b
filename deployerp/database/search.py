"""Search for a part of a text: through an index of trigrams on PostgreSQL, row by row on SQLite.

Row level security lets no operator use an index unless it is leakproof, and LIKE is not. A function that runs
as the owner of the tables finds the ids with the index; the rows themselves are still read as the tenant.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    FromClause,
    String,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

# It cannot be in a search text: the API refuses control characters.
_SEPARATOR = "\n"
# Shorter texts have no trigram, except where a text begins.
_TRIGRAM = 3
_SEARCHED = "searched"


def searched_text(columns: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    """All columns as one text in lower case, each after a separator: one index serves them all."""
    separator: ColumnElement[str] = literal_column(f"'{_SEPARATOR}'", String)
    whole = separator
    for number, each in enumerate(columns):
        whole = (whole + separator if number else whole) + func.coalesce(each, literal_column("''", String))
    return func.lower(whole)


def search_pattern(searched: str) -> str:
    """The LIKE pattern that finds the text itself; its escape character is `\\`.

    One or two characters are found at the beginning of a column only.
    """
    escaped = searched.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{_SEPARATOR if len(searched) < _TRIGRAM else ''}{escaped}%"


def searched(*columns: str) -> dict[str, Any]:
    """Declares that a table is searched in these columns through an index, for its `__table_args__`.

    The migration creates the index and its function with `create_search`.
    """
    return {"info": {_SEARCHED: columns}}


def search_condition(
    table: FromClause, columns: Sequence[ColumnElement[Any]], pattern: str
) -> ColumnElement[bool]:
    """The condition that one of the columns holds what the parameter named `pattern` asks for.

    Another parameter is `organization_id`.
    """
    # Lowered by the database on both sides: databases and Python differ in what lower case is.
    lowered = func.lower(bindparam(pattern, type_=String))
    plain = searched_text(columns).like(lowered, escape="\\")
    if getattr(table, "info", {}).get(_SEARCHED) != tuple(getattr(each, "name", None) for each in columns):
        return plain
    organization_id: Any = bindparam("organization_id", type_=Uuid[UUID]())
    find = getattr(func, f"search_{table.name}")  # type: ignore[attr-defined]
    found = select(find(organization_id, lowered, type_=Uuid()).column_valued("found"))
    return _Search(table.c.id.in_(found), plain)


class _Search(FunctionElement[bool]):
    """The same condition by an index, which PostgreSQL has, and without one."""

    type = Boolean()
    inherit_cache = True


@compiles(_Search)
def _compile_plain(element: _Search, compiler: Any, **options: Any) -> str:
    _, plain = element.clauses
    return f"({compiler.process(plain, **options)})"


@compiles(_Search, "postgresql")
def _compile_indexed(element: _Search, compiler: Any, **options: Any) -> str:
    indexed, _ = element.clauses
    return f"({compiler.process(indexed, **options)})"
