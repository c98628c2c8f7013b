"""Who may do what: levels of API keys mapped onto permissions."""

from typing import Literal, get_args

Level = Literal["read", "write", "delete", "admin"]
LEVELS: tuple[Level, ...] = get_args(Level)

_RESOURCES = (
    "servers",
    "instances",
    "providers",
    "operations",
    "events",
    "webhook-endpoints",
    "webhook-deliveries",
    "api-keys",
)
# What keys can do to keys must not widen a key: only admin keys touch them.
_ADMIN_ONLY = {"manage:api-keys", "delete:api-keys", "read:api-keys"}

_READ = frozenset(f"read:{resource}" for resource in _RESOURCES) - _ADMIN_ONLY
_WRITE = _READ | (frozenset(f"manage:{resource}" for resource in _RESOURCES) - _ADMIN_ONLY)
_DELETE = _WRITE | (frozenset(f"delete:{resource}" for resource in _RESOURCES) - _ADMIN_ONLY)

PERMISSIONS: dict[Level, frozenset[str]] = {
    "read": _READ,
    "write": _WRITE,
    "delete": _DELETE,
    "admin": _DELETE | _ADMIN_ONLY,
}
