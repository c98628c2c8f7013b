"""This control plane among others that may share a cloud account."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.database.base import Record

INSTALLATION_TAG = "deployerp.installation"
"""What its machines carry in a cloud, with the id."""


class Installation(Record, table=True):
    """The one row is made with the table: whoever restores the database is the same installation."""

    __tablename__ = "installations"


async def installation_id(session: AsyncSession) -> UUID:
    found: UUID | None = await session.scalar(select(col(Installation.id)))
    if found is None:
        raise RuntimeError("the database has no installation: run `deployerp migrate`")
    return found
