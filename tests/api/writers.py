"""Events as workers write them, without the operations that they come of."""

import asyncio
from uuid import UUID

from deployerp.database.sessions import SessionFactory, open_database, session_factory
from deployerp.domain.events.log import write_event
from deployerp.domain.servers import Server
from tests.api.rows import Planted


async def new_servers(sessions: SessionFactory, organization_id: UUID, count: int = 1) -> list[UUID]:
    return await Planted(sessions, organization_id).add(Server, count)


async def write(sessions: SessionFactory, server_id: UUID, *names: str) -> None:
    """Events of these types about a server, in one transaction."""
    async with sessions() as session, session.begin():
        server = await session.get_one(Server, server_id)
        for name in names:
            await write_event(session, name, server)


async def give_up(sessions: SessionFactory, server_id: UUID) -> None:
    """An event whose transaction does not come to its end."""
    async with sessions() as session:
        await write_event(session, "server.stopped", await session.get_one(Server, server_id))
        await session.rollback()


async def write_at_once(database_url: str, organization_id: UUID, *, writers: int, each: int) -> None:
    """So many events of each of so many writers, who have a connection each; every fifth one is given up."""
    database = open_database(database_url)
    servers = await new_servers(session_factory(database), organization_id, writers)
    await database.dispose()

    async def writer(server_id: UUID) -> None:
        database = open_database(database_url)
        sessions = session_factory(database)
        for number in range(each):
            await write(sessions, server_id, "server.restarted")
            if number % 4 == 0:
                await give_up(sessions, server_id)
        await database.dispose()

    await asyncio.gather(*(writer(server_id) for server_id in servers))
