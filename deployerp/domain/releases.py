"""One deployed state of an instance: what its containers are made of, and the slot in which they run."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Index, and_
from sqlmodel import Field, col

from deployerp.database.base import Record, one_of, where

COLOURS = ("blue", "green")


class Release(Record, table=True):
    __tablename__ = "releases"
    __table_args__ = (
        one_of("colour", COLOURS),
        Index(
            "uq_releases_active_instance_id",
            "instance_id",
            unique=True,
            **where("is_active"),
        ),
    )

    organization_id: UUID = Field(foreign_key="organizations.id")
    instance_id: UUID = Field(foreign_key="instances.id", index=True)
    # A release starts beside the one that it replaces, so their containers need different names.
    colour: str = COLOURS[0]
    # The instance's route leads to it. An instance has one such release.
    is_active: bool = True
    # Names of images, and their digests; None until the deploy chooses them.
    postgres_image: str | None = None
    postgres_digest: str | None = None
    odoo_image: str | None = None
    odoo_digest: str | None = None


def active_release(instance_id: Any) -> ColumnElement[bool]:
    """The condition that finds the release to which an instance's route leads; takes an id or its column."""
    return and_(col(Release.instance_id) == instance_id, col(Release.is_active))
