"""The envelope that every answer comes in, and the way our fields are spelled."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Generic, TypeGuard, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from deployerp.core.fields import EXAMPLE_TIME, RequestId
from deployerp.database.base import utc_now
from deployerp.domain.operations.lifecycles import HEALTHS

T = TypeVar("T")
Disclose = Callable[[dict[str, Any]], dict[str, Any]]


def enum_of(values: Sequence[str]) -> WithJsonSchema:
    """Annotates a text that the code lists elsewhere, so that clients know what there can be."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


Health = Annotated[
    str,
    enum_of(HEALTHS),
    Field(description="Last observed health; independent of `status`.", examples=["healthy"]),
]
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
    """Metadata of a response."""

    request_id: RequestId
    timestamp: datetime = Field(
        default_factory=utc_now,
        description="Time of the response (RFC 3339, UTC).",
        examples=[EXAMPLE_TIME],
    )


class ListMeta(Meta):
    """Metadata of a list; `page`, `total` and `total_pages` are null if the request has a `cursor`."""

    page: int | None = Field(description="Page number, from 1.", examples=[1])
    per_page: int = Field(description="Maximum number of rows per page.", examples=[20])
    total: int | None = Field(description="Number of rows on all pages.", examples=[1])
    total_pages: int | None = Field(description="Number of pages.", examples=[1])
    next_cursor: str | None = Field(
        description="Value of `cursor` for the next page; null on the last page.", examples=[None]
    )


Succeeded = Annotated[bool, Field(description="Whether the request succeeded: `true`.", examples=[True])]
ResponseMeta = Annotated[Meta, Field(description="Metadata of the response.")]


class Envelope(BaseModel, Generic[T]):
    success: Succeeded = True
    data: T = Field(description="The requested data.")
    meta: ResponseMeta


class ListEnvelope(BaseModel, Generic[T]):
    success: Succeeded = True
    data: list[T] = Field(description="The rows of the page.")
    meta: ListMeta = Field(description="Metadata of the response and of the page.")


class ErrorBody(BaseModel):
    code: str = Field(description="Error code, for programs.", examples=["not_found"])
    message: str = Field(
        description="What went wrong and what to do about it, for people.",
        examples=["The resource does not exist."],
    )
    details: dict[str, Any] = Field(
        description="Additional data of the error; its fields depend on `code`.", examples=[{}]
    )


class ErrorEnvelope(BaseModel):
    success: bool = Field(False, description="Whether the request succeeded: `false`.", examples=[False])
    error: ErrorBody = Field(description="The error.")
    meta: ResponseMeta
