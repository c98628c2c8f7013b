"""What clients may ask of a list, and the statement that finds it."""

import base64
import binascii
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qsl
from uuid import UUID

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    create_model,
)
from sqlalchemy import Integer, Select, bindparam, func, select, tuple_
from sqlmodel import SQLModel

from deployerp.api.contract.envelope import fields_of
from deployerp.api.contract.errors import invalid_field, invalid_fields
from deployerp.api.contract.schemas import View
from deployerp.core.fields import Instant, Pattern
from deployerp.database.reads import Query
from deployerp.database.search import search_condition, search_pattern
from deployerp.database.statements import Row

Order = Literal["asc", "desc"]
_MOST_FIELDS = 50
TOTAL = "_total"


@dataclass(frozen=True)
class Position:
    """Where a page ends: the value of the sorted field and the id of its last row."""

    sort: str
    order: Order
    value: Any
    id: UUID

    def encoded(self) -> str:
        plain = orjson.dumps([self.sort, self.order, self.value, self.id], default=str)
        return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


@dataclass(frozen=True)
class ListQuery:
    """A list request that keeps the rules."""

    page: int
    per_page: int
    sort: str
    order: Order
    position: Position | None
    filters: tuple[tuple[str, Any], ...]
    # What was asked but for the page: other pages are asked for with the same.
    same: tuple[tuple[str, str], ...]

    @property
    def offset(self) -> int:
        """How many rows lie before the page."""
        return (self.page - 1) * self.per_page

    @property
    def names(self) -> tuple[str, ...]:
        """The filters that were asked for."""
        return tuple(name for name, _ in self.filters)


_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")


def _with_plus(value: object) -> object:
    """In a query a bare `+` is read as a space; before the offset of a time nothing else can be meant."""
    return _LOST_PLUS.sub("+", value) if isinstance(value, str) and "T" in value.upper() else value


_QueryInstant = Annotated[Instant, BeforeValidator(_with_plus)]
Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100),
    Pattern(r"^[^\x00-\x1f\x7f]+$", "must not hold control characters"),
]
_PARAMETERS: dict[str, tuple[Any, str]] = {
    "page": (Annotated[int, Field(ge=1, le=1_000_000)], "Page number, from 1."),
    "per_page": (Annotated[int, Field(ge=1, le=100)], "Maximum number of rows per page."),
    "order": (Order, "Sort direction."),
    "cursor": (
        Annotated[str, StringConstraints(min_length=1, max_length=1000)],
        (
            "Use instead of `page`: `meta.next_cursor` of the previous response. Equally fast at any depth;"
            " rows that are added or removed meanwhile neither repeat nor hide others. The response has no"
            " total."
        ),
    ),
    "created_after": (_QueryInstant, "Filter by time of creation: later than this time (RFC 3339)."),
    "created_before": (_QueryInstant, "Filter by time of creation: earlier than this time (RFC 3339)."),
}
_DEFAULTS: dict[str, Any] = {"page": 1, "per_page": 20}
# What is compared otherwise than for being the same: with which column, and how.
_COMPARED: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "created_after": ("created_at", operator.gt),
    "created_before": ("created_at", operator.lt),
    "after": ("sequence", operator.gt),
    # Its value is a pattern.
    "type": ("type", lambda column, pattern: column.like(pattern, escape="\\")),
}
# How the value in a cursor is read, by the type of the field that the list is sorted by; no database takes
# every text.
_SORTED: dict[Any, TypeAdapter[Any]] = {
    datetime: TypeAdapter(Instant),
    int: TypeAdapter(Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]),
    str: TypeAdapter(Annotated[str, Pattern(r"^[^\x00]*$", "must not hold a NUL character")]),
}


@dataclass(frozen=True, eq=False)
class Listing:
    """The list of one kind of record: its columns, and what it can be filtered, searched and sorted by.

    `filters` gives the type of each exact match by the name of its column, `searched` what is searched in
    place of a column that is not all to be searched.
    """

    model: type[SQLModel]
    view: type[View]
    filters: Mapping[str, Any]
    search: Sequence[str]
    sorts: Sequence[str]
    order: Order
    searched: Mapping[str, Any]

    def parse(self, query_string: bytes) -> ListQuery:
        """Raises `ValidationFailed` for parameters that are unknown, given twice, or break their rule."""
        try:
            text = query_string.decode(errors="replace")
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise invalid_field("query", f"must have at most {_MOST_FIELDS} parameters") from None
        given = dict(pairs)
        if len(given) != len(pairs):
            raise invalid_field(_twice(pairs), "must be given once")
        try:
            known = self._model.model_validate(given).model_dump(exclude_none=True)
        except ValidationError as error:
            raise invalid_fields("query", error.errors()) from None
        return self._parse(known, pairs)

    def _parse(self, known: dict[str, Any], pairs: list[tuple[str, str]]) -> ListQuery:
        position = self._position(known) if "cursor" in known else None
        return ListQuery(
            page=known.pop("page", 1),
            per_page=known.pop("per_page", _DEFAULTS["per_page"]),
            sort=known.pop("sort", position.sort if position else self.sorts[0]),
            order=known.pop("order", position.order if position else self.order),
            position=position,
            filters=tuple(sorted((name, value) for name, value in known.items() if name != "cursor")),
            same=tuple((name, value) for name, value in pairs if name not in ("page", "cursor")),
        )

    def _position(self, known: dict[str, Any]) -> Position:
        if "page" in known:
            raise invalid_field("cursor", "cannot be given together with `page`")
        try:
            sort, order, value, last = orjson.loads(base64.urlsafe_b64decode(known["cursor"] + "=="))
            if sort not in self.sorts or order not in get_args(Order):
                raise ValueError
            typed = _SORTED[self.view.model_fields[sort].annotation].validate_python(value)
            position = Position(sort, order, typed, UUID(last))
        except (ValueError, TypeError, AttributeError, binascii.Error):
            raise invalid_field("cursor", "must be the `next_cursor` of an answer of this list") from None
        if any(known.get(name, ours) != ours for name, ours in (("sort", sort), ("order", order))):
            raise invalid_field("cursor", "belongs to a list in another order")
        return position

    def next_cursor(self, asked: ListQuery, row: Row) -> str:
        """The position of a row, from which the next page goes on."""
        alias = dict(fields_of(self.view))[asked.sort]
        return Position(asked.sort, asked.order, row[alias], row["id"]).encoded()

    def values(self, asked: ListQuery) -> dict[str, Any]:
        """The parameters of the statement; one row more than asked tells whether there is a next page."""
        values: dict[str, Any] = {"limit": asked.per_page + 1}
        values |= {name: search_pattern(value) if name == "q" else value for name, value in asked.filters}
        if asked.position is None:
            return values | {"offset": asked.offset}
        return values | {"position_value": asked.position.value, "position_id": asked.position.id}

    def query(self, asked: ListQuery, *, counted: bool) -> Query:
        return self._query(asked.sort, asked.order, asked.names, asked.position is not None, counted)

    @cache  # noqa: B019  (listings are made once and live as long as the program)
    def _query(self, sort: str, order: Order, filters: tuple[str, ...], after: bool, counted: bool) -> Query:
        column, tie_break = self._columns[sort], self._columns["id"]
        statement = self._rows(filters)
        if counted:
            # A search finds all rows before it sorts them: to count them apart would be to search twice.
            total = func.count().over() if "q" in filters else self._count(filters)
            statement = statement.add_columns(total.label(TOTAL))
        if after:
            known = tuple_(
                bindparam("position_value", type_=column.type), bindparam("position_id", type_=tie_break.type)
            )
            here: Any = tuple_(column, tie_break)
            statement = statement.where(here < known if order == "desc" else here > known)
        else:
            statement = statement.offset(bindparam("offset", type_=Integer))
        ordered = (each.desc() if order == "desc" else each.asc() for each in (column, tie_break))
        return Query(statement.order_by(*ordered).limit(bindparam("limit", type_=Integer)))

    def _rows(self, filters: tuple[str, ...]) -> Select[Any]:
        columns = [self._columns[name].label(alias) for name, alias in fields_of(self.view)]
        return select(*columns).where(*self._conditions(filters))

    def _count(self, filters: tuple[str, ...]) -> Select[Any]:
        return select(func.count().label(TOTAL)).select_from(self.model).where(*self._conditions(filters))

    def _conditions(self, filters: tuple[str, ...]) -> list[Any]:
        owner = self._columns["organization_id"]
        conditions = [owner == bindparam("organization_id", type_=owner.type)]
        if "deleted_at" in self._columns:
            conditions.append(self._columns["deleted_at"].is_(None))
        return conditions + [self._condition(name) for name in filters]

    def _condition(self, name: str) -> Any:
        if name == "q":
            texts = [self.searched.get(each, self._columns[each]) for each in self.search]
            return search_condition(self._table, texts, name)
        column_name, compare = _COMPARED.get(name, (name, operator.eq))
        column = self._columns[column_name]
        return compare(column, bindparam(name, type_=column.type))

    @cached_property
    def one(self) -> Query:
        """The statement that finds one by `id`."""
        column = self._columns["id"]
        return Query(self._rows(()).where(column == bindparam("id", type_=column.type)))

    @cache  # noqa: B019
    def count(self, filters: tuple[str, ...]) -> Query:
        return Query(self._count(filters))

    @cached_property
    def parameters(self) -> dict[str, tuple[Any, str]]:
        """`(type, description)` of every parameter by its name."""
        told = _PARAMETERS | {"sort": (Literal[tuple(self.sorts)], "Field to sort by.")}
        told |= {name: (kind, f"Filter by `{name}`, exact match.") for name, kind in self.filters.items()}
        if self.search:
            told["q"] = (
                Text,
                (
                    f"Search for this text in {' or '.join(self.search)}, ignoring case. One or two"
                    " characters are found at the beginning of a field only."
                ),
            )
        return told

    @property
    def described(self) -> list[dict[str, Any]]:
        """The parameters in OpenAPI; those that all lists share are references to components."""
        defaults = {"sort": self.sorts[0], "order": self.order}
        return [
            {"$ref": f"#/components/parameters/{name}"}
            if name in _PARAMETERS and name not in defaults
            else _parameter(name, kind, description, defaults.get(name))
            for name, (kind, description) in self.parameters.items()
        ]

    @cached_property
    def _model(self) -> type[BaseModel]:
        fields: Any = {name: (kind | None, None) for name, (kind, _) in self.parameters.items()}
        return create_model("ListQuery", __config__=ConfigDict(extra="forbid"), **fields)

    @property
    def _table(self) -> Any:
        return self.model.__table__  # type: ignore[attr-defined]

    @cached_property
    def _columns(self) -> Any:
        return self._table.columns


def shared_parameters() -> dict[str, dict[str, Any]]:
    """The components in OpenAPI for the parameters that all lists share."""
    return {
        name: _parameter(name, kind, description, _DEFAULTS.get(name))
        for name, (kind, description) in _PARAMETERS.items()
        if name != "order"
    }


def _parameter(name: str, kind: Any, description: str, default: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False} | _schema(kind, description, default)


def _schema(kind: Any, description: str, default: Any) -> dict[str, Any]:
    """Schema and description of a parameter; the description of its type, if any, comes first."""
    schema = TypeAdapter(kind).json_schema()
    description = schema.pop("description", description)
    return {
        "description": description,
        "schema": schema if default is None else schema | {"default": default},
    }


def _twice(pairs: list[tuple[str, str]]) -> str:
    names = [name for name, _ in pairs]
    return next(name for name in names if names.count(name) > 1)
