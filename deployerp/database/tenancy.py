"""Whose rows a request sees and writes."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

# What requests of a tenant are on PostgreSQL, where row level security holds them to their organization.
TENANT_ROLE = "deployerp_tenant"
TENANT_SETTING = "deployerp.organization_id"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organization as the owner of rows.

    Fields that narrow it, such as a project, are added here, and to the statements and policies that read
    them.
    """

    organization_id: UUID

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of statements that read its rows."""
        return {"organization_id": self.organization_id}

    def owns(self, record: Any) -> bool:
        """Whether a record, or a row with this column, is its own."""
        owner = record["organization_id"] if isinstance(record, dict) else record.organization_id
        return bool(owner == self.organization_id)
