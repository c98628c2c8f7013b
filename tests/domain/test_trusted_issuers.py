"""Whom the operator trusts to say who somebody is: what would let others say it is refused at the start."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from deployerp.core.secrets import new_encryption_key
from deployerp.core.settings import Settings

RIGHT = {"issuer": "https://issuer.example/", "jwks_url": "https://issuer.example/keys", "audience": "erp"}


def from_environment(monkeypatch: pytest.MonkeyPatch, *issuers: dict[str, Any]) -> Settings:
    monkeypatch.setenv("DEPLOYERP_TRUSTED_ISSUERS", json.dumps(issuers))
    return Settings(encryption_keys=[new_encryption_key()])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/keys",
        "https://issuer.example:8443/keys?v=1",
        "HTTPS://ISSUER.EXAMPLE/keys",
        "http://localhost:9000/keys",
        "http://127.0.0.1/keys",
        "http://127.8.8.8/keys",
        "http://[::1]:9000/keys",
    ],
)
def test_keys_come_over_https_or_from_this_machine(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    (issuer,) = from_environment(monkeypatch, RIGHT | {"jwks_url": url}).trusted_issuers
    assert issuer.jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://[::2]/keys",
        "http://localhost.example/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost@issuer.example/keys",
        "http:///keys",
        "https:///keys",
        "https://",
        "https://[::1/keys",
        "https://issuer.example:port/keys",
        "https://issuer.example:99999/keys",
        "https:issuer.example/keys",
        "//issuer.example/keys",
        "issuer.example/keys",
        "file:///etc/keys",
        "",
    ],
)
def test_keys_that_others_could_change_on_their_way_are_refused(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    with pytest.raises(ValidationError, match=r"trusted_issuers\.0\.jwks_url\n.*must be an https URL"):
        from_environment(monkeypatch, RIGHT | {"jwks_url": url})


@pytest.mark.parametrize("name", ["issuer", "audience"])
def test_what_tells_issuers_and_receivers_apart_is_not_empty(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(ValidationError, match=rf"trusted_issuers\.0\.{name}\n.*at least 1 character"):
        from_environment(monkeypatch, RIGHT | {name: ""})


def test_an_issuer_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = RIGHT | {"issuer": "https://other.example/"}
    assert len(from_environment(monkeypatch, RIGHT, other).trusted_issuers) == 2
    with pytest.raises(
        ValidationError, match=r"trusted_issuers\n.*issuer.*https://issuer\.example/"
    ) as caught:
        from_environment(monkeypatch, RIGHT, other, RIGHT | {"organizations": ["acme"]})
    # Only the list is told, and no other setting.
    assert "encryption" not in str(caught.value)


def test_an_issuer_speaks_for_all_organizations_unless_some_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = RIGHT | {"issuer": "https://other.example/", "organizations": ["acme", "beta"]}
    settings = from_environment(monkeypatch, RIGHT, named)
    assert [each.organizations for each in settings.trusted_issuers] == [[], ["acme", "beta"]]
    with pytest.raises(ValidationError, match=r"trusted_issuers\.0\.organizations\.0"):
        from_environment(monkeypatch, RIGHT | {"organizations": [""]})
