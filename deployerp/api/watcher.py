"""Who follows the event log of which organization, and one look for all of them."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlmodel import col

from deployerp.domain.database import SessionFactory
from deployerp.domain.organizations import Organization

_LOOK_SECONDS = 0.5
log = structlog.get_logger()


class Followed:
    """An organization's log, up to which sequence it is known to go."""

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


class Watcher:
    """Looks for new events of all organizations that somebody follows, in one statement.

    It looks as the control plane itself; what is new everybody reads in their own name.
    """

    def __init__(self, sessions: SessionFactory) -> None:
        self._sessions = sessions
        self._followed: dict[UUID, Followed] = {}
        # Whoever follows need not wait: nobody looks.
        self.closed = asyncio.Event()
        self.closed.set()

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        self.closed.clear()
        looking = asyncio.create_task(self._look_out())
        yield
        self.close()
        await looking

    def close(self) -> None:
        self.closed.set()

    @contextmanager
    def following(self, organization_id: UUID) -> Iterator[Followed]:
        followed = self._followed.setdefault(organization_id, Followed())
        followed.followers += 1
        try:
            yield followed
        finally:
            followed.followers -= 1
            if not followed.followers:
                del self._followed[organization_id]

    def followers(self, organization_id: UUID) -> int:
        """How many of an organization follow its log in this process."""
        followed = self._followed.get(organization_id)
        return followed.followers if followed else 0

    async def latest(self, organization_id: UUID) -> int:
        """The sequence of an organization's latest event; 0 where there is none."""
        return (await self._look([organization_id]))[organization_id]

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
        followed = dict(self._followed)
        if followed:
            for organization_id, latest in (await self._look(followed)).items():
                followed[organization_id].move(latest)

    async def _look(self, organizations: Iterable[UUID]) -> dict[UUID, int]:
        columns = col(Organization.id), col(Organization.event_sequence)
        async with self._sessions() as session:
            found = await session.execute(select(*columns).where(columns[0].in_(organizations)))
            return {row.id: row.event_sequence for row in found}
