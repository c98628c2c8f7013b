"""Who asks, and what they may do."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from deployerp.core.errors import Forbidden
from deployerp.database.tenancy import Tenant
from deployerp.domain.plans import Limits

ActorType = Literal["user", "api_key"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for which organization, and what they may do there."""

    tenant: Tenant
    actor_type: ActorType
    actor_id: UUID
    # In words: "level `read`", "role `viewer`".
    holds: str
    permissions: frozenset[str]
    limits: Limits

    @property
    def organization_id(self) -> UUID:
        return self.tenant.organization_id

    def need(self, permission: str) -> None:
        """Raises `Forbidden`."""
        if permission not in self.permissions:
            raise Forbidden(
                f"Your {self.holds} does not include `{permission}`: ask an administrator for it.",
                details={"permission": permission},
            )

    def cover(self, permissions: frozenset[str], of: str, instead: str) -> None:
        """Nobody gives or takes what may do more than they: `of` names it, `instead` says what to do.

        Raises `Forbidden`.
        """
        beyond = permissions - self.permissions
        if beyond:
            raise Forbidden(
                f"Your {self.holds} does not include all of {of}: {instead}.",
                details={"permissions": sorted(beyond)},
            )
