"""Seals every secret in the database with the first encryption key, so that the others can be removed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Column, Table, select, update

from deployerp.core.errors import DecryptionFailed
from deployerp.core.secrets import Vault
from deployerp.database.sessions import SessionFactory
from deployerp.domain.tables import metadata

_BATCH = 200


@dataclass
class Resealed:
    """How many secrets of a table are sealed anew, were so already, and open with no configured key."""

    table: str
    resealed: int = 0
    current: int = 0
    unreadable: int = 0


def sealed_columns() -> dict[Table, list[Column[Any]]]:
    """What `Vault.seal` has sealed, by the name that such a column must have: `sealed_...`."""
    found = {
        table: [column for column in table.columns if column.name.startswith("sealed_")]
        for table in metadata.sorted_tables
    }
    return {table: columns for table, columns in found.items() if columns}


async def reseal(sessions: SessionFactory, vault: Vault) -> list[Resealed]:
    """Goes over all tables, a batch of rows in a transaction; done again, it goes on where it ended."""
    return [await _reseal_table(sessions, vault, *each) for each in sealed_columns().items()]


async def _reseal_table(
    sessions: SessionFactory, vault: Vault, table: Table, columns: Sequence[Column[Any]]
) -> Resealed:
    report = Resealed(table.name)
    last: UUID | None = None
    while True:
        async with sessions() as session, session.begin():
            wanted = select(table.c.id, *columns).order_by(table.c.id).limit(_BATCH).with_for_update()
            rows = (await session.execute(wanted if last is None else wanted.where(table.c.id > last))).all()
            for row_id, *sealed in rows:
                named = zip((column.name for column in columns), sealed, strict=True)
                values = dict(_resealed(vault, named, report))
                if values:
                    # The secret is the same: nothing has changed for those who read the row.
                    kept = {"updated_at": table.c.updated_at}
                    await session.execute(update(table).where(table.c.id == row_id).values(values | kept))
        if len(rows) < _BATCH:
            return report
        last = rows[-1][0]


def _resealed(
    vault: Vault, sealed: Iterator[tuple[str, str | None]], report: Resealed
) -> Iterator[tuple[str, str]]:
    """What of a row is to be written, by the names of its columns; counts all of it."""
    for name, before in sealed:
        if before is None:
            continue
        try:
            after = vault.reseal(before)
        except DecryptionFailed:
            report.unreadable += 1
            continue
        if after is None:
            report.current += 1
        else:
            report.resealed += 1
            yield name, after
