"""Answers as bytes: the envelope around what the database or a record says."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import orjson
from fastapi import Request, Response

from deployerp.api.contract.schemas import View
from deployerp.database.base import utc_now

Data = dict[str, Any]
_OPTIONS = orjson.OPT_UTC_Z
# A key that is used is the same key: whoever has read it may change it.
_NO_CHANGE = {"lastUsedAt"}


def encode(value: object) -> bytes:
    """JSON, with times in UTC as `...Z`; what JSON does not know is told as its text."""
    return orjson.dumps(value, default=str, option=_OPTIONS)


@cache
def fields_of(view: type[View]) -> tuple[tuple[str, str], ...]:
    """`(name of the attribute, name that clients see)` of each field of a view."""
    return tuple((name, field.alias or name) for name, field in view.model_fields.items())


def serialize(view: type[View], record: object) -> Data:
    """What a view tells of a record."""
    return mask(view, {alias: getattr(record, name) for name, alias in fields_of(view)})


def mask(view: type[View], data: Data) -> Data:
    """What a view tells of a row, of which it may have to mask something."""
    return data if view.disclose is None else view.disclose(data)


# What a proxy that compresses writes at the end of a tag.
_CODED = re.compile(r'[-;](gzip|zstd|br|deflate)"$')


def meta_of(request: Request) -> Data:
    return {"request_id": request.scope["state"]["request_id"], "timestamp": utc_now()}


def etag_of(data: Data) -> str:
    """The tag of what is told of a resource."""
    told = {name: value for name, value in data.items() if name not in _NO_CHANGE}
    return f'"{hashlib.blake2b(encode(told), digest_size=12).hexdigest()}"'


def respond(
    request: Request,
    data: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    meta: Data | None = None,
) -> Response:
    """Data in its envelope."""
    body = {"success": True, "data": data, "meta": meta_of(request) | (meta or {})}
    return Response(encode(body), status, headers, media_type="application/json")


def respond_tagged(request: Request, data: Data, *, status: int = 200, more: Data | None = None) -> Response:
    """One resource, with the ETag of what is told of it; `more` is told this once."""
    return respond(request, data | (more or {}), status=status, headers={"ETag": etag_of(data)})


def respond_single(request: Request, data: Data) -> Response:
    """One resource with its ETag; 304 where the client has just that."""
    response = respond_tagged(request, data)
    tag = response.headers["etag"]
    if tags_of(request.headers.getlist("if-none-match")) & {tag, "*"}:
        return Response(status_code=304, headers={"ETag": tag})
    return response


def tags_of(headers: Sequence[str]) -> frozenset[str]:
    """The entity tags of all `If-Match` or `If-None-Match`, as we gave them; weak ones compare by their text.

    Proxies that compress an answer add the coding to its tag (Caddy, Apache), and clients send that back.
    """
    listed = (each.strip().removeprefix("W/") for header in headers for each in header.split(","))
    return frozenset(_CODED.sub('"', tag) for tag in listed)
