"""Every error in the same envelope, with a code that programs can rely on."""

from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from deployerp.api.requests import meta_of
from deployerp.api.schemas import ErrorBody, ErrorEnvelope
from deployerp.domain.errors import (
    DeployError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestError,
    Unauthorized,
    ValidationFailed,
)

log = structlog.get_logger()

_BY_STATUS: dict[int, tuple[type[RequestError], str]] = {
    # A body that breaks its reader before any rule is asked: no UTF-8, nested without end.
    400: (ValidationFailed, "The body cannot be read: send JSON in UTF-8."),
    404: (NotFound, "There is nothing at this address: the paths are in /openapi.json."),
    405: (MethodNotAllowed, "This address does not take this method."),
    413: (PayloadTooLarge, "The body is too large."),
}


def install(app: FastAPI) -> None:
    app.add_exception_handler(DeployError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def documented(*errors: type[DeployError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these errors besides those that every route has."""
    every: tuple[type[DeployError], ...] = (Unauthorized, Forbidden, ValidationFailed, *errors, DeployError)
    answers: dict[int | str, dict[str, Any]] = {}
    for error in every:
        # One status can stand for several codes, and all of them are to be told.
        known = answers.setdefault(error.status, {"model": ErrorEnvelope, "description": ""})
        known["description"] = ", ".join(filter(None, (known["description"], f"`{error.code}`")))
    return answers


def invalid_field(field: str, rule: str) -> ValidationFailed:
    field = _shown(field)
    return ValidationFailed(f"{field}: {rule}", details={"fields": [{"field": field, "message": rule}]})


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DeployError)  # noqa: S101  (what the handler is registered for)
    return _answer(request, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    fields = [{"field": _field(each["loc"]), "message": _rule(each)} for each in error.errors()]
    message = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
    return _answer(request, ValidationFailed(message, details={"fields": fields}))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    headers = dict(error.headers or {})
    if error.status_code not in _BY_STATUS:
        return _answer(request, RequestError(str(error.detail)), status=error.status_code, headers=headers)
    kind, message = _BY_STATUS[error.status_code]
    return _answer(request, kind(message), headers=headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected", exc_info=error, path=request.url.path)
    unknown = DeployError(
        f"Something went wrong on our side. The log has it under request id {request.state.request_id}."
    )
    answer = _answer(request, unknown)
    # This answer is made outside of the middleware that would set it.
    answer.headers["X-Request-Id"] = request.state.request_id
    return answer


def _answer(
    request: Request, error: DeployError, *, status: int | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = ErrorEnvelope(
        error=ErrorBody(code=error.code, message=error.message, details=error.details), meta=meta_of(request)
    )
    headers = headers or {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(mode="json"), status or error.status, headers)


def _field(location: Sequence[int | str]) -> str:
    """`("body", "envVars", "LANG")` is `envVars.LANG`; a body that cannot be read at all is `body`."""
    parts = [str(part) for part in location[1:] if part != "[key]"]
    if location[0] == "body" and parts and parts[0].isdigit():
        parts = []
    return _shown(".".join(parts) or str(location[0]))


def _shown(field: str) -> str:
    """A field's name came with the request: half a surrogate pair or a megabyte of it cannot be sent back."""
    return field[:200].encode(errors="replace").decode()


def _rule(error: Any) -> str:
    if error["type"] == "json_invalid":
        return "is not valid JSON"
    return str(error["msg"]).removeprefix("Value error, ")
