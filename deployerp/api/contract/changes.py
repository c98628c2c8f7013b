"""A change: one transaction for the resource, its operation, the kept answer and the audit log.

What is written here is the outbox: when Temporal does not answer, the sweep starts the workflow.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

from fastapi import Depends, Request, Response
from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from deployerp.api.access.addresses import address_of
from deployerp.api.access.callers import Caller
from deployerp.api.contract import dependencies
from deployerp.api.contract.dependencies import Context
from deployerp.api.contract.envelope import Data, etag_of, respond, respond_tagged, serialize, tags_of
from deployerp.api.contract.idempotency import read_idempotency_key
from deployerp.api.contract.schemas import View
from deployerp.core.errors import NotFound, PreconditionFailed
from deployerp.database.base import Record
from deployerp.database.sessions import tenant_transaction
from deployerp.database.statements import Row, Statement, put, run
from deployerp.database.tenancy import Tenant
from deployerp.domain.audit.log import AuditRecord, ChangeTracker, RecordChange, append, snapshot
from deployerp.domain.operations.operation import Operation

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
# Runs before the transaction of a change, because a call to a cloud takes seconds.
Check = Callable[[Request], Coroutine[Any, Any, None]]
Owned = TypeVar("Owned", bound=Record)


@dataclass
class Change:
    """What a request changes, while it does."""

    request: Request
    caller: Caller
    session: AsyncSession
    shared: Context
    tracker: ChangeTracker
    # What the request is about: the audit log tells of it,
    about: Record = field(init=False)
    # and of what belongs to it, such as a user's membership.
    parts: list[Record] = field(default_factory=list)
    # Users and keys that this process looks up anew as soon as the change is there: the next request may
    # come sooner than what is done beside the answer.
    forgotten: list[UUID] = field(default_factory=list)
    # Done in turn, beside the answer, once others can see the change; a sweep makes good what is lost.
    afterwards: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def get_owned(self, model: type[Owned], id: UUID, *, lock: bool = False) -> Owned:
        """The caller's own object; another organization's does not exist for it. Raises `NotFound`.

        With `lock` nobody else changes it before the transaction ends.
        """
        return await get_owned(self.session, model, id, self.caller.tenant, lock=lock)

    async def hold(self, model: type[Record], id: UUID, *names: str) -> Row:
        """These columns of the caller's own row, which stays as it is until the transaction ends.

        For what is needed and not changed. Raises `NotFound`.
        """
        found = await run(self.session, _lock_statement(model, names), {"id": id})
        if not found or not self.caller.tenant.owns(found[0]):
            raise not_found(model.__name__, id)
        return found[0]

    async def subject(self, model: type[Owned], view: type[View], id: UUID) -> Owned:
        """The object that the request is about, locked; as `view` tells it, it is what `If-Match` wants.

        Raises `NotFound` and `PreconditionFailed`.
        """
        found = await self.get_owned(model, id, lock=True)
        self.about = found
        self.expect(serialize(view, found))
        return found

    def expect(self, told: Data) -> None:
        """What the request is about, as it is told, must be what `If-Match` wants.

        Raises `PreconditionFailed`.
        """
        wanted = tags_of(self.request.headers.getlist("if-match"))
        if wanted and not wanted & {"*", tag := etag_of(told)}:
            raise PreconditionFailed(
                "It has changed since you read it: read it again and decide anew.", details={"etag": tag}
            )

    async def add(self, record: Record, taken: Exception | None = None) -> None:
        """Adds the record that the request is about. Raises `taken` where its name is."""
        self.about = record
        await self.put(record, taken)

    async def put(self, record: Record, taken: Exception | None = None) -> None:
        """Inserts a record as it is now. Raises `taken` where a rule of the database forbids it."""
        try:
            await put(self.session, record)
        except IntegrityError as error:
            raise (taken or error) from None
        self.tracker.add(record)

    def answer(
        self, data: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        return respond(self.request, data, status=status, headers=headers)

    async def respond(self, view: type[View], record: SQLModel, status: int = 200, **more: Any) -> Response:
        """The record as it is now, with its ETag."""
        # What the database sets, such as the time of the update, is known after the flush.
        await self.session.flush()
        return respond_tagged(self.request, serialize(view, record), status=status, more=more)


@cache
def _lock_statement(model: type[Record], names: tuple[str, ...]) -> Statement:
    columns = model.__table__.columns  # type: ignore[attr-defined]
    wanted = [columns[name] for name in ("organization_id", *names)]
    found = select(*wanted).where(columns["id"] == bindparam("id", type_=columns["id"].type))
    if "deleted_at" in columns:
        found = found.where(columns["deleted_at"].is_(None))
    return Statement(found.with_for_update())


def snake(name: str) -> str:
    """`WebhookEndpoint` is `webhook_endpoint`."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


async def get_owned(
    session: AsyncSession, model: type[Owned], id: UUID, tenant: Tenant, *, lock: bool = False
) -> Owned:
    """The tenant's own object; another's does not exist for it. Raises `NotFound`."""
    found: Any = await session.get(model, id, with_for_update=lock)
    if found is None or not tenant.owns(found) or getattr(found, "deleted_at", None) is not None:
        raise not_found(model.__name__, id)
    return cast("Owned", found)


def not_found(name: str, id: object) -> NotFound:
    return NotFound(f"There is no {snake(name).replace('_', ' ')} {id}.")


async def change(request: Request) -> Change:
    # Not a plain function: the framework would call that in a thread.
    return cast("Change", request.state.change)


ChangeDep = Annotated[Change, Depends(change)]


async def carry_out(
    request: Request,
    caller: Caller,
    name: str,
    handle: Handler,
    secrets: Sequence[str] = (),
    check: Check | None = None,
) -> Response:
    """Runs an endpoint in its change; all of it is there afterwards, or nothing.

    `secrets` are the fields of the answer that are shown once. `check` runs before the transaction, and not
    for a request whose answer is stored already.
    """
    shared = dependencies.context(request)
    # All of it, before anything is held: a client that sends slowly must not keep others waiting.
    await request.body()
    key = await read_idempotency_key(request, caller)
    if check is not None:
        if key is not None:
            async with tenant_transaction(shared.sessions, caller.tenant) as session:
                if (given := await key.replay(session, shared.vault)) is not None:
                    return given
        await check(request)
    async with tenant_transaction(shared.sessions, caller.tenant) as session:
        if key is not None and (given := await key.replay(session, shared.vault)) is not None:
            return given
        made = request.state.change = Change(request, caller, session, shared, ChangeTracker(session))
        response = await handle(request)
        if key is not None:
            await key.keep(session, shared.vault, response, secrets)
        await session.flush()
        # Last of all: whoever else changes something in the organization waits from here to the commit.
        await append(session, caller.organization_id, _audit_record(made, name, made.tracker.changes()))
    shared.totals.forget(caller.tenant)
    for actor_id in made.forgotten:
        shared.authenticator.forget(actor_id)
    if made.afterwards:
        shared.background.run(_in_turn(made.afterwards))
    return response


def _audit_record(made: Change, name: str, changed: Sequence[RecordChange]) -> AuditRecord:
    """What the audit log tells: of what the request is about, and of the operation that it began or ended."""
    record = made.about
    # One that it has begun, rather than one that it has ended.
    begun_first = sorted(changed, key=lambda each: each.before is not None)
    operation = next((each.record for each in begun_first if isinstance(each.record, Operation)), None)
    forced = {"force": True} if operation is not None and operation.force else {}
    before, after = _before_and_after(made, changed)
    scope = made.request.scope
    return AuditRecord(
        actor_type=made.caller.actor_type,
        actor_id=made.caller.actor_id,
        action=name,
        resource_type=snake(type(record).__name__),
        resource_id=record.id,
        operation_id=operation.id if operation is not None else None,
        address=address_of(scope),
        request_id=scope["state"]["request_id"],
        before=before,
        after=after and after | forced,
    )


def _before_and_after(made: Change, changed: Sequence[RecordChange]) -> tuple[Data | None, Data | None]:
    """What the request is about, with its parts, as it was and as it is."""
    before, after = _of(made.about, changed)
    for part in made.parts:
        part_before, part_after = _of(part, changed)
        before = before and before | _without_id(part_before)
        after = after and after | _without_id(part_after)
    return before, after


def _of(record: Record, changed: Sequence[RecordChange]) -> tuple[Data | None, Data | None]:
    """A record as it was and as it is, also where nothing of it has changed."""
    found = next((each for each in changed if each.record is record), None)
    return (found.before, found.after) if found else (snapshot(record),) * 2


def _without_id(told: Data | None) -> Data:
    return {name: value for name, value in (told or {}).items() if name != "id"}


async def _in_turn(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for work in works:
        await work()
