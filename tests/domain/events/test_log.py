"""Events are written with the change that they tell of, in order, and so are the deliveries they call for."""

from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlmodel import col

from deployerp.core.errors import NotFound
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.events.log import write_event, write_ping
from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.organizations import Organization
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint


async def new_server(sessions: SessionFactory) -> Server:
    """Of an organization of its own."""
    name = f"o-{uuid4().hex[:12]}"
    organization = Organization(name=name, slug=name)
    provider = Provider(organization_id=organization.id, name="here", kind="docker", sealed_credentials="")
    server = Server(organization_id=organization.id, provider_id=provider.id, name="one", size="small")
    async with sessions() as session, session.begin():
        for each in (organization, provider, server):
            session.add(each)
            await session.flush()
    return server


async def new_endpoint(sessions: SessionFactory, server: Server, **facts: object) -> WebhookEndpoint:
    given = {"url": "https://example.com/", "types": ["*"], "sealed_secret": "sealed"} | facts
    endpoint = WebhookEndpoint(organization_id=server.organization_id, **given)
    async with sessions() as session, session.begin():
        session.add(endpoint)
    return endpoint


async def write(sessions: SessionFactory, resource: Server, name: str) -> list[EndpointOrder]:
    async with sessions() as session, session.begin():
        return await write_event(session, name, resource)


async def events_of(sessions: SessionFactory, organization_id: UUID) -> list[Event]:
    mine = select(Event).where(col(Event.organization_id) == organization_id).order_by(col(Event.sequence))
    async with sessions() as session:
        return list(await session.scalars(mine))


async def told_to(sessions: SessionFactory) -> set[UUID]:
    async with sessions() as session:
        return set(await session.scalars(select(col(WebhookDelivery.endpoint_id))))


async def test_events_are_numbered_by_organization(sessions: SessionFactory) -> None:
    one, other = await new_server(sessions), await new_server(sessions)
    for server, name in ((one, "server.created"), (other, "server.created"), (one, "server.stopped")):
        await write(sessions, server, name)
    first, second = await events_of(sessions, one.organization_id)
    assert (first.sequence, first.type, second.sequence, second.type) == (
        1,
        "server.created",
        2,
        "server.stopped",
    )
    assert (first.resource_type, first.resource_id) == ("server", one.id)
    assert first.data == {
        "id": str(one.id),
        "name": "one",
        "status": "pending",
        "statusMessage": None,
        "address": None,
    }
    assert [each.sequence for each in await events_of(sessions, other.organization_id)] == [1]


async def test_what_is_rolled_back_leaves_no_gap(sessions: SessionFactory) -> None:
    server = await new_server(sessions)
    await write(sessions, server, "server.created")
    async with sessions() as session:
        await write_event(session, "server.stopped", server)
        await session.rollback()
    await write(sessions, server, "server.started")
    told = [(each.sequence, each.type) for each in await events_of(sessions, server.organization_id)]
    assert told == [(1, "server.created"), (2, "server.started")]


async def test_an_event_that_is_not_in_the_catalogue_cannot_be_written(sessions: SessionFactory) -> None:
    server = await new_server(sessions)
    with pytest.raises(KeyError):
        await write(sessions, server, "server.exploded")
    assert await events_of(sessions, server.organization_id) == []


async def test_nothing_is_written_for_an_organization_that_there_is_not(sessions: SessionFactory) -> None:
    nowhere = Server(organization_id=uuid4(), provider_id=uuid4(), name="one", size="small")
    with pytest.raises(NotFound):
        await write(sessions, nowhere, "server.created")


async def test_whoever_wants_an_event_gets_it(sessions: SessionFactory) -> None:
    server, elsewhere = await new_server(sessions), await new_server(sessions)
    wanting = [await new_endpoint(sessions, server, types=types) for types in (["*"], ["server.*"])]
    await new_endpoint(sessions, server, types=["instance.*"])
    await new_endpoint(sessions, server, enabled=False)
    await new_endpoint(sessions, server, deleted_at=server.created_at)
    await new_endpoint(sessions, elsewhere)
    woken = await write(sessions, server, "server.created")
    assert await told_to(sessions) == {each.id for each in wanting}
    assert {each.endpoint_id for each in woken} == {str(each.id) for each in wanting}
    # They are awake: whoever wakes them again would only be in their way.
    assert await write(sessions, server, "server.stopped") == []


async def test_an_event_for_one_goes_to_nobody_else(sessions: SessionFactory) -> None:
    server = await new_server(sessions)
    asked = await new_endpoint(sessions, server, types=["instance.*"])
    await new_endpoint(sessions, server)
    async with sessions() as session, session.begin():
        delivery, woken = await write_ping(session, asked)
    assert await told_to(sessions) == {asked.id} == {delivery.endpoint_id}
    assert woken == [asked.order]
    (event,) = await events_of(sessions, server.organization_id)
    assert (event.resource_type, event.resource_id) == ("webhook_endpoint", asked.id)
    assert "https://example.com/" not in str(event.data)
