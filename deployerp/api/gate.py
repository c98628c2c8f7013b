"""The door: every request is told apart, counted, and answered with what is left of its limit."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployerp.api.access.addresses import address_of, network_of
from deployerp.api.access.authentication import bearer_of
from deployerp.api.access.callers import Caller
from deployerp.api.access.external_identities import Origin
from deployerp.api.access.rate_limits import RateLimitStatus
from deployerp.api.contract.dependencies import Context
from deployerp.api.contract.errors import NOTHING_HERE, answer_of
from deployerp.api.contract.routes import SAFE
from deployerp.core.errors import DeployError, NotFound, PayloadTooLarge, RateLimitExceeded, Unauthorized
from deployerp.core.secrets import digest
from deployerp.domain.plans import Limits

# Asked by machines that must get an answer, with nothing to be had from them.
_UNCOUNTED = frozenset({"/healthz", "/readyz", "/metrics"})
# Its credentials are in the body: it counts those that are wrong by itself.
_SIGNING_IN = "/v1/auth/"
# Between two tokens of an address that has shown too many that were no good,
_PAUSE = 0.02
# of which so many may wait: longer than they would, nobody waits for an answer.
_MOST_WAITING = 500


class Gate:
    """Pure ASGI: the framework's own base class for middleware would cost two thirds of the speed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
            return
        shared: Context = scope["app"].state.context
        refused: DeployError | None = None
        caller, standing = None, None
        try:
            caller, standing = await _admit(scope, shared)
        except RateLimitExceeded as error:
            refused = error
        state = scope["state"]
        state["caller"] = caller
        if standing is not None:
            state["headers"].extend(standing.headers())
            refused = None if standing.admitted else _refusal(caller, standing)
        if scope["method"] not in SAFE:
            limit = shared.settings.max_body_bytes
            refused = refused or (_too_large(limit) if _length_of(scope) > limit else None)
            receive = _up_to(limit, receive)
        if scope["path"].endswith("\n"):
            # The framework's patterns end before it, and so would have a path that is none of theirs.
            refused = refused or NotFound(NOTHING_HERE)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await answer_of(Request(scope, receive), refused)(scope, receive, send)


async def _admit(scope: Scope, shared: Context) -> tuple[Caller | None, RateLimitStatus | None]:
    """Who asks, and how they stand; where nobody proves who they are, their address is counted."""
    token = bearer_of(scope)
    caller = shared.authenticator.remembered(token) if token is not None else None
    if caller is None:
        address = address_of(scope)
        network = network_of(address)
        limits = Limits(shared.settings.address_requests_per_minute, None)
        if token is not None:
            caller, standing = await _identify(scope, shared, token, address)
            if caller is None:
                return None, standing
        elif scope["path"].startswith(_SIGNING_IN):
            return None, None
        else:
            return None, await shared.limiter.admit(f"address:{network}", limits)
    return caller, await shared.limiter.admit(f"organization:{caller.organization_id}", caller.limits)


async def _identify(
    scope: Scope, shared: Context, token: str, address: str
) -> tuple[Caller | None, RateLimitStatus | None]:
    """Who shows the token; where it is no good, how many more of these its address may show.

    A token that is shown again and again is refused without a look. Others of the address, which may be
    good, are looked up, slowly once too many were not.
    """
    network, limits = network_of(address), Limits(shared.settings.address_requests_per_minute, None)
    guesses, shown = f"refused:{network}", digest(f"{token} {network}")
    if shared.limiter.is_spent(f"refused:{shown}"):
        return None, await shared.limiter.admit(f"refused:{shown}", limits)
    was_spent = shared.limiter.is_spent(guesses)
    if was_spent and not shared.guesses.is_good(shown):
        async with shared.guesses.turn(guesses, pause=_PAUSE, longest=_MOST_WAITING):
            caller = await _look_up(scope, shared, token, address)
    else:
        caller = await _look_up(scope, shared, token, address)
    if caller is not None:
        shared.guesses.remember(shown)
        return caller, None
    shared.guesses.forget(shown)
    if not was_spent:
        # Not of every token that is made up: each takes a row.
        await shared.limiter.admit(f"refused:{shown}", limits)
    return None, await shared.limiter.admit(guesses, limits)


async def _look_up(scope: Scope, shared: Context, token: str, address: str) -> Caller | None:
    try:
        return await shared.authenticator.caller(token, Origin(address, scope["state"]["request_id"]))
    except Unauthorized:
        return None


def _length_of(scope: Scope) -> int:
    """What the request says that its body has; one that comes in chunks says nothing."""
    told = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(told) if told.isdigit() else 0


def _up_to(limit: int, receive: Receive) -> Receive:
    """Gives the body to whoever reads it, who gets an error in place of what is too much."""
    size = 0

    async def receive_within() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            # The one kind of error that the framework's reading of bodies lets through.
            raise HTTPException(PayloadTooLarge.status, _too_large(limit).message)
        return message

    return receive_within


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A body may have {limit} bytes at most: send less at once.")


def _refusal(caller: Caller | None, standing: RateLimitStatus) -> RateLimitExceeded:
    whose = "Your organization's" if caller else "Your address's"
    return RateLimitExceeded(
        f"{whose} requests are spent: try again in {standing.reset} seconds"
        + (", or ask for a larger plan." if caller else ", with a valid key."),
        retry_after=standing.reset,
    )
