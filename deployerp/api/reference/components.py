"""Components of the OpenAPI document: headers, parameters and error responses."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic.alias_generators import to_pascal

from deployerp.api.contract.idempotency import HEADER, MAX_LENGTH
from deployerp.core.errors import tree
from deployerp.core.fields import EXAMPLE_ID, EXAMPLE_REQUEST_ID, EXAMPLE_TIME

Document = dict[str, Any]
JSON = "application/json"
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key (`dep_live_...`) or the access token of a user.",
}
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
# `(schema, description)` of response headers by name.
_HEADERS: dict[str, tuple[Document, str]] = {
    "X-Request-Id": (
        _TEXT,
        "ID of the request, also in the log; a valid one of the client is kept.",
    ),
    "X-RateLimit-Limit": (_NUMBER, "Number of requests of the tighter window; absent without a limit."),
    "X-RateLimit-Remaining": (_NUMBER, "Number of requests left in the tighter window."),
    "X-RateLimit-Reset": (_NUMBER, "End of the tighter window, in Unix time (seconds)."),
    "RateLimit-Policy": (_TEXT, "All windows: `q` requests in `w` seconds."),
    "RateLimit": (_TEXT, "The tighter window: `r` requests left for `t` seconds."),
    "Retry-After": (_NUMBER, "Seconds to wait before a retry."),
    "WWW-Authenticate": (_TEXT, "Authentication scheme (RFC 6750)."),
    "ETag": (_TEXT, "Version of the resource, for `If-Match` and `If-None-Match`."),
    "Location": (_TEXT, "Path of the operation or delivery that shows the progress."),
    "Link": (_TEXT, "Pages `first`, `prev`, `next` and `last` (RFC 8288)."),
    "Idempotent-Replayed": (
        _TEXT,
        "`true` for the stored response of an earlier request; secrets are null.",
    ),
}
RESPONSE_HEADERS = tuple(_HEADERS)
"""The names of all headers that responses may have."""
_EVERY = (
    "X-Request-Id",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "RateLimit-Policy",
    "RateLimit",
)
# `(schema, description)` of request headers by name.
_SENT: dict[str, tuple[Document, str]] = {
    HEADER: (
        _TEXT | {"minLength": 1, "maxLength": MAX_LENGTH, "pattern": "^[\\x21-\\x7e]+$"},
        "Unique key of the request. Within 24 hours, a repeated request returns the stored response.",
    ),
    "If-Match": (_TEXT, "Run the request only if the resource still has this `ETag`."),
    "If-None-Match": (_TEXT, "Return the resource only if its `ETag` differs from this one."),
}
# Headers of error responses besides those of every response, by the code of the error.
_HEADERS_OF_CODES = {
    "unauthorized": "WWW-Authenticate",
    "rate_limit_exceeded": "Retry-After",
    "idempotency_in_progress": "Retry-After",
}
# Of errors whose class describes more than the code.
_MEANINGS = {"internal_error": "An unexpected error occurred. The log has it under the ID of the request."}


def reference(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}


def headers() -> Document:
    return {name: {"schema": schema, "description": text} for name, (schema, text) in _HEADERS.items()}


def header_references(more: Iterable[str]) -> Document:
    """The headers of every response, and more."""
    return {name: reference("headers", name) for name in (*_EVERY, *more)}


def parameters() -> Document:
    """Request headers, and the ID in paths."""
    sent = {
        name: {"name": name, "in": "header", "required": False, "schema": schema, "description": text}
        for name, (schema, text) in _SENT.items()
    }
    resource_id = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
        "description": "ID of the resource (UUID).",
        "example": EXAMPLE_ID,
    }
    return sent | {"id": resource_id}


def not_modified() -> Document:
    return {
        "description": "The resource still has the `ETag` of `If-None-Match`.",
        "headers": header_references(["ETag"]),
    }


def error_reference(codes: Sequence[str], shared: Document) -> Document:
    """A reference to the response for these error codes, which is added to the components."""
    name = "Or".join(map(to_pascal, codes))
    if name not in shared["responses"]:
        more = dict.fromkeys(_HEADERS_OF_CODES[code] for code in codes if code in _HEADERS_OF_CODES)
        shared["examples"] |= {code: {"summary": _meaning(code), "value": _error(code)} for code in codes}
        shared["responses"][name] = {
            "description": "\n".join(f"`{code}`: {_meaning(code)}" for code in codes),
            "headers": header_references(more),
            "content": {
                JSON: {
                    "schema": reference("schemas", "ErrorEnvelope"),
                    "examples": {code: reference("examples", code) for code in codes},
                }
            },
        }
    return reference("responses", name)


def _meaning(code: str) -> str:
    error = next(each for each in tree() if each.code == code)
    return _MEANINGS.get(code) or (error.__doc__ or code).strip().splitlines()[0]


def _error(code: str) -> Document:
    error = {"code": code, "message": _meaning(code), "details": {}}
    return {
        "success": False,
        "error": error,
        "meta": {"request_id": EXAMPLE_REQUEST_ID, "timestamp": EXAMPLE_TIME},
    }
