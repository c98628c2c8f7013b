"""Secrets that can be told by their looks do not reach the log."""

import json
import logging
import secrets
import sys
from collections.abc import Iterator
from io import StringIO

import asyncssh
import jwt
import pytest
import structlog

from deployerp.core.logging import configure, redact
from deployerp.database.base import new_id
from deployerp.domain.api_keys import new_api_key
from deployerp.domain.webhooks.endpoints import new_webhook_secret

_, TOKEN = new_api_key(new_id(), "test", "read")
WEBHOOK = new_webhook_secret()
REFRESH = f"dep_refresh_{secrets.token_urlsafe(32)}"
SET_PASSWORD = f"dep_password_{secrets.token_urlsafe(32)}"
ACCESS = jwt.encode({"sub": "x"}, "k" * 32, "HS256")
PRIVATE_KEY = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
SECRETS = {
    "API key": (TOKEN, TOKEN.rpartition("_")[2]),
    "webhook secret": (WEBHOOK, WEBHOOK.removeprefix("whsec_")),
    "refresh token": (REFRESH, REFRESH.removeprefix("dep_refresh_")),
    "set-password token": (SET_PASSWORD, SET_PASSWORD.removeprefix("dep_password_")),
    "access token": (ACCESS, ACCESS.partition(".")[2]),
    "private key": (PRIVATE_KEY, PRIVATE_KEY.splitlines()[1]),
    "private key that is cut off": (PRIVATE_KEY[:120], PRIVATE_KEY.splitlines()[1][:40]),
    "EC key": ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----", "MHcCAQEE"),
}
each_secret = pytest.mark.parametrize(("text", "hidden"), SECRETS.values(), ids=SECRETS)


@each_secret
def test_a_secret_is_hidden_and_what_is_around_it_kept(text: str, hidden: str) -> None:
    told = redact(f"before {text} between {text}")
    assert hidden not in told
    assert told.startswith("before ")
    assert "[secret]" in told


def test_the_id_of_a_key_is_kept() -> None:
    assert redact(f"key {TOKEN} refused") == f"key {TOKEN.rpartition('_')[0]}_[secret] refused"


@pytest.mark.parametrize("text", ["", "dep_live_ and whsec_", "-----BEGIN PUBLIC KEY-----\nMIIB", "é"])
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert redact(text) == text


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """What the log writes."""
    stream = StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    before = root.handlers, root.level
    configure("DEBUG", readable=False)
    yield stream
    root.handlers, level = before
    root.setLevel(level)
    structlog.reset_defaults()


@each_secret
def test_no_way_into_the_log_shows_a_secret(written: StringIO, text: str, hidden: str) -> None:
    log = structlog.get_logger()
    log.info("an event", value=text)
    log.info(text)
    log.info("nested", value={"list": [text], "error": ValueError(text)})
    logging.getLogger("another.library").warning("says %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("an error")
        logging.getLogger("another.library").exception("an error")
    lines = written.getvalue().splitlines()
    assert len(lines) == 6
    for line in lines:
        json.loads(line)
        assert hidden not in line


def test_what_is_no_text_is_kept(written: StringIO) -> None:
    structlog.get_logger().info("counted", count=3, ratio=0.5, missing=None, ok=True, each=[1, {"a": "b"}])
    told = json.loads(written.getvalue())
    told = {name: told[name] for name in ("event", "count", "ratio", "missing", "ok", "each")}
    assert told == {
        "event": "counted",
        "count": 3,
        "ratio": 0.5,
        "missing": None,
        "ok": True,
        "each": [1, {"a": "b"}],
    }
