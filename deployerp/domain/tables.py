"""All tables: importing this module registers them, so that foreign keys and types of resources are found."""

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
    releases,
    servers,
    set_password_tokens,
    users,
)
from deployerp.domain.audit import log  # noqa: F401
from deployerp.domain.events import event  # noqa: F401
from deployerp.domain.operations import operation  # noqa: F401
from deployerp.domain.operations.lifecycles import Lifecycle
from deployerp.domain.operations.stateful import STATEFUL
from deployerp.domain.webhooks import deliveries, endpoints  # noqa: F401

__all__ = ["lifecycles", "metadata"]


def lifecycles() -> dict[str, Lifecycle]:
    """The lifecycle of each type of resource, sorted, whatever was imported first."""
    return {name: table.lifecycle for name, table in sorted(STATEFUL.items())}
