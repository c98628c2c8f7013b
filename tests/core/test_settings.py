"""Settings come from the environment, say what they are, and show no secret."""

from traceback import format_exception

import pytest
from pydantic import ValidationError

from deployerp.core.secrets import new_encryption_key
from deployerp.core.settings import Settings
from deployerp.embedded.control_plane import environment_of


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_is(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith((".", "`."))


def test_the_environment_of_another_process_gives_it_the_same_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = Settings.model_validate(
        {
            "encryption_keys": [new_encryption_key(), new_encryption_key()],
            "odoo_versions": ["18.0", "19.0"],
            "allowed_networks": ["10.0.0.0/8", "fd00::/8"],
            "sweep_seconds": 2.5,
            "temporal_api_key": "a key of Temporal",
        }
    )
    for name, value in environment_of(given).items():
        monkeypatch.setenv(name, value)
    assert Settings() == given


def test_keys_are_not_shown() -> None:
    key = new_encryption_key()
    settings = Settings.model_validate({"encryption_keys": [key]})
    assert key not in repr(settings) + settings.model_dump_json()


@pytest.mark.parametrize("name", ["temporal_tls_certificate_file", "temporal_tls_key_file"])
def test_a_certificate_and_its_key_are_needed_together(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"DEPLOYERP_{name.upper()}", "/etc/deployerp/client.pem")
    with pytest.raises(ValidationError, match="are needed together"):
        Settings()


@pytest.mark.parametrize("form", ['"{}"', '{{"{}": 1}}', '[["{}"]]'])
def test_keys_that_are_not_given_as_they_must_be_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    key = new_encryption_key()
    monkeypatch.setenv("DEPLOYERP_ENCRYPTION_KEYS", form.format(key))
    with pytest.raises(ValidationError) as refused:
        Settings()
    told = "".join(format_exception(refused.value))
    assert key[:8] not in told
    assert "encryption_keys" in told
    assert "Input should be a valid" in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sweep_seconds", "0"),
        ("api_port", "70000"),
        ("odoo_versions", "19.0"),
        ("allowed_networks", '["x"]'),
        *(
            ("cors_origins", f'["{origin}"]')
            for origin in (
                *("https://app.example.com/", "app.example.com", "https://App.example.com", "null", ""),
                *("https://a.example/path", "https://*.example.com", "ftp://a.example", "https://a:b@c.d"),
            )
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"DEPLOYERP_{name.upper()}", value)
    with pytest.raises((ValidationError, ValueError), match=name):
        Settings()
