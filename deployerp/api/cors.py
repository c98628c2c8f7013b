"""Calls from pages of other origins (CORS): none, unless the operator names the origins."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from deployerp.api.contract.idempotency import HEADER
from deployerp.api.reference.document import RESPONSE_HEADERS
from deployerp.core.settings import Settings

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = ("Authorization", HEADER, "If-Match", "If-None-Match", "Last-Event-ID", "X-Request-Id")


def install(app: FastAPI, settings: Settings) -> None:
    """Answers browsers before anything else does: they ask without credentials, and errors are for them too.

    Pages send the key themselves; there are no cookies that a browser would add.
    """
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
