"""The rules for headers that users add to what is sent to their receivers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from deployerp.core.fields import Pattern

# By the names that it is about, in any case: why a header is not for users to set.
_REFUSED = (
    (r"host|user-agent|accept-encoding|content-.*|webhook-.*", "deployERP sets it itself"),
    (
        r"connection|keep-alive|te|trailer|transfer-encoding|upgrade|via|expect|proxy-.*",
        "it is about the connection, not about the message",
    ),
    (r"cookie2?", "there is no session: prove who sends with `Authorization` or a header of your own"),
)


# A token of HTTP (RFC 9110).
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must be the name of a header: at most 64 letters, digits and !#$%&'*+.^_`|~-")
    for names, why in _REFUSED:
        if re.fullmatch(names, name, re.IGNORECASE):
            raise ValueError(f"cannot be set: {why}")
    return name


def _check_unique(headers: dict[str, str]) -> dict[str, str]:
    if len({name.lower() for name in headers}) != len(headers):
        raise ValueError("must name each header once: upper and lower case are the same")
    return headers


HeaderName = Annotated[str, AfterValidator(_check_name)]
# Nothing that could begin another header; spaces around it would be lost on the way.
HeaderValue = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1000),
    Pattern(r"^[!-~]([ -~]*[!-~])?$", "must be ASCII in one line, without a blank at its beginning or end"),
]
Headers = Annotated[dict[HeaderName, HeaderValue], Field(max_length=20), AfterValidator(_check_unique)]
"""At most 20 headers by their names."""
