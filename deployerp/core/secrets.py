"""Secrets at rest: sealed before they reach the database, opened only where they are used."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NewType

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr

from deployerp.core.errors import DecryptionFailed

Sealed = NewType("Sealed", str)


class Vault:
    """Seals text with the first key and opens it with any: put a new key first to rotate."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        if not keys:
            raise DecryptionFailed(
                "No encryption key is set: set DEPLOYERP_ENCRYPTION_KEYS"
                " (`deployerp keys encryption` makes one)."
            )
        self._keys = [key.get_secret_value().encode() for key in keys]
        fernets = [Fernet(key) for key in self._keys]
        self._first, self._fernet = fernets[0], MultiFernet(fernets)

    def seal(self, text: str) -> Sealed:
        return Sealed(self._fernet.encrypt(text.encode()).decode())

    def open(self, sealed: str) -> str:
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise DecryptionFailed(
                "A secret in the database was sealed with a key that DEPLOYERP_ENCRYPTION_KEYS no longer"
                " holds: add the old key after the new one."
            ) from None

    def reseal(self, sealed: str) -> Sealed | None:
        """The same text sealed with the first key; None where it already is. Raises `DecryptionFailed`."""
        try:
            self._first.decrypt(sealed.encode())
        except InvalidToken:
            return self.seal(self.open(sealed))
        return None

    def derive(self, purpose: str) -> list[str]:
        """One token for each key. Processes that share the keys share the tokens, without another secret."""
        return [hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest() for key in self._keys]

    def seal_mapping(self, values: Mapping[str, Any]) -> Sealed:
        return self.seal(json.dumps(dict(values), sort_keys=True))

    def open_mapping(self, sealed: str) -> dict[str, Any]:
        opened: dict[str, Any] = json.loads(self.open(sealed))
        return opened


def new_encryption_key() -> str:
    return Fernet.generate_key().decode()


def new_password() -> str:
    """A password of 144 random bits in characters that need no quoting anywhere."""
    return secrets.token_urlsafe(18).replace("-", "A").replace("_", "B")


def digest(token: str) -> str:
    """SHA-256 is enough for tokens that are random themselves (passwords of people need argon2)."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())
