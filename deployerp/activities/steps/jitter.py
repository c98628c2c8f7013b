"""Pauses that differ a little: what went down together must not be met by everything at the same moment."""

import random

_SHARE = 0.1


def jittered(seconds: float) -> float:
    """A pause of about so many seconds, up to a tenth more or less."""
    return seconds * random.uniform(1 - _SHARE, 1 + _SHARE)  # noqa: S311
