"""Whether the API lives and can do its work."""

from functools import cache
from typing import Literal

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from deployerp.api.contract.dependencies import ContextDep
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import ErrorEnvelope
from deployerp.core.errors import Unavailable
from deployerp.migrations import configuration

router = APIRouter(tags=["health"], route_class=Route)


class Health(BaseModel):
    status: Literal["ok"] = Field(description="The process responds: `ok`.", examples=["ok"])


class Readiness(BaseModel):
    status: Literal["ready"] = Field(
        description="The database and Temporal respond: `ready`.", examples=["ready"]
    )


@router.get("/healthz", summary="Check liveness")
@public
async def get_health() -> Health:
    """Returns 200 while the process responds."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"description": "`unavailable`", "model": ErrorEnvelope}},
    summary="Check readiness",
)
@public
async def get_readiness(shared: ContextDep) -> Readiness:
    """Returns 200 if the database and Temporal respond.

    Without Temporal, changes are accepted and start later.
    """
    async with shared.sessions() as session:
        connection = await session.connection()
        revision = await connection.run_sync(_revision)
    if revision is None or revision in _outdated():
        raise Unavailable("The database schema is missing or out of date: run `deployerp migrate`.")
    if not await shared.temporal.is_ready():
        raise Unavailable("Temporal does not answer: work is accepted and starts when it is back.")
    return Readiness(status="ready")


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
