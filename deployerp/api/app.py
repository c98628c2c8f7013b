"""The application: its parts put together, and what every route shares."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from deployerp import __version__
from deployerp.api import (
    api_keys,
    audit_log,
    auth,
    cors,
    event_types,
    events,
    health,
    instances,
    me,
    operations,
    passwords,
    providers,
    root,
    servers,
    users,
    webhook_deliveries,
    webhook_endpoints,
)
from deployerp.api.access.authentication import Authenticator
from deployerp.api.access.guesses import Guesses
from deployerp.api.access.rate_limits import Limiter
from deployerp.api.contract import errors
from deployerp.api.contract.dependencies import Context
from deployerp.api.contract.request_ids import RequestIds
from deployerp.api.contract.totals import Totals
from deployerp.api.contract.watcher import Watcher
from deployerp.api.gate import Gate
from deployerp.api.reference import playground
from deployerp.api.reference.document import document
from deployerp.core.background import Background
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.reads import open_reader
from deployerp.database.sessions import open_database, session_factory
from deployerp.domain import tables  # noqa: F401  (foreign keys find every table)
from deployerp.domain.rate_windows import open_connections
from deployerp.drivers.queries import Queries
from deployerp.drivers.temporal import Temporal

# The most asked for first: routes are tried in their order.
ROUTERS = (
    instances.router,
    servers.router,
    operations.router,
    events.router,
    event_types.router,
    providers.router,
    webhook_endpoints.router,
    webhook_deliveries.router,
    auth.router,
    me.router,
    passwords.router,
    users.router,
    api_keys.router,
    audit_log.router,
    root.router,
    health.router,
)


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """What requests share."""
    database = open_database(settings.database_url)
    sessions = session_factory(database)
    background = Background()
    counting = open_connections(settings.database_url) if database.dialect.name == "postgresql" else None
    limiter = Limiter(sessions, counting)
    vault = Vault(settings.encryption_keys)
    context = Context(
        settings=settings,
        sessions=sessions,
        reader=open_reader(settings.database_url, database, sessions),
        temporal=await Temporal.open(settings),
        queries=Queries(settings.worker_url, vault),
        vault=vault,
        authenticator=Authenticator(settings, sessions, background),
        limiter=limiter,
        guesses=Guesses(limiter),
        totals=Totals(),
        background=background,
        watcher=Watcher(sessions),
    )
    try:
        yield context
    finally:
        await context.background.drain()
        await context.queries.close()
        await context.reader.close()
        if counting is not None:
            await counting.close()
        await database.dispose()


def create_app(settings: Settings) -> FastAPI:
    """The API over the database and the Temporal of the settings; both are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings) as context, context.watcher.looking():
            app.state.context = context
            yield

    app = FastAPI(
        title="deployERP",
        version=__version__,
        summary="The control plane for fleets of Odoo.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # It would lead to whatever the request calls the host.
        redirect_slashes=False,
    )
    # The last one added is the first to see a request.
    app.add_middleware(Gate)
    app.add_middleware(RequestIds)
    cors.install(app, settings)
    errors.install(app)
    playground.install(app)
    for router in ROUTERS:
        # Not included, which would have every request look through routers within routers.
        app.router.routes.extend(router.routes)
    app.openapi = lambda: _contract(app)  # type: ignore[method-assign]
    return app


def _contract(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = document(app)
    return app.openapi_schema
