"""The envelope that every answer comes in, and the way our fields are spelled."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from deployerp.domain.base import utc_now

T = TypeVar("T")


def enum_of(values: Sequence[str]) -> WithJsonSchema:
    """Annotates a text that the code lists elsewhere, so that clients know what there can be."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


# No body has more in one place; what has is not worth the time of looking at every part of it.
_MOST_PARTS = 1000


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
