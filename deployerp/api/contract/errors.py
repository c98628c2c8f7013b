"""Every error in the same envelope, with a code that programs can rely on."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from deployerp.api.contract.envelope import encode, meta_of
from deployerp.api.contract.schemas import ErrorEnvelope
from deployerp.core.errors import (
    DeployError,
    Forbidden,
    IdempotencyInProgress,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RateLimitExceeded,
    RequestError,
    Unauthorized,
    Unavailable,
    ValidationFailed,
)
from deployerp.database.sessions import AWAY_STATES, sqlstate_of

log = structlog.get_logger()

NOTHING_HERE = "There is nothing at this address: the paths are in /openapi.json."
# So many that break a rule are told: the answer must not be longer than the request.
_MOST_FIELDS = 50
_BY_STATUS: dict[int, tuple[type[RequestError], str]] = {
    # A body that breaks its reader before any rule is asked: no UTF-8, nested without end.
    400: (ValidationFailed, "The body cannot be read: send JSON in UTF-8."),
    404: (NotFound, NOTHING_HERE),
    405: (MethodNotAllowed, "This address does not take this method."),
}


def install(app: FastAPI) -> None:
    app.add_exception_handler(DeployError, _respond_known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def limited(*errors: type[DeployError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a public route that can answer with these errors."""
    return _describe((*errors, RateLimitExceeded, DeployError))


def documented(*errors: type[DeployError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these errors besides those that every route has."""
    return _describe((Unauthorized, Forbidden, ValidationFailed, *errors, RateLimitExceeded, DeployError))


def _describe(every: tuple[type[DeployError], ...]) -> dict[int | str, dict[str, Any]]:
    answers: dict[int | str, dict[str, Any]] = {}
    for error in every:
        # One status can stand for several codes, and all of them are to be told.
        known = answers.setdefault(error.status, {"model": ErrorEnvelope, "description": ""})
        known["description"] = ", ".join(filter(None, (known["description"], f"`{error.code}`")))
    return answers


def invalid_field(field: str, rule: str) -> ValidationFailed:
    return _invalid_fields([{"field": _display_name(field), "message": rule}])


def invalid_fields(where: str, errors: Sequence[Any]) -> ValidationFailed:
    """What pydantic found; `where` is the part of the request that it looked at."""
    return _invalid_fields(
        [{"field": _field((where, *each["loc"])), "message": _rule(each)} for each in errors]
    )


def _invalid_fields(fields: list[dict[str, str]]) -> ValidationFailed:
    told = fields[:_MOST_FIELDS]
    rules = [f"{each['field']}: {each['message']}" for each in told]
    if more := len(fields) - len(told):
        rules.append(f"and {more} more")
    return ValidationFailed("; ".join(rules), details={"fields": told})


def answer_of(
    request: Request, error: DeployError, *, status: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    """The answer that tells of an error."""
    told = {"code": error.code, "message": error.message, "details": error.details}
    body = {"success": False, "error": told, "meta": meta_of(request)}
    headers = headers or {}
    if isinstance(error, Unauthorized):
        # RFC 6750: only who has shown something is told that it is no good.
        given = "authorization" in request.headers
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if given else "Bearer"
    if isinstance(error, RateLimitExceeded | IdempotencyInProgress):
        headers["Retry-After"] = str(error.retry_after)
    return Response(encode(body), status or error.status, headers, media_type="application/json")


async def _respond_known(request: Request, error: Exception) -> Response:
    assert isinstance(error, DeployError)  # noqa: S101  (what the handler is registered for)
    return answer_of(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    # The framework leaves bytes what it was not told to read as JSON.
    rule = _rule_of_unread if isinstance(error.body, bytes) else _rule
    fields = [{"field": _field(each["loc"]), "message": rule(each)} for each in error.errors()]
    return answer_of(request, _invalid_fields(fields))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    headers = dict(error.headers or {})
    if error.status_code == MethodNotAllowed.status:
        headers["Allow"] = _allowed(request)
        if request.method == "OPTIONS":
            # No route takes it: it asks for what the address takes.
            return Response(status_code=204, headers=headers)
    if error.status_code == PayloadTooLarge.status:
        return answer_of(request, PayloadTooLarge(str(error.detail)), headers=headers)
    if error.status_code not in _BY_STATUS:
        return answer_of(request, RequestError(str(error.detail)), status=error.status_code, headers=headers)
    kind, message = _BY_STATUS[error.status_code]
    return answer_of(request, kind(message), headers=headers)


def _allowed(request: Request) -> str:
    """Every method of the address: the framework names those of its first route only."""
    routes = [each for each in request.app.routes if each.matches(request.scope)[0] is not Match.NONE]
    # `/events/stream` fits `/events/{id}` too, which is another address.
    routes = [each for each in routes if each.path == routes[0].path]
    known = {method for each in routes for method in getattr(each, "methods", None) or ()}
    if any(getattr(each, "streams", False) for each in routes):
        known.discard("HEAD")
    # Within what is mounted, files, there are no routes of ours.
    return ", ".join(sorted({"OPTIONS"} | (known or {"GET", "HEAD"})))


def respond_unexpected(request: Request, error: Exception) -> Response:
    """The answer to what nothing above has an answer for; the log tells what it was."""
    unknown: DeployError | None = away(error)
    if unknown is None:
        log.error("unexpected", path=request.scope["path"], exc_info=error)
        request_id = request.scope["state"]["request_id"]
        unknown = DeployError(
            f"Something went wrong on our side. The log has it under request id {request_id}."
        )
    else:
        log.error("the database does not answer", path=request.scope["path"], reason=repr(error))
    return answer_of(request, unknown)


def away(error: Exception) -> Unavailable | None:
    """What to say when the database is not there; its own error is in the log."""
    if isinstance(error, _AWAY) or sqlstate_of(error).startswith(AWAY_STATES):
        return Unavailable(
            "The database does not answer: try again in a moment, a change with the same Idempotency-Key."
        )
    return None


# Of the network, of the pool, of the drivers, whose own state is broken where a connection ends under them.
_AWAY = (
    ConnectionError,
    TimeoutError,
    PoolTimeout,
    OperationalError,
    InterfaceError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


def _field(location: Sequence[int | str]) -> str:
    """`("body", "envVars", "LANG")` is `envVars.LANG`; a body that cannot be read at all is `body`."""
    parts = [str(part) for part in location[1:] if part != "[key]"]
    if location[0] == "body" and parts and parts[0].isdigit():
        parts = []
    return _display_name(".".join(parts) or str(location[0]))


def _display_name(field: str) -> str:
    """A field's name came with the request: half a surrogate pair or a megabyte of it cannot be sent back."""
    return field[:200].encode(errors="replace").decode()


def _rule_of_unread(error: Any) -> str:
    if error["loc"] == ("body",):
        return "is not read as JSON: send it with the header `Content-Type: application/json`"
    return _rule(error)


def _rule(error: Any) -> str:
    if error["type"] == "json_invalid":
        return "is not valid JSON"
    return str(error["msg"]).removeprefix("Value error, ")
