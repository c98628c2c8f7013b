"""What tests of webhooks share: a receiver, and organizations whose endpoints lead to it."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import select
from sqlmodel import SQLModel, col
from standardwebhooks import Webhook

from deployerp.core.secrets import Vault, new_encryption_key
from deployerp.database.base import new_id
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.log import write_event
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.organizations import Organization
from deployerp.domain.servers import Server
from deployerp.domain.webhooks.deliveries import WebhookAttempt, WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint, new_webhook_secret

VAULT = Vault([SecretStr(new_encryption_key())])
SECRET = new_webhook_secret()

Respond = Callable[[int], web.Response | float | tuple[float, web.Response] | Awaitable[web.Response]]
"""What a receiver does at its n-th request: an answer, seconds of silence before one, both, or a wait."""


@dataclass
class Receiver:
    """A server that takes nothing without a signature that holds."""

    url: str = ""
    requests: list[tuple[dict[str, str], str]] = field(default_factory=list)
    most_at_once: int = 0

    def verify(self, headers: dict[str, str], body: str) -> None:
        """By the standard's library, and by hand."""
        Webhook(SECRET).verify(body, headers)
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
        key = base64.b64decode(SECRET.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert f"v1,{expected}" in headers["webhook-signature"].split()

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    @property
    def bodies(self) -> list[str]:
        return [body for _, body in self.requests]


def always(status: int, **answer: Any) -> Respond:
    return lambda _: web.Response(status=status, **answer)


def statuses(*given: int) -> Respond:
    """One after the other; the last for ever."""
    return lambda number: web.Response(status=given[min(number, len(given)) - 1], text="noted")


@asynccontextmanager
async def receiving(respond: Respond) -> AsyncIterator[Receiver]:
    receiver, now = Receiver(), 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal now
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.text()
        receiver.verify(headers, body)
        receiver.requests.append((headers, body))
        now += 1
        receiver.most_at_once = max(receiver.most_at_once, now)
        try:
            response = respond(len(receiver.requests))
            if isinstance(response, web.Response):
                return response
            if isinstance(response, Awaitable):
                return await response
            seconds, answer = response if isinstance(response, tuple) else (response, web.Response())
            await asyncio.sleep(seconds)
            return answer
        finally:
            now -= 1

    application = web.Application()
    application.router.add_post("/hook", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


Row = TypeVar("Row", bound=SQLModel)


@dataclass
class House:
    """An organization with webhook endpoints, and what happens in it."""

    sessions: SessionFactory
    vault: Vault = VAULT
    organization_id: UUID = field(default_factory=new_id)

    async def found(self) -> "House":
        async with self.sessions() as session, session.begin():
            slug = f"org-{self.organization_id.hex}"
            session.add(Organization(id=self.organization_id, name=slug, slug=slug))
        return self

    async def listen(self, url: str, **facts: Any) -> EndpointOrder:
        """A new endpoint for everything."""
        endpoint = WebhookEndpoint(
            **{
                "organization_id": self.organization_id,
                "url": url,
                "types": ["*"],
                "sealed_secret": self.vault.seal(SECRET),
            }
            | facts
        )
        async with self.sessions() as session, session.begin():
            session.add(endpoint)
        return endpoint.order

    async def happen(self, events: int = 1, **facts: Any) -> list[EndpointOrder]:
        """Events in one transaction; gives the endpoints that are to be woken."""
        woken = []
        async with self.sessions() as session, session.begin():
            for number in range(events):
                server = Server(
                    **{
                        "organization_id": self.organization_id,
                        "provider_id": new_id(),
                        "name": f"s{number}",
                        "size": "small",
                    }
                    | facts
                )
                woken += await write_event(session, "server.started", server)
        return woken

    async def change(self, row: Row, **facts: Any) -> None:
        async with self.sessions() as session, session.begin():
            found = await session.get_one(type(row), row.id)
            found.sqlmodel_update(facts)

    async def endpoint(self, order: EndpointOrder) -> WebhookEndpoint:
        async with self.sessions() as session:
            return await session.get_one(WebhookEndpoint, UUID(order.endpoint_id))

    async def deliveries(self, order: EndpointOrder | None = None) -> list[WebhookDelivery]:
        """In the order in which they were written."""
        query = select(WebhookDelivery).order_by(col(WebhookDelivery.id))
        if order:
            query = query.where(col(WebhookDelivery.endpoint_id) == UUID(order.endpoint_id))
        async with self.sessions() as session:
            return list(await session.scalars(query))

    async def attempts(self, delivery: WebhookDelivery) -> list[WebhookAttempt]:
        query = select(WebhookAttempt).where(col(WebhookAttempt.delivery_id) == delivery.id)
        async with self.sessions() as session:
            return list(await session.scalars(query.order_by(col(WebhookAttempt.number))))
