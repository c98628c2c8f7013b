"""The one way into every endpoint: who may, in which transaction, answered how often, told to the log."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from deployerp.api.contract import dependencies
from deployerp.api.contract.changes import Check, Handler, carry_out
from deployerp.api.contract.schemas import shown_once
from deployerp.core.errors import MethodNotAllowed

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
SAFE = {"GET", "HEAD", "OPTIONS"}
# Of an endpoint that asks for no permission.
PUBLIC = "public"
# How long an endpoint stays after it was declared old.
NOTICE = timedelta(days=180)


@dataclass(frozen=True)
class Deprecation:
    """When an endpoint was declared old, when it goes, and where it is told what to use instead."""

    since: datetime
    sunset: datetime
    link: str

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """`Deprecation` (RFC 9745) and `Sunset` (RFC 8594), as ASGI has them."""
        told = {
            b"deprecation": f"@{int(self.since.timestamp())}",
            b"sunset": format_datetime(self.sunset.astimezone(UTC), usegmt=True),
            b"link": f'<{self.link}>; rel="deprecation"; type="text/html"',
        }
        return [(name, value.encode()) for name, value in told.items()]


def needs(permission: str) -> Callable[[Endpoint], Endpoint]:
    """Declares what a caller must be allowed."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["permission"] = permission
        return endpoint

    return declare


def checked_by(check: Check) -> Callable[[Endpoint], Endpoint]:
    """Declares a check that runs before the endpoint's transaction; it raises what the request gets."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["check"] = check
        return endpoint

    return declare


def public(endpoint: Endpoint) -> Endpoint:
    """Declares that anybody may call, and that nothing is done in an organization's name."""
    return needs(PUBLIC)(endpoint)


def deprecated(since: datetime, sunset: datetime, link: str) -> Callable[[Endpoint], Endpoint]:
    """Declares an endpoint old; every answer of it says so. Raises `ValueError` for too short a notice."""
    if sunset - since < NOTICE:
        raise ValueError(f"an endpoint that is declared old stays for {NOTICE.days} days at least")

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["deprecation"] = Deprecation(since, sunset, link)
        return endpoint

    return declare


class Route(APIRoute):
    """An endpoint behind its permission; one that changes something, in one transaction."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        permission: str | None = getattr(endpoint, "permission", None)
        if permission is None:
            raise TypeError(f"{endpoint.__name__} must declare `@needs(...)` or `@public`")
        self.permission = permission
        self.check: Check | None = getattr(endpoint, "check", None)
        self.deprecation: Deprecation | None = getattr(endpoint, "deprecation", None)
        options["generate_unique_id_function"] = _operation_id
        options["deprecated"] = self.deprecation is not None or None
        # HEAD would have a stream go on without end, with nobody to read it.
        self.streams = options.get("response_class") is StreamingResponse
        super().__init__(path, endpoint, **options)
        if self.methods and "GET" in self.methods:
            # The same answer; the server leaves its body out.
            self.methods.add("HEAD")

    @property
    def described_methods(self) -> set[str]:
        """Without HEAD, which goes with every GET: clients would be given each of their functions twice."""
        return (self.methods or set()) - {"HEAD"}

    def get_route_handler(self) -> Handler:
        handle = self._guarded(super().get_route_handler())
        handle = _refusing_head(handle) if self.streams else handle
        return handle if self.deprecation is None else _told_old(handle, self.deprecation)

    def _guarded(self, handle: Handler) -> Handler:
        permission = self.permission
        if permission == PUBLIC:
            return handle
        changes = not (self.methods or set()) <= SAFE
        name, secrets, check = self.name, shown_once(self.response_model), self.check

        async def guarded(request: Request) -> Response:
            caller = dependencies.caller(request)
            caller.need(permission)
            if not changes:
                return await handle(request)
            return await carry_out(request, caller, name, handle, secrets, check)

        return guarded


def _refusing_head(handle: Handler) -> Handler:
    # Not by a route without HEAD: the framework would go on to `/{id}` with the path of the stream.
    async def refuse_head(request: Request) -> Response:
        if request.method == "HEAD":
            raise HTTPException(MethodNotAllowed.status)
        return await handle(request)

    return refuse_head


def _told_old(handle: Handler, deprecation: Deprecation) -> Handler:
    async def told(request: Request) -> Response:
        # Not on the answer itself: errors are answered elsewhere.
        request.scope["state"]["headers"].extend(deprecation.headers)
        return await handle(request)

    return told


def _operation_id(route: APIRoute) -> str:
    return route.name
