"""A change: one transaction for the resource, its operation, the kept answer and the audit log.

What is written here is the outbox: when Temporal does not answer, the sweep starts the workflow.
"""

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, cast
from uuid import UUID

import structlog
from fastapi import Depends, Request, Response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from deployerp.api import deps
from deployerp.api.answers import Data, answer, encode, etag_of, shown, tags_of
from deployerp.api.callers import Caller
from deployerp.api.deps import Context
from deployerp.api.idempotency import keyed
from deployerp.api.requests import address_of
from deployerp.api.schemas import View
from deployerp.domain.audit_log import Change as Changed
from deployerp.domain.audit_log import Deed, Trail, append, snapshot
from deployerp.domain.base import Record
from deployerp.domain.database import tenant_transaction
from deployerp.domain.errors import NotFound, PreconditionFailed
from deployerp.domain.operations import Operation

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Owned = TypeVar("Owned", bound=Record)
log = structlog.get_logger()


@dataclass
class Change:
    """What a request changes, while it does."""

    request: Request
    caller: Caller
    session: AsyncSession
    shared: Context
    # What the request is about: the audit log tells of it,
    about: Record = field(init=False)
    # and of what belongs to it, such as a user's membership.
    parts: list[Record] = field(default_factory=list)
    # Done in turn, beside the answer, once others can see the change; a sweep makes good what is lost.
    afterwards: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def owned(self, model: type[Owned], id: UUID, *, lock: bool = False) -> Owned:
        """The caller's own object; another organization's does not exist for it. Raises `NotFound`.

        With `lock` nobody else changes it before the transaction ends.
        """
        found = await self.session.get(model, id, with_for_update=lock)
        record = cast("Any", found)
        if (
            record is None
            or record.organization_id != self.caller.organization_id
            or getattr(record, "deleted_at", None)
        ):
            raise missing(model.__name__, id)
        return record  # type: ignore[no-any-return]

    async def subject(self, model: type[Owned], view: type[View], id: UUID) -> Owned:
        """The object that the request is about, locked; as `view` tells it, it is what `If-Match` wants.

        Raises `NotFound` and `PreconditionFailed`.
        """
        found = await self.owned(model, id, lock=True)
        self.about = found
        wanted = tags_of(self.request.headers.get("if-match"))
        if wanted and "*" not in wanted and etag_of(encode(shown(view, found))) not in wanted:
            raise PreconditionFailed(
                "It has changed since you read it: read it again and decide anew.",
                details={"etag": etag_of(encode(shown(view, found)))},
            )
        return found

    async def add(self, record: Record, taken: Exception | None = None) -> None:
        """Adds the record that the request is about. Raises `taken` where its name is."""
        self.about = record
        self.session.add(record)
        try:
            await self.session.flush()
        except IntegrityError as error:
            raise (taken or error) from None

    def answer(
        self, data: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        return answer(self.request, data, status=status, headers=headers)

    async def told(self, view: type[View], record: SQLModel, status: int = 200, **more: Any) -> Response:
        """The record as it is now, with its ETag."""
        # What the database sets, such as the time of the update, is known after the flush.
        await self.session.flush()
        data: Data = shown(view, record)
        headers = {"ETag": etag_of(encode(data))}
        return answer(self.request, data | more, status=status, headers=headers)


def snake(name: str) -> str:
    """`WebhookEndpoint` is `webhook_endpoint`."""
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def missing(name: str, id: object) -> NotFound:
    return NotFound(f"There is no {snake(name).replace('_', ' ')} {id}.")


def change(request: Request) -> Change:
    return cast("Change", request.state.change)


ChangeDep = Annotated[Change, Depends(change)]


async def carry_out(request: Request, caller: Caller, name: str, handle: Handler) -> Response:
    """Runs an endpoint in its change; all of it is there afterwards, or nothing."""
    shared = deps.context(request)
    # All of it, before anything is held: a client that sends slowly must not keep others waiting.
    await request.body()
    key = await keyed(request, caller.organization_id)
    async with tenant_transaction(shared.sessions, caller.organization_id) as session:
        if key is not None and (given := await key.replay(session, shared.vault)) is not None:
            return given
        made = request.state.change = Change(request, caller, session, shared)
        trail = Trail(session)
        response = await handle(request)
        if key is not None:
            key.keep(session, shared.vault, response)
        await session.flush()
        # Last of all: whoever else changes something in the organization waits from here to the commit.
        await append(session, caller.organization_id, _deed(made, name, trail.changes()))
    shared.totals.forget(caller.organization_id)
    if made.afterwards:
        shared.background.run(_in_turn(made.afterwards))
    return response


def _deed(made: Change, name: str, changed: Sequence[Changed]) -> Deed:
    """What the audit log tells: of what the request is about, and of the operation that it began or ended."""
    record = made.about
    # One that it has begun, rather than one that it has ended.
    begun_first = sorted(changed, key=lambda each: each.before is not None)
    operation = next((each.record for each in begun_first if isinstance(each.record, Operation)), None)
    forced = {"force": True} if operation is not None and operation.force else {}
    before, after = _before_and_after(made, changed)
    scope = made.request.scope
    return Deed(
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


def _before_and_after(made: Change, changed: Sequence[Changed]) -> tuple[Data | None, Data | None]:
    """What the request is about, with its parts, as it was and as it is."""
    same = snapshot(made.about)
    main = next((each for each in changed if each.record is made.about), Changed(made.about, same, same))
    before, after = main.before, main.after
    for part in [each for each in changed if any(each.record is known for known in made.parts)]:
        before = before and before | _without_id(part.before)
        after = after and after | _without_id(part.after)
    return before, after


def _without_id(told: Data | None) -> Data:
    return {name: value for name, value in (told or {}).items() if name != "id"}


async def _in_turn(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for work in works:
        await work()
