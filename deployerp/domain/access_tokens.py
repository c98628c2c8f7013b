"""Access tokens: short-lived JWTs that tell who somebody is, for which organization, and nothing more.

What they may do is not in the token: it is looked up, so that a change counts at once.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from deployerp.domain.base import new_id, utc_now
from deployerp.domain.errors import VaultClosed

_ALGORITHM = "HS256"
_PURPOSE = b"deployerp access tokens"
_REQUIRED = ("iss", "aud", "sub", "org", "iat", "nbf", "exp", "jti")
# They would let the token bring its own key, or rules that we do not know.
_REFUSED_HEADERS = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64"})
# Clocks of machines that are kept right still differ a little.
LEEWAY = timedelta(seconds=5)
_LONGEST = 8192

_reader = jwt.PyJWT({"strict_aud": True, "enforce_minimum_key_length": True})


class TokenRefused(Exception):
    """A token that proves nothing; the reason is for our log, and never for whoever sent it."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token of ours says."""

    user_id: UUID
    organization_id: UUID
    # In seconds since 1970.
    expires_at: int


class AccessTokens:
    """Issues tokens with a key made of the first encryption key, and takes those of all: rotation is one."""

    def __init__(
        self, encryption_keys: Sequence[SecretStr], *, issuer: str, audience: str, minutes: int
    ) -> None:
        if not encryption_keys:
            raise VaultClosed("Access tokens need a key: set DEPLOYERP_ENCRYPTION_KEYS.")
        derived = [_derived(key.get_secret_value()) for key in encryption_keys]
        self._keys = {_name_of(key): key for key in derived}
        self._signer = derived[0]
        self._issuer = issuer
        self._audience = audience
        self.lifetime = timedelta(minutes=minutes)

    def issue(self, user_id: UUID, organization_id: UUID, now: datetime | None = None) -> str:
        now = now or utc_now()
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user_id),
            "org": str(organization_id),
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((now + self.lifetime).timestamp()),
            "jti": str(new_id()),
        }
        return jwt.encode(claims, self._signer, _ALGORITHM, headers={"kid": _name_of(self._signer)})

    def are_named(self, kid: str) -> bool:
        """Whether a key of ours has this name."""
        return kid in self._keys

    def verify(self, token: str, kid: str) -> Claims:
        """What the token says. Raises `TokenRefused`."""
        claims = verified(
            token,
            self._keys[kid],
            _ALGORITHM,
            issuer=self._issuer,
            audience=self._audience,
            require=_REQUIRED,
        )
        try:
            return Claims(UUID(claims["sub"]), UUID(claims["org"]), int(claims["exp"]))
        except (ValueError, AttributeError):
            raise TokenRefused("its subject or organization is no id") from None


def key_name_of(token: str) -> str:
    """The name of the key that the token says it is signed with. Raises `TokenRefused`.

    Nothing of the token is proven by it.
    """
    if len(token) > _LONGEST or not token.isascii():
        raise TokenRefused("it is no token")
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise TokenRefused(str(error)) from None
    if brought := _REFUSED_HEADERS & header.keys():
        raise TokenRefused(f"it brings {', '.join(sorted(brought))}")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise TokenRefused("it names no key")
    return kid


def issuer_of(token: str) -> str:
    """Who the token says has issued it; unproven too. Raises `TokenRefused`."""
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError as error:
        raise TokenRefused(str(error)) from None
    if not isinstance(issuer, str):
        raise TokenRefused("it names no issuer")
    return issuer


def verified(
    token: str,
    key: jwt.PyJWK | bytes,
    algorithm: str,
    *,
    issuer: str,
    audience: str,
    require: Sequence[str],
) -> dict[str, Any]:
    """The claims of a token that this key has signed with this algorithm. Raises `TokenRefused`."""
    try:
        return _reader.decode(
            token,
            key,
            [algorithm],
            options={"require": list(require)},
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY,
        )
    except jwt.PyJWTError as error:
        raise TokenRefused(str(error)) from None


def _derived(encryption_key: str) -> bytes:
    material = base64.urlsafe_b64decode(encryption_key)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_PURPOSE).derive(material)


def _name_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]
