"""Passwords of people."""

import pytest
from argon2 import PasswordHasher, extract_parameters

from deployerp.core import passwords
from deployerp.core.passwords import check_password, fits, hashed, is_outdated

PASSWORD = "correct horse battery"
EMAIL = "ada.lovelace@example.com"


async def test_a_password_fits_its_hash_and_no_other() -> None:
    first, second = await hashed(PASSWORD), await hashed(PASSWORD)
    assert first != second
    assert first.startswith("$argon2id$")
    assert await fits(PASSWORD, first)
    assert not await fits(PASSWORD + " ", first)
    assert not await fits("", first)


async def test_however_it_is_composed_it_is_the_same_password() -> None:
    assert await fits("cafe\u0301 au lait, s'il", await hashed("caf\u00e9 au lait, s'il"))


async def test_nobody_has_no_password_and_it_costs_as_much_to_find_out() -> None:
    assert not await fits(PASSWORD, None)
    assert not await fits("", None)
    assert extract_parameters(passwords._NOBODYS_HASH) == extract_parameters(await hashed(PASSWORD))


@pytest.mark.parametrize("kept", ["", "x", "$argon2id$", "$2b$12$abcdefghijklmnopqrstuv"])
async def test_what_is_no_hash_fits_nothing(kept: str) -> None:
    assert not await fits(PASSWORD, kept)


async def test_a_hash_of_other_parameters_fits_and_is_outdated() -> None:
    old = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
    assert await fits(PASSWORD, old)
    assert is_outdated(old)
    assert not is_outdated(await hashed(PASSWORD))


@pytest.mark.parametrize("password", [PASSWORD, "é" * 12, "x" * 256])
def test_good_passwords(password: str) -> None:
    check_password(password, EMAIL)


@pytest.mark.parametrize(
    ("password", "rule"),
    [
        ("", "12 to 256"),
        ("x" * 11, "12 to 256"),
        ("e\u0301" * 11, "12 to 256"),
        ("x" * 257, "12 to 256"),
        (EMAIL, "e-mail"),
        (EMAIL.upper(), "e-mail"),
    ],
)
def test_bad_passwords(password: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        check_password(password, EMAIL)
