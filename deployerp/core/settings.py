"""Settings, from environment variables `DEPLOYERP_...`."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from deployerp.core.fields import check_domain

_Named = Annotated[str, StringConstraints(min_length=1)]
_DRIVERS = ("sqlite+aiosqlite:///", "postgresql+asyncpg://")
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class TrustedIssuer(BaseModel):
    """Another issuer of access tokens; what its users may do is decided here, by their membership."""

    model_config = ConfigDict(extra="forbid")

    issuer: _Named
    jwks_url: str
    audience: _Named
    algorithm: Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"] = "RS256"
    organization_claim: str = "organization"
    # Slugs; without one it speaks for all. Whoever runs the issuer can sign in as any user of these.
    organizations: list[_Named] = Field(default_factory=list)

    @field_validator("jwks_url")
    @classmethod
    def _cannot_be_changed_on_its_way(cls, url: str) -> str:
        # Who can put keys of their own into the answer can sign in as anybody.
        if not _is_safe(url):
            raise ValueError("must be an https URL; only loopback hosts may have an http one")
        return url


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port is what checks it.
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _check_origin(origin: str) -> str:
    # What differs from the header that browsers send, even by a slash, would never match it.
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError(
            "must be an origin such as https://app.example.com, in lower case and without a path, or *"
        )
    return origin


def _in_capitals(given: object) -> object:
    return given.upper() if isinstance(given, str) else given


class Settings(BaseSettings):
    """Everything that can be set from outside; each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="DEPLOYERP_", extra="ignore", hide_input_in_errors=True)

    home: Path = Field(Path(".deployerp"), description="Folder of the embedded control plane's state.")
    database_url: str = Field(
        "sqlite+aiosqlite:///.deployerp/deployerp.db",
        description="SQLAlchemy URL: `sqlite+aiosqlite:///...` or `postgresql+asyncpg://...`.",
    )
    encryption_keys: list[SecretStr] = Field(
        default_factory=list,
        description="JSON list of Fernet keys for secrets at rest; the first seals, all open.",
    )
    temporal_address: str = Field("127.0.0.1:7233", description="Temporal's frontend, host:port.")
    temporal_namespace: str = Field("default", description="Temporal namespace.")
    temporal_task_queue: str = Field("deployerp", description="Task queue of the workers.")
    temporal_tls: bool = Field(
        False, description="Connect to Temporal with TLS. An API key or a TLS file below also turns it on."
    )
    temporal_api_key: SecretStr | None = Field(
        None, description="API key for Temporal, as Temporal Cloud issues it."
    )
    temporal_tls_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority that signed Temporal's certificate; by default the system's.",
    )
    temporal_tls_certificate_file: Path | None = Field(
        None, description="PEM file of the client certificate for mTLS."
    )
    temporal_tls_key_file: Path | None = Field(
        None, description="PEM file of the client certificate's private key."
    )
    temporal_tls_server_name: str | None = Field(
        None, description="Host name in Temporal's certificate, where it is not that of the address."
    )
    worker_host: str = Field(
        "127.0.0.1", description="Address that a worker listens on for queries of the API."
    )
    worker_port: int = Field(
        8010,
        ge=0,
        le=65535,
        description="Port that a worker listens on for queries of the API. Workers on one machine share it.",
    )
    worker_url: str = Field(
        "http://127.0.0.1:8010",
        description="Where the API reaches a worker's queries, e.g. to check credentials of a cloud.",
    )
    sweep_seconds: float = Field(10, gt=0, description="How often unstarted and orphaned work is looked for.")
    api_host: str = Field("127.0.0.1", description="Address that the API listens on.")
    api_port: int = Field(8000, ge=0, le=65535, description="Port that the API listens on.")
    max_body_bytes: int = Field(
        1_048_576, ge=1024, description="Size of the largest request body that the API reads."
    )
    trusted_proxies: list[IPv4Network | IPv6Network] = Field(
        default_factory=list,
        description="JSON list of the networks of proxies whose `X-Forwarded-For` is believed.",
    )
    cors_origins: list[Annotated[str, AfterValidator(_check_origin)]] = Field(
        default_factory=list,
        description="JSON list of the origins whose pages may call the API from a browser (CORS), e.g."
        ' `["https://app.example.com"]`; `["*"]` is all.',
    )
    address_requests_per_minute: int = Field(
        60,
        ge=1,
        description=(
            "Requests without credentials that an address may make in a minute; and so many tokens that are"
            " no good and failed sign-ins, after which it is slowed down."
        ),
    )
    access_token_minutes: int = Field(15, ge=1, le=1440, description="How long an access token is good.")
    refresh_token_days: int = Field(30, ge=1, le=365, description="How long a refresh token is good.")
    token_issuer: str = Field("deployerp", description="`iss` of our access tokens.")
    token_audience: str = Field("deployerp", description="`aud` that access tokens must have.")
    trusted_issuers: list[TrustedIssuer] = Field(
        default_factory=list,
        description="JSON list of other issuers whose access tokens are taken: `issuer`, `jwks_url`,"
        " `audience`, `algorithm` (one, e.g. `RS256`), `organization_claim` (slug or id; `organization`),"
        " `organizations` (slugs; `[]` is all). Whoever runs an issuer can sign in as any user of those"
        " organizations. `jwks_url` is https, or http on a loopback host.",
    )
    instance_domain: Annotated[str, AfterValidator(check_domain)] = Field(
        "localhost",
        description="Domain under which instances get their host name, `<slug>.<domain>`: in lower case,"
        " at most 62 characters, so that a certificate can name it.",
    )
    odoo_versions: list[str] = Field(["19.0"], description="JSON list of Odoo versions that may be deployed.")
    odoo_editions: list[str] = Field(
        ["community"], description="JSON list of Odoo editions that may be deployed."
    )
    odoo_image: str = Field(
        "odoo:{version}", description="Odoo image of new instances; `{version}` is theirs."
    )
    postgres_image: str = Field("postgres:17", description="PostgreSQL image of new instances.")
    caddy_image: str = Field("caddy:2.11", description="Caddy image of servers, 2.7 or newer.")
    node_image: str = Field("deployerp/node:1", description="Image of the `docker` provider's servers.")
    allowed_networks: list[IPv4Network | IPv6Network] = Field(
        default_factory=list,
        description="JSON list of private networks that addresses given by users may lead to (webhooks,"
        ' providers), e.g. `["10.0.0.0/8"]`.',
    )
    webhook_timeout_seconds: float = Field(
        15, gt=0, le=45, description="How long a webhook receiver may take to answer."
    )
    webhook_retry_seconds: list[float] = Field(
        [5, 30, 120, 600, 3600, 10_800, 28_800, 72_000, 144_000],
        max_length=50,
        description="JSON list of the seconds between one try of a delivery and the next, give or take 10 %.",
    )
    webhook_concurrency: int = Field(
        10, ge=1, le=100, description="How many deliveries are sent to one endpoint at the same time."
    )
    webhook_endpoints: int = Field(
        100, ge=1, description="How many webhook endpoints an organization may have."
    )
    webhook_disable_days: float = Field(
        5, gt=0, description="After how many days without an accepted try an endpoint is disabled."
    )
    event_retention_days: float = Field(
        30, ge=1, description="How long events, and what was delivered of them, are kept."
    )
    log_level: Annotated[LogLevel, BeforeValidator(_in_capitals)] = Field(
        "INFO", description="Log level: DEBUG, INFO, WARNING, ERROR, CRITICAL."
    )

    # Their errors hold no value: a URL has a password in it, and what is not quite a key may be one.

    @field_validator("database_url")
    @classmethod
    def _leads_to_a_database(cls, url: str) -> str:
        if not url.startswith(_DRIVERS):
            raise ValueError(f"must begin with {' or '.join(_DRIVERS)}")
        try:
            port = make_url(url).port
        except (ArgumentError, ValueError):
            raise ValueError("must be a URL that SQLAlchemy can read") from None
        if port is not None and not 0 < port < 65536:
            raise ValueError("must have a port between 1 and 65535, or none")
        return url

    @field_validator("encryption_keys")
    @classmethod
    def _can_seal(cls, keys: list[SecretStr]) -> list[SecretStr]:
        for key in keys:
            try:
                Fernet(key.get_secret_value())
            except ValueError:
                raise ValueError(
                    "must hold Fernet keys only (`deployerp keys encryption` makes one)"
                ) from None
        return keys

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> "Settings":
        if (self.temporal_tls_certificate_file is None) != (self.temporal_tls_key_file is None):
            raise ValueError(
                "temporal_tls_certificate_file and temporal_tls_key_file are needed together, or neither"
            )
        return self

    @field_validator("trusted_issuers")
    @classmethod
    def _name_each_issuer_once(cls, trusted: list[TrustedIssuer]) -> list[TrustedIssuer]:
        names = [each.issuer for each in trusted]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must have each `issuer` once, and has several of {', '.join(twice)}")
        return trusted

    def odoo_image_for(self, version: str) -> str:
        return self.odoo_image.format(version=version)
