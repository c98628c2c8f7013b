"""Where events are sent."""

import base64
import secrets
from datetime import datetime
from fnmatch import fnmatchcase
from uuid import UUID

from sqlmodel import Field

from deployerp.domain.base import Record, json_field, time_field


class WebhookEndpoint(Record, table=True):
    __tablename__ = "webhook_endpoints"

    organization_id: UUID = Field(foreign_key="organizations.id", index=True)
    url: str
    description: str | None = None
    types: list[str] = json_field()
    sealed_secret: str
    enabled: bool = True
    disabled_reason: str | None = None
    deleted_at: datetime | None = time_field()

    def wants(self, event_type: str) -> bool:
        return self.enabled and any(fnmatchcase(event_type, pattern) for pattern in self.types)


def new_webhook_secret() -> str:
    """A secret as Standard Webhooks wants it: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
