"""Whether the API lives and can do its work."""

from functools import cache

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import APIRouter
from sqlalchemy import Connection

from deployerp.api.contract.dependencies import ContextDep
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import ErrorEnvelope
from deployerp.core.errors import Unavailable
from deployerp.migrations import configuration

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/healthz")
@public
async def get_health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "`unavailable`", "model": ErrorEnvelope}})
@public
async def get_readiness(shared: ContextDep) -> dict[str, str]:
    """The database and Temporal answer too. Without Temporal changes are still accepted and start later."""
    async with shared.sessions() as session:
        connection = await session.connection()
        revision = await connection.run_sync(_revision)
    if revision is None or revision in _outdated():
        raise Unavailable("The database schema is missing or out of date: run `deployerp migrate`.")
    if not await shared.temporal.is_ready():
        raise Unavailable("Temporal does not answer: work is accepted and starts when it is back.")
    return {"status": "ready"}


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _outdated() -> frozenset[str]:
    """The revisions before this version's.

    One that is not known here is a newer version's, which migrates before its processes take over.
    """
    scripts = ScriptDirectory.from_config(configuration("")).walk_revisions()
    _head, *older = (script.revision for script in scripts)
    return frozenset(older)
