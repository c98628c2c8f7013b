"""All that is in the database, to see whether something has changed."""

from collections import Counter

from sqlalchemy import select

from deployerp.database.sessions import SessionFactory
from deployerp.domain.tables import metadata

# That a key was used or a request was counted is no change.
_BESIDE = {"last_used_at", "rate_windows"}


async def everything(sessions: SessionFactory) -> dict[str, Counter[str]]:
    """The rows of every table by its name."""
    found = {}
    async with sessions() as session:
        for table in metadata.sorted_tables:
            if table.name not in _BESIDE:
                columns = [each for each in table.columns if each.name not in _BESIDE]
                found[table.name] = Counter(map(repr, await session.execute(select(*columns))))
    return found
