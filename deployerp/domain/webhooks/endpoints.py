"""Where events are sent."""

import base64
import secrets
from collections.abc import Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import false
from sqlmodel import Field

from deployerp.core.errors import InvalidState
from deployerp.core.secrets import Vault
from deployerp.database.base import Record, json_field, one_of, time_field
from deployerp.domain.operations.messages import EndpointOrder

WebhookFormat = Literal["raw", "slack", "teams", "discord"]
# Where chats take messages: their URLs hold a secret, and there is no other proof of who may write.
CHAT_HOSTS = (
    "hooks.slack.com",
    "hooks.slack-gov.com",
    "discord.com",
    "discordapp.com",
    "webhook.office.com",
    "logic.azure.com",
    "api.powerplatform.com",
)
MASKED_PATH = "/***"
WEBHOOK_FORMATS: tuple[WebhookFormat, ...] = ("raw", "slack", "teams", "discord")


class WebhookEndpoint(Record, table=True):
    __tablename__ = "webhook_endpoints"
    __table_args__ = (one_of("format", WEBHOOK_FORMATS),)

    organization_id: UUID = Field(foreign_key="organizations.id", index=True)
    url: str
    description: str | None = None
    types: list[str] = json_field()
    format: str = Field(default="raw", sa_column_kwargs={"server_default": "raw"})
    # The names of the headers that it wants, in their order; the values may be secrets.
    header_names: list[str] = json_field(default_factory=list, sa_column_kwargs={"server_default": "[]"})
    sealed_headers: str | None = None
    sealed_secret: str
    # After a rotation both secrets sign until then.
    sealed_old_secret: str | None = None
    old_secret_until: datetime | None = time_field()
    enabled: bool = True
    disabled_reason: str | None = None
    # Since when no attempt has been accepted.
    failing_since: datetime | None = time_field()
    # Whether its workflow looks for deliveries by itself; see `webhook_queue`.
    awake: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    # Whether somebody has changed it since its workflow last read it: the failures before do not count.
    unseen_change: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    deleted_at: datetime | None = time_field()

    @classmethod
    def disclose(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What readers and the audit log see of some of its columns or fields."""
        shown = dict(values)
        # Where the format is not known, it may be one of a chat.
        if "url" in shown and is_secret_url(shown["url"], shown.get("format", "")):
            shown["url"] = mask_url(shown["url"])
        return shown

    def wants(self, event_type: str) -> bool:
        return self.enabled and any(fnmatchcase(event_type, pattern) for pattern in self.types)

    @property
    def why_closed(self) -> str | None:
        """Why nothing is sent to it any more, or for now, and what to do about it; None while it is open."""
        if self.deleted_at is not None:
            return "The endpoint was deleted: make another and replay the events to it."
        if self.enabled:
            return None
        reason = f" ({self.disabled_reason})" if self.disabled_reason else ""
        return f"The endpoint is disabled{reason}: enable it first."

    def need_open(self) -> None:
        """Raises `InvalidState` for an endpoint that is closed."""
        if why := self.why_closed:
            raise InvalidState(why)

    @property
    def order(self) -> EndpointOrder:
        return EndpointOrder(str(self.id), str(self.organization_id), failing=self.failing_since is not None)


def is_secret_url(url: str, format: str) -> bool:
    """Whether whoever knows the URL can write into a chat with it."""
    host = urlsplit(url).hostname or ""
    return format != "raw" or any(host == each or host.endswith(f".{each}") for each in CHAT_HOSTS)


def mask_url(url: str) -> str:
    """The URL without what is secret in it: `https://hooks.slack.com/***`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{MASKED_PATH}"


def new_webhook_secret() -> str:
    """A secret as Standard Webhooks wants it: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def signing_secrets(endpoint: WebhookEndpoint, vault: Vault, now: datetime) -> list[str]:
    """The secrets that sign what is sent, the newest first: two of them for a time after a rotation."""
    sealed = [endpoint.sealed_secret]
    if endpoint.sealed_old_secret and endpoint.old_secret_until and now < endpoint.old_secret_until:
        sealed.append(endpoint.sealed_old_secret)
    return [vault.open(each) for each in sealed]


def added_headers(endpoint: WebhookEndpoint, vault: Vault) -> dict[str, str]:
    """The headers that its owner wants to have in every request."""
    return vault.open_mapping(endpoint.sealed_headers) if endpoint.sealed_headers else {}
