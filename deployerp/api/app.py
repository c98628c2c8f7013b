"""The application: its parts put together, and what every route shares."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline

from deployerp import __version__
from deployerp.api import (
    errors,
    events,
    health,
    instances,
    operations,
    providers,
    servers,
    webhook_deliveries,
    webhook_endpoints,
)
from deployerp.api.deps import Context
from deployerp.api.requests import RequestIds
from deployerp.domain.database import open_database, session_factory
from deployerp.domain.secrets import Vault
from deployerp.domain.settings import Settings
from deployerp.drivers.temporal import Temporal

ROUTERS = (
    providers.router,
    servers.router,
    instances.router,
    operations.router,
    events.router,
    webhook_endpoints.router,
    webhook_deliveries.router,
    health.router,
)


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """What requests share."""
    database = open_database(settings.database_url)
    yield Context(
        settings=settings,
        sessions=session_factory(database),
        temporal=await Temporal.open(settings),
        vault=Vault(settings.encryption_keys),
    )
    await database.dispose()


def create_app(settings: Settings) -> FastAPI:
    """The API over the database and the Temporal of the settings; both are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings) as app.state.context:
            yield

    app: FastAPI = FastAPIOffline(
        title="deployERP",
        version=__version__,
        summary="The control plane for fleets of Odoo.",
        docs_url="/playground",
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.add_middleware(RequestIds)
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
