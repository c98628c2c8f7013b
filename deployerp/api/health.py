"""Whether the API lives and can do its work."""

from fastapi import APIRouter
from sqlalchemy import text

from deployerp.api.deps import ContextDep
from deployerp.api.routes import Route, public
from deployerp.domain.errors import Unavailable

router = APIRouter(tags=["health"], route_class=Route)


@router.get("/healthz")
@public
async def get_health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "A part is missing."}})
@public
async def get_readiness(shared: ContextDep) -> dict[str, str]:
    """The database and Temporal answer too. Without Temporal changes are still accepted and start later."""
    async with shared.sessions() as session:
        await session.execute(text("SELECT 1"))
    if not await shared.temporal.is_ready():
        raise Unavailable("Temporal does not answer: work is accepted and starts when it is back.")
    return {"status": "ready"}
