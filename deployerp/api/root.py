"""The front page: what this is, and where to go."""

from fastapi import APIRouter, Request, Response
from pydantic import Field

from deployerp import __version__
from deployerp.api.contract.envelope import respond
from deployerp.api.contract.errors import limited
from deployerp.api.contract.routes import Route, public
from deployerp.api.contract.schemas import Envelope, View

router = APIRouter(tags=["health"], route_class=Route)
_LINKS = {"openapi": "/openapi.json", "playground": "/playground", "health": "/healthz"}


class Front(View):
    name: str = Field(description="Name of the product.", examples=["deployERP"])
    version: str = Field(description="Version of the control plane.", examples=[__version__])
    links: dict[str, str] = Field(description="Paths by name.", examples=[_LINKS])


@router.get("/", responses=limited(), response_model=Envelope[Front], summary="Get the version")
@public
async def get_root(request: Request) -> Response:
    """Returns the name and version of the control plane, and links."""
    return respond(request, {"name": "deployERP", "version": __version__, "links": _LINKS})
