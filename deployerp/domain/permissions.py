"""Who may do what: levels of API keys and roles of members, over one set of permissions."""

from typing import Annotated, Literal, get_args

from pydantic import Field

Level = Literal["read", "write", "delete", "admin"]
Role = Literal["owner", "admin", "developer", "billing", "viewer"]
LEVELS: tuple[Level, ...] = get_args(Level)
ROLES: tuple[Role, ...] = get_args(Role)
KeyLevel = Annotated[
    Level,
    Field(
        description="Access level: `read`, `write` (includes read), `delete` (includes write) or"
        " `admin` (everything).",
        examples=["write"],
    ),
]
MemberRole = Annotated[
    Role, Field(description="Role of the user in the organization.", examples=["developer"])
]

_Group = dict[str, tuple[str, ...]]
_ALL = ("read", "manage", "delete")
# What the fleet is made of, and what the people and the money around it are; and what can be done to each.
_FLEET: _Group = {
    "servers": _ALL,
    "instances": _ALL,
    "providers": _ALL,
    "operations": ("read", "manage"),
    "events": ("read",),
    "webhook-endpoints": _ALL,
    "webhook-deliveries": ("read", "manage"),
}
_PEOPLE: _Group = {"api-keys": _ALL, "users": _ALL, "audit-log": ("read",)}
_MONEY: _Group = {"billing": ("read", "manage")}


def _can(verbs: str, *groups: _Group) -> frozenset[str]:
    """These of the verbs that there are for each resource of the groups."""
    return frozenset(
        f"{verb}:{name}"
        for group in groups
        for name, possible in group.items()
        for verb in possible
        if verb in verbs.split()
    )


_EVERYTHING = _can("read manage delete", _FLEET, _PEOPLE, _MONEY)

LEVEL_PERMISSIONS: dict[Level, frozenset[str]] = {
    "read": _can("read", _FLEET),
    "write": _can("read manage", _FLEET),
    "delete": _can("read manage delete", _FLEET),
    # What keys can do to keys, people and money must not widen a key: only admin keys touch them.
    "admin": _EVERYTHING,
}

ROLE_PERMISSIONS: dict[Role, frozenset[str]] = {
    "owner": _EVERYTHING,
    "admin": _EVERYTHING - _can("manage", _MONEY),
    # Whoever builds may take down what builders put up, but not the machines and accounts beneath it.
    "developer": _can("read manage", _FLEET) - {"manage:providers"}
    | {"delete:instances", "delete:webhook-endpoints"},
    "billing": _can("read manage", _MONEY) | {"read:users"},
    "viewer": _can("read", _FLEET),
}

PERMISSIONS: frozenset[str] = _EVERYTHING
