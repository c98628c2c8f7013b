"""Types of fields: rules for text that users give, and the fields that many schemas share.

Text that can reach a label, a path or a URL is validated here. Shared fields have their description and
their example here, so that the API reference says the same everywhere.
"""

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function


@dataclass(frozen=True)
class Pattern:
    """Annotates a text with a regular expression, and with its rule in words for whoever breaks it.

    The library's own message would be the expression.
    """

    expression: str
    rule: str

    def check(self, text: str) -> str:
        """The text as it is. Raises ValueError."""
        if not re.fullmatch(self.expression, text):
            raise PydanticCustomError("pattern", self.rule)
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) | {"pattern": self.expression}


# Controls, line separators, and what turns the direction of writing: they make a name look like another.
_NOT_PRINTED = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
# What takes no ink by itself: blanks, joiners and selectors, fillers of scripts. Beside letters they are
# needed, in Persian or in emoji; what is left of them alone is nothing.
_INVISIBLE = (
    r"\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    Pattern(
        rf"^[^{_NOT_PRINTED}]*[^{_NOT_PRINTED}{_INVISIBLE}][^{_NOT_PRINTED}]*$",
        "must have a visible character, and no control characters or line breaks",
    ),
    Field(description="Display name, 1 to 100 printable characters.", examples=["Acme"]),
]
"""A name for people: 1 to 100 printable characters, at least one of which can be seen."""

Description = Annotated[
    str,
    StringConstraints(max_length=500),
    Pattern(r"^[^\x00-\x08\x0b-\x1f\x7f]*$", "must not hold control characters but tabs and line feeds"),
]
"""Text for people: at most 500 characters, new lines among them."""

Slug = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63),
    Pattern(
        r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        "must be lower-case letters and digits, with hyphens between them only, such as acme-2",
    ),
    Field(
        description="DNS label: lower-case letters, digits and inner hyphens, at most 63 characters.",
        examples=["acme"],
    ),
]
"""A DNS label (RFC 1123): lower-case letters, digits and inner hyphens, at most 63."""

_NOT_OF_A_SLUG = re.compile(r"[^a-z0-9]+")


def slug_of(name: str) -> str:
    """A name as a slug, with hyphens for what a slug cannot hold; `unnamed` where nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return _NOT_OF_A_SLUG.sub("-", plain).strip("-")[:63].strip("-") or "unnamed"


Token = Annotated[
    str,
    StringConstraints(min_length=1, max_length=100),
    Pattern(
        r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
        "must be an id of the provider's: letters, digits and . _ : / -, the first a letter or a digit",
    ),
]
"""An identifier of a provider's: a size, a location, an image."""

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Variables that the image's own start-up, the loader or our configuration depend on. Odoo also reads each
# option of its configuration file from the environment, as `ODOO_<OPTION>`, and libpq reads `PG...`.
RESERVED_ENV = re.compile(
    r"(?:PG|ODOO_).+|HOST|PORT|USER|PASSWORD|PASSWORD_FILE|PATH|HOME|PYTHON.*|LD_.*|GLIBC_TUNABLES|OPENERP_SERVER|DEPLOYERP_.*"
)


def check_env_name(name: str) -> str:
    if not ENV_NAME.fullmatch(name):
        raise ValueError(
            "must be at most 128 letters, digits and underscores and must not start with a digit"
        )
    if RESERVED_ENV.fullmatch(name):
        raise ValueError(f"{name} is reserved: deployERP or the image sets it")
    return name


def check_env_value(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not hold a NUL character")
    return value


# The name of a certificate's subject has room for no more (RFC 5280, ub-common-name).
LONGEST_CERTIFIED_NAME = 64
_DOMAIN_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def needs_certificate(hostname: str) -> bool:
    """Whether browsers ask for one: names under localhost are trusted without."""
    return not hostname.endswith(".localhost") and hostname != "localhost"


def check_domain(domain: str) -> str:
    """The rule of a domain under which instances get host names; returns it as it is."""
    if not all(map(_DOMAIN_LABEL.fullmatch, domain.split("."))):
        raise ValueError(
            "must be a domain such as erp.example.com:"
            " lower-case letters, digits and inner hyphens between dots"
        )
    # A slug of one letter and the dot must fit before it.
    if needs_certificate(domain) and len(domain) > LONGEST_CERTIFIED_NAME - 2:
        raise ValueError(f"must have at most {LONGEST_CERTIFIED_NAME - 2} characters")
    return domain


def check_hostname(hostname: str) -> str:
    """The rule of an instance's whole host name; returns it as it is."""
    longest = LONGEST_CERTIFIED_NAME if needs_certificate(hostname) else 253
    if len(hostname) > longest:
        raise ValueError(f"makes the host name {hostname} too long: it may have at most {longest} characters")
    return hostname


EnvName = Annotated[str, AfterValidator(check_env_name)]
EnvValue = Annotated[str, StringConstraints(max_length=32768), AfterValidator(check_env_value)]

_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)


def check_instant(value: object) -> object:
    """Holds a time to RFC 3339; by itself the library takes numbers and days for times, too."""
    if isinstance(value, datetime) or (isinstance(value, str) and _INSTANT.fullmatch(value)):
        return value
    raise ValueError("must be a time with its offset (RFC 3339), such as 2026-11-21T12:00:00Z")


def in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from None


Instant = Annotated[AwareDatetime, BeforeValidator(check_instant), AfterValidator(in_utc)]
"""A time with its offset (RFC 3339), in UTC."""

EXAMPLE_ID = "01932a7c-8f4e-7c3a-9b2d-5e6f7a8b9c0d"
EXAMPLE_TIME = "2026-11-21T12:00:00Z"
EXAMPLE_REQUEST_ID = "0f9c2d1e5b7a4c3d8e6f001122334455"

Id = Annotated[UUID, Field(description="ID of the resource (UUIDv7).", examples=[EXAMPLE_ID])]
ResourceId = Annotated[
    UUID, Field(description="ID of the resource that `resourceType` describes.", examples=[EXAMPLE_ID])
]
ServerId = Annotated[
    UUID,
    Field(
        description="ID of the server that hosts the instance.",
        examples=["01932a7c-8f4e-7c3a-9b2d-000000000001"],
    ),
]
InstanceId = Annotated[
    UUID, Field(description="ID of the instance.", examples=["01932a7c-8f4e-7c3a-9b2d-000000000002"])
]
EndpointId = Annotated[
    UUID, Field(description="ID of the webhook endpoint.", examples=["01932a7c-8f4e-7c3a-9b2d-000000000004"])
]
EventId = Annotated[
    UUID, Field(description="ID of the event.", examples=["01932a7c-8f4e-7c3a-9b2d-000000000007"])
]
OperationId = Annotated[
    UUID, Field(description="ID of the operation.", examples=["01932a7c-8f4e-7c3a-9b2d-000000000005"])
]
ActorId = Annotated[
    UUID, Field(description="ID of the user or API key.", examples=["01932a7c-1111-7c3a-9b2d-5e6f7a8b9c0d"])
]
RequestId = Annotated[
    str,
    Field(
        description="ID of the request, as in the header `X-Request-Id` and in the log.",
        examples=[EXAMPLE_REQUEST_ID],
    ),
]
CreatedAt = Annotated[
    datetime, Field(description="Time of creation (RFC 3339, UTC).", examples=[EXAMPLE_TIME])
]
UpdatedAt = Annotated[
    datetime, Field(description="Time of the last change (RFC 3339, UTC).", examples=[EXAMPLE_TIME])
]
StartedAt = Annotated[
    datetime | None,
    Field(description="Time of the start (RFC 3339, UTC); null before it.", examples=[None]),
]
FinishedAt = Annotated[
    datetime | None,
    Field(description="Time of the end (RFC 3339, UTC); null before it.", examples=[None]),
]
DisplayName = Annotated[str, Field(description="Display name.", examples=["Acme"])]
StatusMessage = Annotated[
    str | None,
    Field(
        description="Why the resource has this status, for people; null if nothing is wrong.", examples=[None]
    ),
]
ErrorCode = Annotated[
    str | None,
    Field(description="Error code of the last failed attempt; null if none failed.", examples=[None]),
]
ErrorMessage = Annotated[
    str | None,
    Field(
        description="What failed and what to do about it, for people; null if nothing failed.",
        examples=[None],
    ),
]
ActionName = Annotated[str, Field(description="Action that the operation runs.", examples=["restart"])]
EmailAddress = Annotated[
    str, Field(description="E-mail address, in lower case.", examples=["ada@example.com"])
]
OrganizationSlug = Annotated[
    str, Field(description="Slug of the organization, unique in this control plane.", examples=["acme"])
]
