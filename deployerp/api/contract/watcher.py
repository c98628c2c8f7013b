"""Who follows which organization's event log and which operation, and one look for all of them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col

from deployerp.database.sessions import SessionFactory
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.organizations import Organization

_LOOK_SECONDS = 0.5
log = structlog.get_logger()
# When an operation and each of its steps were changed.
Version = frozenset[object]
F = TypeVar("F", bound="Followed")


class Followed:
    """What grows while others follow it: an organization's log, up to the sequence that is known."""

    def __init__(self) -> None:
        self.followers = 0
        self.latest = 0
        self._moved = asyncio.Event()

    async def beyond(self, sequence: int, *, within: float) -> None:
        """Waits until it goes further, at most so many seconds."""
        if self.latest <= sequence:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._moved.wait()

    def move(self, latest: int) -> None:
        if latest > self.latest:
            self.latest = latest
            # Those who wait have this one; who comes later waits for the next.
            self._moved.set()
            self._moved = asyncio.Event()


class FollowedOperation(Followed):
    """An operation, by the number of changes of it and of its steps that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self._version: Version = frozenset()

    def see(self, version: Version) -> None:
        if version != self._version:
            self._version = version
            self.move(self.latest + 1)


class Watcher:
    """Looks for what is new to all streams of a process, in one statement for each kind.

    It looks as the control plane itself; what is new everybody reads in their own name.
    """

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions
        self._logs: dict[UUID, Followed] = {}
        self._operations: dict[UUID, FollowedOperation] = {}
        self._streams: Counter[UUID] = Counter()
        # Whoever follows need not wait: nobody looks.
        self.closed = asyncio.Event()
        self.closed.set()

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        self.closed.clear()
        looking = asyncio.create_task(self._look_out())
        try:
            yield
        finally:
            self.close()
            await looking

    def close(self) -> None:
        self.closed.set()

    @contextmanager
    def following(self, organization_id: UUID) -> Iterator[Followed]:
        """An organization's log, for one stream."""
        with self._counted(organization_id), _join(self._logs, organization_id, Followed) as log:
            yield log

    @contextmanager
    def following_operation(self, organization_id: UUID, id: UUID) -> Iterator[Followed]:
        """An operation of the organization, for one stream."""
        with self._counted(organization_id), _join(self._operations, id, FollowedOperation) as changes:
            yield changes

    def streams(self, organization_id: UUID) -> int:
        """How many streams an organization has open in this process."""
        return self._streams[organization_id]

    async def latest(self, organization_id: UUID) -> int:
        """The sequence of an organization's latest event; 0 where there is none."""
        return (await self._look([organization_id]))[organization_id]

    @contextmanager
    def _counted(self, organization_id: UUID) -> Iterator[None]:
        self._streams[organization_id] += 1
        try:
            yield
        finally:
            self._streams[organization_id] -= 1
            if not self._streams[organization_id]:
                del self._streams[organization_id]

    async def _look_out(self) -> None:
        while not self.closed.is_set():
            try:
                await self._tell()
            except Exception as error:
                log.error("the event log cannot be watched", reason=repr(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.closed.wait()

    async def _tell(self) -> None:
        logs, operations = dict(self._logs), dict(self._operations)
        if logs:
            for organization_id, latest in (await self._look(logs)).items():
                logs[organization_id].move(latest)
        if operations:
            for operation_id, version in (await self._look_at_operations(operations)).items():
                operations[operation_id].see(version)

    async def _look(self, organizations: Iterable[UUID]) -> dict[UUID, int]:
        columns = col(Organization.id), col(Organization.event_sequence)
        async with self._sessions() as session:
            found = await session.execute(select(*columns).where(columns[0].in_(organizations)))
            return {row.id: row.event_sequence for row in found}

    async def _look_at_operations(self, ids: Iterable[UUID]) -> dict[UUID, Version]:
        operation, step = col(Operation.updated_at), col(OperationStep.updated_at)
        query = (
            select(col(Operation.id), operation, col(OperationStep.id), step)
            .outerjoin(OperationStep, col(OperationStep.operation_id) == col(Operation.id))
            .where(col(Operation.id).in_(ids))
        )
        # Not the latest time alone: the clocks of those who write differ.
        versions: defaultdict[UUID, set[object]] = defaultdict(set)
        async with self._sessions() as session:
            for operation_id, *times in await session.execute(query):
                versions[operation_id].add(tuple(times))
        return {operation_id: frozenset(version) for operation_id, version in versions.items()}


@contextmanager
def _join(followed: dict[UUID, F], id: UUID, new: Callable[[], F]) -> Iterator[F]:
    """What all who follow the same thing share, from the first that comes to the last that goes."""
    shared = followed.setdefault(id, new())
    shared.followers += 1
    try:
        yield shared
    finally:
        shared.followers -= 1
        if not shared.followers:
            del followed[id]
