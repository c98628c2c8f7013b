"""The rules that user-given names keep to: what could reach a label, a path or a URL is held here."""

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, StringConstraints

# Controls, line separators, and what turns the direction of writing: they make a name look like another.
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
# What is left of blanks alone is nothing: the contract has to say so as well.
_SEEN_SOMEWHERE = rf"^[^{_UNSEEN}]*[^{_UNSEEN}\s][^{_UNSEEN}]*$"

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=_SEEN_SOMEWHERE)
]
"""A name for people: 1 to 100 printable characters, not all of them blank."""

Description = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")]
"""Text for people: at most 500 characters, new lines among them."""

Slug = Annotated[
    str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
]
"""A DNS label (RFC 1123): lower-case letters, digits and inner hyphens, at most 63."""

Token = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
]
"""An identifier of a provider's: a size, a location, an image."""

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Variables that the image's own start-up, the loader or our configuration depend on.
RESERVED_ENV = re.compile(
    r"PG[A-Z]+|HOST|PORT|USER|PASSWORD|ODOO_RC|PATH|HOME|PYTHON[A-Z]*|LD_[A-Z_]+|DEPLOYERP_.*"
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
