"""Secrets at rest."""

import pytest
from pydantic import SecretStr

from deployerp.core.errors import DecryptionFailed
from deployerp.core.secrets import Vault, new_encryption_key, new_password

OLD, NEW = SecretStr(new_encryption_key()), SecretStr(new_encryption_key())


def test_what_is_sealed_opens_and_looks_different_each_time() -> None:
    vault = Vault([OLD])
    sealed = [vault.seal("Größe") for _ in range(2)]
    assert [vault.open(each) for each in sealed] == ["Größe", "Größe"]
    assert sealed[0] != sealed[1]
    assert vault.open_mapping(vault.seal_mapping({"a": {"b": 1}})) == {"a": {"b": 1}}


def test_a_new_key_in_front_seals_and_the_old_one_still_opens() -> None:
    sealed = Vault([OLD]).seal("x")
    rotated = Vault([NEW, OLD])
    assert rotated.open(sealed) == "x"
    assert Vault([NEW]).open(rotated.seal("y")) == "y"


@pytest.mark.parametrize(
    "sealed",
    [Vault([OLD]).seal("hunter2"), "", "no token", "gAAAAA=="],
    ids=["other key", "empty", "text", "cut"],
)
def test_what_no_key_opens_says_what_to_do_and_nothing_else(sealed: str) -> None:
    with pytest.raises(DecryptionFailed, match="DEPLOYERP_ENCRYPTION_KEYS") as caught:
        Vault([NEW]).open(sealed)
    assert caught.value.__cause__ is None
    assert "hunter2" not in str(caught.value)


def test_without_keys_nothing_starts() -> None:
    with pytest.raises(DecryptionFailed, match="deployerp keys"):
        Vault([])


def test_passwords_are_long_different_and_need_no_quoting() -> None:
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 24 and each.isalnum() for each in made)
