"""Parts of periodic work that must not stop each other."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()


@contextmanager
def logged(what: str, **facts: str) -> Iterator[None]:
    """A part that fails is logged, and does not stop the others."""
    try:
        yield
    except Exception:
        log.exception(what, **facts)
