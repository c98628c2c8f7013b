"""The envelope that every answer comes in, and the way our fields are spelled."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, TypeGuard, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from deployerp.database.base import utc_now

T = TypeVar("T")
Disclose = Callable[[dict[str, Any]], dict[str, Any]]


def enum_of(values: Sequence[str]) -> WithJsonSchema:
    """Annotates a text that the code lists elsewhere, so that clients know what there can be."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


# Beside a reference: what the example of this one field has otherwise.
EXAMPLE_PARTS = "x-example-parts"
# No body has more in one place; what has is not worth the time of looking at every part of it.
_MOST_PARTS = 1000


def _check_number(value: object) -> object:
    # The library would take true for 1 and "24" for 24.
    if isinstance(value, bool | str):
        raise ValueError("must be a whole number")
    return value


Integer = Annotated[int, BeforeValidator(_check_number)]
"""A whole number as JSON has it: also 24.0, and neither text nor a truth value."""


class Body(BaseModel):
    """What clients send: camelCase, or snake_case; a field that we do not know is an error."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_not_endless(cls, given: Any) -> Any:
        parts = {"body": given, **given} if isinstance(given, dict) else {}
        for name, part in parts.items():
            if isinstance(part, dict | list) and len(part) > _MOST_PARTS:
                raise PydanticCustomError("endless", f"{name[:100]} must have at most {_MOST_PARTS} parts")
        return given


class View(BaseModel):
    """What clients get, in camelCase, read off a record."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, from_attributes=True)
    # Masks what is secret in fields that are shown otherwise.
    disclose: ClassVar[Disclose | None] = None


_SHOWN_ONCE = "x-shown-once"
ShownOnce = Annotated[str | None, Field(json_schema_extra={_SHOWN_ONCE: True})]
"""A secret in the first answer to a request: it is not kept, and is null where the answer is given again."""


def shown_once(envelope: object) -> tuple[str, ...]:
    """The fields of an answer's data, as clients see them, that show a secret once."""
    data = envelope.model_fields.get("data") if _is_model(envelope) else None
    view = data.annotation if data is not None else None
    if not _is_model(view):
        return ()
    return tuple(
        field.alias or name
        for name, field in view.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and _SHOWN_ONCE in field.json_schema_extra
    )


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


class Meta(BaseModel):
    request_id: str
    timestamp: datetime = Field(default_factory=utc_now)


class ListMeta(Meta):
    """With `cursor` there is no page and nothing is counted."""

    page: int | None
    per_page: int
    total: int | None
    total_pages: int | None
    next_cursor: str | None


class Envelope(BaseModel, Generic[T]):
    success: bool = True
    data: T
    meta: Meta


class ListEnvelope(BaseModel, Generic[T]):
    success: bool = True
    data: list[T]
    meta: ListMeta


class ErrorBody(BaseModel):
    code: str
    message: str
    details: dict[str, Any]


class ErrorEnvelope(BaseModel):
    success: bool = False
    error: ErrorBody
    meta: Meta
