"""Logs in one format, without the secrets that could slip into them."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import orjson
import structlog

# Shapes of secrets that can be told by looks alone; the others are kept out where they are handled.
_SECRETS = re.compile(
    r"(dep_live_[0-9a-z]{16}_)[0-9A-Za-z]+|(whsec_)[A-Za-z0-9+/=]+|(dep_(?:refresh|password)_)[A-Za-z0-9_-]+"
    r"|(eyJ)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
    r"|(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
# What such a secret has in it. Few texts do, and to look for this takes a tenth of the time.
_SIGNS = ("dep_", "whsec_", "eyJ", "-----BEGIN ")


def redact(text: str) -> str:
    if not any(sign in text for sign in _SIGNS):
        return text
    return _SECRETS.sub(lambda match: next(kept for kept in match.groups() if kept) + "[secret]", text)


def _redact_all(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    # What begins with an underscore is the logging library's own and is not shown.
    return {name: value if name.startswith("_") else _redacted(value) for name, value in entry.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(each) for each in value]
    return redact(repr(value))


def _as_json(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> str:
    return orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def configure(level: str, *, readable: bool | None = None) -> None:
    """Sets logs up for the process: for people on a terminal, JSON lines elsewhere."""
    if readable is None:
        readable = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_all,
    ]
    # Our own lines go straight out: by way of the standard library one costs as much as a small request.
    structlog.configure(
        processors=[*shared, structlog.dev.ConsoleRenderer() if readable else _as_json],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    renderer: Any = structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # They tell of every connection and request, which our own lines do already.
    for noisy in ("asyncssh", "httpx", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
