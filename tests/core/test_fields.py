"""Names that must not pass, at the rule itself: what tells lines apart is where such rules are fooled."""

import re

import pytest
from jsonschema_rs import validator_for
from pydantic import TypeAdapter, ValidationError

from deployerp.core.fields import (
    Instant,
    Name,
    check_domain,
    check_env_name,
    check_env_value,
    check_hostname,
    slug_of,
)
from deployerp.database.base import new_id
from deployerp.domain.api_keys import key_id_of, new_api_key


@pytest.mark.parametrize("name", ["A", "_", "LANG", "a1", "A" * 128, "PG", "MY_PATH", "HOSTNAME", "LD"])
def test_a_variable_of_the_users_own_is_accepted(name: str) -> None:
    assert check_env_name(name) == name


@pytest.mark.parametrize("name", ["", "A\n", "\nA", "A\r", "1A", "A=B", "A\x00", "Å", "A" * 129])
def test_what_is_no_variable_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be at most 128 letters, digits and underscores"):
        check_env_name(name)


@pytest.mark.parametrize("name", ["PATH", "PGPASSWORD", "LD_PRELOAD", "PYTHONPATH", "ODOO_RC", "DEPLOYERP_X"])
def test_a_variable_that_others_depend_on_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        check_env_name(name)


@pytest.mark.fault("12")
@pytest.mark.parametrize(
    "name",
    [
        "ODOO_HTTP_PORT",
        "ODOO_DATA_DIR",
        "ODOO_WORKERS",
        "ODOO_LIST_DB",
        "ODOO_PROXY_MODE",
        "ODOO_ADMIN_PASSWD",
        "ODOO_MAX_CRON_THREADS",
        "ODOO_DBFILTER",
        "PGHOST_REPLICA",
        "PGDATABASE_TEMPLATE",
        "PASSWORD_FILE",
    ],
)
def test_a_variable_that_overrides_what_is_configured_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is reserved"):
        check_env_name(name)


@pytest.mark.fault("13")
@pytest.mark.parametrize(
    "domain",
    [
        *("ERP.Example.com", "erp_test.example.com", "example.com.", "-x.example.com", "", ".example.com"),
        *("a..b", "example.com\n", "bücher.example", ".".join(["a" * 49] * 4), "a" * 61 + ".a"),
    ],
)
def test_a_domain_under_which_no_instance_could_be_found_is_refused(domain: str) -> None:
    with pytest.raises(ValueError, match="must"):
        check_domain(domain)


@pytest.mark.fault("13")
def test_a_host_name_fits_into_a_certificate_where_it_needs_one() -> None:
    assert check_domain("erp.example.com") == "erp.example.com"
    assert check_hostname("a" * 63 + ".localhost")
    assert check_hostname("a" * 52 + ".example.com")
    with pytest.raises(ValueError, match="too long"):
        check_hostname("a" * 53 + ".example.com")


def test_a_value_may_have_lines_and_no_nul() -> None:
    assert check_env_value("a\nb\t=") == "a\nb\t="
    with pytest.raises(ValueError, match="NUL"):
        check_env_value("a\x00")


@pytest.mark.parametrize("name", ["", " ", "\t", "\u00a0", " \u2003 ", "a\nb", "\u202ea", "a" * 101])
def test_a_name_that_is_refused_does_not_fit_the_contract(name: str) -> None:
    rule = TypeAdapter(Name)
    with pytest.raises(ValidationError):
        rule.validate_python(name)
    assert not validator_for(rule.json_schema()).is_valid(name)


@pytest.mark.parametrize("name", ["a", "Ada Lovelace", "\u00e5", "-", "a" * 100])
def test_a_name_that_is_taken_fits_the_contract(name: str) -> None:
    rule = TypeAdapter(Name)
    assert rule.validate_python(name) == name
    assert validator_for(rule.json_schema()).is_valid(name)


def test_a_token_is_known_by_its_whole_shape() -> None:
    key, token = new_api_key(new_id(), "test", "read")
    assert key_id_of(token) == key.key_id
    assert token not in repr(key)
    others = (token + "\n", " " + token, token + "x", token[:-1], token.upper(), token.replace("_", "-"), "")
    for changed in others:
        assert key_id_of(changed) is None


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ("2026-11-21T12:00:00Z", True),
        ("2026-11-21t12:00:00.123456+02:00", True),
        ("2026-11-21T12:00:00", False),
        ("2026-11-21", False),
        ("2026-11-21T25:00:00Z", False),
        ("0.5", False),
        (0, False),
        (None, False),
    ],
)
def test_a_time_is_told_as_the_standard_has_it(given: object, fits: bool) -> None:
    adapter = TypeAdapter(Instant)
    if fits:
        assert adapter.validate_python(given).tzinfo is not None
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(given)


@pytest.mark.fault("16")
@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Acme", "acme"),
        ("  Zürich: web/1 @ home ", "zurich-web-1-home"),
        ("東京", "unnamed"),
        ("a" * 62 + " b", "a" * 62),
    ],
)
def test_a_name_becomes_a_slug(name: str, slug: str) -> None:
    assert slug_of(name) == slug
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", slug)
