"""A table with a lifecycle is all that a new type of resource needs to be ordered, run, ended and told of."""

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar
from uuid import UUID

import pytest
from sqlalchemy import Table, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, col

from deployerp.activities.records import Records
from deployerp.core.errors import InvalidState, OperationInProgress
from deployerp.database.sessions import SessionFactory
from deployerp.domain.events.event import Event
from deployerp.domain.events.facts import Facts, sample_id
from deployerp.domain.events.types import EVENT_TYPES, lifecycle_event_types
from deployerp.domain.operations.holds import release_holds
from deployerp.domain.operations.lifecycles import Action, Lifecycle, Requirement, lifecycle
from deployerp.domain.operations.messages import OperationEnd
from deployerp.domain.operations.operation import Operation, OperationHold
from deployerp.domain.operations.ordering import SYSTEM, Actor, order, parameters_of, supersede
from deployerp.domain.operations.stateful import STATEFUL, Stateful, state_constraints
from deployerp.domain.organizations import Organization
from deployerp.domain.providers import Provider
from deployerp.domain.servers import Server
from deployerp.domain.tables import metadata


@dataclass(frozen=True)
class CopyParameters:
    """Where the copy goes, and how much of it."""

    destination: UUID
    percent: int = 100


COPY = lifecycle(
    "copy",
    ("pending", "copying", "running", "checking", "deleting", "deleted", "failed"),
    Action(
        "make", ("pending",), "copying", "running", "manage:copies", "MakeCopy", "copy.made",
        on_failure="failed", requires=Requirement("server", "server_id", ("running",), reads=True),
        parameters=CopyParameters,
    ),
    Action("check", ("running",), "checking", "running", "manage:copies", "CheckCopy", "copy.checked"),
)  # fmt: skip


class CopyFacts(Facts):
    name: str
    status: str


@cache
def declare() -> type[Any]:
    """The table; once in a process, since a class is mapped once."""

    class Copy(Stateful, table=True):
        __tablename__ = "copies"
        __table_args__ = state_constraints(COPY)
        lifecycle: ClassVar[Lifecycle] = COPY
        sample: ClassVar[Facts] = CopyFacts(id=sample_id(9), name="first", status="running")

        server_id: UUID = Field(foreign_key="servers.id")

    return Copy


@pytest.fixture
async def copies(database: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """The table in the database and the registry, for the time of the test."""
    copies = declare()
    # Of other tests in this process it is no part.
    STATEFUL.pop("copy", None)
    table: Table = copies.__table__
    if "copies" in metadata.tables:
        metadata.remove(table)
    async with database.begin() as connection:
        await connection.run_sync(table.create)
    monkeypatch.setitem(STATEFUL, "copy", copies)
    for row in lifecycle_event_types(copies):
        monkeypatch.setitem(EVENT_TYPES, row.name, row)  # type: ignore[arg-type]
    return copies


@pytest.fixture
async def server(sessions: SessionFactory) -> Server:
    organization = Organization(name="Acme", slug="acme-of-copies")
    provider = Provider(organization_id=organization.id, name="here", kind="docker", sealed_credentials="")
    server = Server(
        organization_id=organization.id, provider_id=provider.id, name="one", size="small", status="running"
    )
    async with sessions() as session, session.begin():
        for record in (organization, provider, server):
            session.add(record)
            await session.flush()
    return server


async def ordered(sessions: SessionFactory, copy: Stateful, name: str, **options: Any) -> Operation:
    async with sessions() as session, session.begin():
        if name == "make":
            options.setdefault("parameters", CopyParameters(destination=copy.id))
        if name == "make" and "retry_of" not in options:
            session.add(copy)
            await session.flush()
        else:
            copy = await session.get_one(type(copy), copy.id, with_for_update=True)
        return await order(session, SYSTEM, copy, name, **options)


async def test_it_goes_from_its_order_to_its_end(
    copies: type[Any], server: Server, sessions: SessionFactory, records: Records
) -> None:
    copy = copies(organization_id=server.organization_id, server_id=server.id, name="Of Monday")
    parameters = CopyParameters(destination=server.id, percent=50)
    operation = await ordered(sessions, copy, "make", parameters=parameters)
    assert operation.order.workflow_id == f"copy-make.of-monday.{operation.id}"
    assert parameters_of(operation.order, CopyParameters) == parameters
    assert (await records.get(copies, copy.id)).status == "pending"

    assert await records.claim_operation(operation.order)
    assert (await records.get(copies, copy.id)).status == "copying"
    await records.end_operation(OperationEnd(operation.order, "failed", "engine_error", "The disk is full."))
    failed = await records.get(copies, copy.id)
    assert (failed.status, failed.status_message, failed.health) == ("failed", "The disk is full.", "unknown")

    again = await ordered(sessions, copy, "make", retry_of=operation)
    assert again.parameters == operation.parameters
    with pytest.raises(OperationInProgress):
        await ordered(sessions, copy, "check")
    assert await records.claim_operation(again.order)
    await records.end_operation(OperationEnd(again.order, "succeeded"))
    made = await records.get(copies, copy.id)
    assert (made.status, made.status_message, made.health) == ("running", None, "healthy")
    assert made.state_changed_at > failed.state_changed_at

    events = await records.find(select(Event).where(col(Event.resource_id) == copy.id).order_by("sequence"))
    assert [each.type for each in events] == ["copy.make_failed", "copy.made"]
    assert events[-1].data == {"id": str(copy.id), "name": "Of Monday", "status": "running"}
    held = select(OperationHold).where(col(OperationHold.resource_id) == copy.id)
    assert await records.find(held) == []


async def test_what_its_action_requires_is_checked_for_a_retry_too(
    copies: type[Any], server: Server, sessions: SessionFactory, records: Records
) -> None:
    copy = copies(organization_id=server.organization_id, server_id=server.id, name="first")
    operation = await ordered(sessions, copy, "make", parameters=CopyParameters(destination=server.id))
    assert await records.claim_operation(operation.order)
    await records.end_operation(OperationEnd(operation.order, "failed", "engine_error", "It broke."))
    async with sessions() as session, session.begin():
        (await session.get_one(Server, server.id)).move("stopped")
    with pytest.raises(InvalidState, match="The server one is stopped, and `make` needs it to be running"):
        await ordered(sessions, copy, "make", retry_of=operation)


async def test_an_action_takes_the_parameters_that_it_declares(
    copies: type[Any], server: Server, sessions: SessionFactory
) -> None:
    copy = copies(organization_id=server.organization_id, server_id=server.id, name="first")
    for parameters in (None, {"destination": str(server.id)}, Actor()):
        with pytest.raises(TypeError, match="make takes CopyParameters"):
            await ordered(sessions, copy, "make", parameters=parameters)


def copy_of(server: Server, copies: type[Any], name: str = "first") -> Any:
    return copies(organization_id=server.organization_id, server_id=server.id, name=name)


async def test_what_an_operation_reads_is_not_changed_meanwhile(
    copies: type[Any], server: Server, sessions: SessionFactory, records: Records
) -> None:
    first = await ordered(sessions, copy_of(server, copies), "make")
    second = await ordered(sessions, copy_of(server, copies, "second"), "make")
    with pytest.raises(OperationInProgress, match="Operation `make` runs on copy second") as caught:
        await ordered(sessions, server, "stop")
    assert caught.value.details == {"operation_id": str(second.id)}
    for operation in (first, second):
        assert await records.claim_operation(operation.order)
        await records.end_operation(OperationEnd(operation.order, "succeeded"))
    assert (await records.get(Server, server.id)).status == "running"
    await ordered(sessions, server, "stop")


async def test_what_is_being_changed_is_not_read(
    copies: type[Any], server: Server, sessions: SessionFactory
) -> None:
    stop = await ordered(sessions, server, "stop")
    with pytest.raises(OperationInProgress, match="Operation `stop` runs on server one") as caught:
        await ordered(sessions, copy_of(server, copies), "make")
    assert caught.value.details == {"operation_id": str(stop.id)}


async def test_of_a_reader_and_a_writer_at_once_one_is_refused(
    copies: type[Any], server: Server, sessions: SessionFactory
) -> None:
    async def attempt(resource: Stateful, name: str) -> Operation | None:
        try:
            return await ordered(sessions, resource, name)
        except OperationInProgress:
            return None

    for number in range(5):
        copy = copy_of(server, copies, f"copy {number}")
        begun = await asyncio.gather(attempt(copy, "make"), attempt(server, "stop"))
        [operation] = [each for each in begun if each]
        async with sessions() as session, session.begin():
            await release_holds(session, operation)
            (await session.get_one(Server, server.id)).move("running")


async def test_an_operation_reads_what_its_parent_changes(
    copies: type[Any], server: Server, sessions: SessionFactory
) -> None:
    """As a backup does that the deletion of its instance has ordered."""
    parent = await ordered(sessions, server, "restart")
    async with sessions() as session, session.begin():
        (await session.get_one(Server, server.id)).move("running")
    child = await ordered(sessions, copy_of(server, copies), "make", parent=parent)
    assert child.parent_id == parent.id


async def test_a_deletion_by_force_closes_the_operations_that_read(
    copies: type[Any], server: Server, sessions: SessionFactory, records: Records
) -> None:
    copy = copy_of(server, copies)
    operation = await ordered(sessions, copy, "make")
    assert await records.claim_operation(operation.order)
    async with sessions() as session, session.begin():
        locked = await session.get_one(Server, server.id, with_for_update=True)
        assert [each.id for each in await supersede(session, locked)] == [operation.id]
        await order(session, SYSTEM, locked, "delete", force=True)
    closed = await records.get(Operation, operation.id)
    assert (closed.state, closed.error_code) == ("cancelled", "superseded")
    left = await records.get(copies, copy.id)
    assert (left.status, left.status_message) == ("failed", "The server was deleted by force.")
    events = await records.find(select(Event.type).where(col(Event.resource_id) == copy.id))
    assert events == ["copy.make_failed"]


async def test_a_deletion_by_force_and_the_end_of_a_reader_make_no_deadlock(
    copies: type[Any], server: Server, sessions: SessionFactory, records: Records
) -> None:
    async def supersede_readers() -> None:
        async with sessions() as session, session.begin():
            await supersede(session, await session.get_one(Server, server.id, with_for_update=True))

    for number in range(10):
        copy = copy_of(server, copies, f"copy {number}")
        operation = await ordered(sessions, copy, "make")
        assert await records.claim_operation(operation.order)
        end = OperationEnd(operation.order, "succeeded")
        await asyncio.gather(supersede_readers(), records.end_operation(end))
        # Whoever came first has decided, and both agree.
        ended = await records.get(Operation, operation.id)
        left = await records.get(copies, copy.id)
        assert (ended.state, left.status) in {("succeeded", "running"), ("cancelled", "failed")}
