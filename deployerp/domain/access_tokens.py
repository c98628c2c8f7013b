"""Access tokens: short-lived JWTs that tell who somebody is, for which organization, and nothing more.

What they may do is not in the token: it is looked up, so that a change counts at once.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from deployerp.core.errors import DecryptionFailed
from deployerp.database.base import new_id, utc_now

_ALGORITHM = "HS256"
_PURPOSE = b"deployerp access tokens"
_REQUIRED = ("iss", "aud", "sub", "org", "iat", "nbf", "exp", "jti")
_TIMES = frozenset({"iat", "nbf", "exp"})
# They would let the token bring its own key, or rules that we do not know.
_REFUSED_HEADERS = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64"})
# How far the clocks of the issuer and of this machine may differ: the best kept ones still do a little.
CLOCK_SKEW = timedelta(seconds=5)
# The last second of the year 9999: later ones are no dates.
_LATEST = 253_402_300_799
_LONGEST = 8192

_reader = jwt.PyJWT({"enforce_minimum_key_length": True})


class TokenRefused(Exception):
    """A token that proves nothing; the reason is for our log, and never for whoever sent it."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token of ours says."""

    user_id: UUID
    organization_id: UUID
    # In seconds since 1970.
    issued_at: int
    expires_at: int


class AccessTokens:
    """Issues tokens with a key made of the first encryption key, and takes those of all: rotation is one."""

    def __init__(
        self, encryption_keys: Sequence[SecretStr], *, issuer: str, audience: str, minutes: int
    ) -> None:
        if not encryption_keys:
            raise DecryptionFailed("Access tokens need a key: set DEPLOYERP_ENCRYPTION_KEYS.")
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
            return Claims(UUID(claims["sub"]), UUID(claims["org"]), int(claims["iat"]), int(claims["exp"]))
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
    one_audience: bool = True,
) -> dict[str, Any]:
    """The claims of a token that this key has signed with this algorithm. Raises `TokenRefused`.

    Without `one_audience` the token may be for others too, in a list (RFC 7519, section 4.1.3).
    """
    try:
        claims = _reader.decode(
            token,
            key,
            [algorithm],
            options={"require": list(require), "strict_aud": one_audience},
            issuer=issuer,
            audience=audience,
            leeway=CLOCK_SKEW,
        )
    except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError) as error:
        skew = int(CLOCK_SKEW.total_seconds())
        raise TokenRefused(f"{error}; clocks may differ by {skew} seconds: check both clocks") from None
    except jwt.PyJWTError as error:
        raise TokenRefused(str(error)) from None
    _check_times(claims)
    return claims


def _check_times(claims: Mapping[str, Any]) -> None:
    for name in _TIMES & claims.keys():
        if not 0 <= int(claims[name]) <= _LATEST:
            raise TokenRefused(f"{name} must be seconds since 1970, up to the year 9999")


def _derived(encryption_key: str) -> bytes:
    material = base64.urlsafe_b64decode(encryption_key)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_PURPOSE).derive(material)


def _name_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]
