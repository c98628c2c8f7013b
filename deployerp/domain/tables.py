"""Importing this module registers every table in the metadata, so that foreign keys find each other."""

from deployerp.database.base import metadata
from deployerp.domain import (  # noqa: F401
    api_keys,
    idempotency,
    installations,
    instances,
    organizations,
    providers,
    rate_windows,
    refresh_tokens,
    servers,
    set_password_tokens,
    users,
)
from deployerp.domain.audit import log  # noqa: F401
from deployerp.domain.events import event  # noqa: F401
from deployerp.domain.operations import operation  # noqa: F401
from deployerp.domain.webhooks import deliveries, endpoints  # noqa: F401

__all__ = ["metadata"]
