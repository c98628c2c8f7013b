"""What requests share, and what endpoints ask for."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from deployerp.api.access.authentication import Authenticator
from deployerp.api.access.callers import Caller
from deployerp.api.access.guesses import Guesses
from deployerp.api.access.rate_limits import Limiter
from deployerp.api.contract.totals import Totals
from deployerp.api.contract.watcher import Watcher
from deployerp.core.background import Background
from deployerp.core.errors import Unauthorized
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.reads import Reader
from deployerp.database.sessions import SessionFactory
from deployerp.drivers.queries import Queries
from deployerp.drivers.temporal import Temporal


@dataclass(frozen=True)
class Context:
    """What the application shares between requests; lives in its state.

    `sessions` act for the control plane itself and see every organization: requests of a tenant read
    through `reader` and write through their change.
    """

    settings: Settings
    sessions: SessionFactory
    reader: Reader
    temporal: Temporal
    queries: Queries
    vault: Vault
    authenticator: Authenticator
    limiter: Limiter
    guesses: Guesses
    totals: Totals
    background: Background
    watcher: Watcher


def context(request: Request) -> Context:
    return cast("Context", request.app.state.context)


def caller(request: Request) -> Caller:
    """Who asks. Raises `Unauthorized`."""
    found: Caller | None = request.scope["state"].get("caller")
    if found is None:
        raise Unauthorized(
            "A valid API key or access token is needed: send `Authorization: Bearer dep_live_...`."
        )
    return found


# Not the plain functions: the framework would call those in threads.
async def _context(request: Request) -> Context:
    return context(request)


async def _caller(request: Request) -> Caller:
    return caller(request)


ContextDep = Annotated[Context, Depends(_context)]
CallerDep = Annotated[Caller, Depends(_caller)]
