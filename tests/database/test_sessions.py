"""Connections are closed, whenever those who use them come to their end."""

from typing import Any

from sqlalchemy import text

from deployerp.database.sessions import open_database, session_factory


async def test_a_connection_that_is_given_back_after_the_end_is_closed(database_url: str) -> None:
    engine = open_database(database_url)
    async with session_factory(engine)() as session:
        await session.execute(text("SELECT 1"))
        raw = await (await session.connection()).get_raw_connection()
        driver: Any = raw.driver_connection
        await engine.dispose()
        assert not is_closed(driver)
    assert is_closed(driver)


def is_closed(driver: Any) -> bool:
    """Of asyncpg's and aiosqlite's connections."""
    return bool(driver.is_closed()) if hasattr(driver, "is_closed") else driver._connection is None
