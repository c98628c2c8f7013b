"""Access tokens as an attacker would make them, each wrong in one way, beside one that is right."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER = AUDIENCE = "deployerp"
Changes = dict[str, Any]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def token_of(header: object, claims: object, sign: Callable[[bytes], bytes]) -> str:
    """Made by hand: a library would refuse to make most of these."""
    told = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{told}.{base64url(sign(told.encode()))}"


def hs256(key: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.new(key, text, hashlib.sha256).digest()


def hkdf(material: bytes, purpose: bytes) -> bytes:
    """RFC 5869 for one block without salt, written out as a second opinion."""
    extracted = hmac.new(bytes(32), material, hashlib.sha256).digest()
    return hmac.new(extracted, purpose + b"\x01", hashlib.sha256).digest()


@dataclass
class Forge:
    """Knows everything: what it makes must fail because of its one fault alone."""

    encryption_key: str
    user_id: UUID = field(default_factory=uuid4)
    organization_id: UUID = field(default_factory=uuid4)

    @cached_property
    def key(self) -> bytes:
        return hkdf(base64.urlsafe_b64decode(self.encryption_key), b"deployerp access tokens")

    @cached_property
    def kid(self) -> str:
        return hashlib.sha256(self.key).hexdigest()[:16]

    @cached_property
    def rsa(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)

    @property
    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def rs256(self, text: bytes) -> bytes:
        return self.rsa.sign(text, padding.PKCS1v15(), hashes.SHA256())

    def header(self, **changes: Any) -> Changes:
        return _changed({"alg": "HS256", "typ": "JWT", "kid": self.kid}, changes)

    def claims(self, **changes: Any) -> Changes:
        now = int(time.time())
        right = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(self.user_id),
            "org": str(self.organization_id),
            "iat": now,
            "nbf": now,
            "exp": now + 60,
            "jti": str(uuid4()),
        }
        return _changed(right, changes)

    def token(self, header: Changes | None = None, claims: Changes | None = None) -> str:
        """Signed with the real key; what is None in the changes is left out."""
        return token_of(self.header(**(header or {})), self.claims(**(claims or {})), hs256(self.key))


def _changed(right: Changes, changes: Changes) -> Changes:
    return {name: value for name, value in (right | changes).items() if value is not None}


def _jwk(key: bytes) -> Changes:
    return {"kty": "oct", "k": base64url(key), "alg": "HS256"}


OWN = b"a key of the attacker's own, of 32 bytes or more"
NOW = time.time
FORGERIES: dict[str, Callable[[Forge], str]] = {
    "none": lambda f: token_of(f.header(alg="none"), f.claims(), lambda _: b""),
    "none without a kid": lambda f: token_of(f.header(alg="none", kid=None), f.claims(), lambda _: b""),
    "None": lambda f: token_of(f.header(alg="None"), f.claims(), lambda _: b""),
    "no algorithm": lambda f: f.token({"alg": None}),
    "a list of algorithms": lambda f: f.token({"alg": ["HS256"]}),
    "no signature": lambda f: f.token().rpartition(".")[0] + ".",
    "signed with another key": lambda f: token_of(f.header(), f.claims(), hs256(OWN)),
    "signed with the encryption key itself": lambda f: token_of(
        f.header(), f.claims(), hs256(base64.urlsafe_b64decode(f.encryption_key))
    ),
    "HS256 with a public key": lambda f: token_of(f.header(), f.claims(), hs256(f.public_pem)),
    "RS256 under our kid": lambda f: token_of(f.header(alg="RS256"), f.claims(), f.rs256),
    "HS512 under our kid": lambda f: token_of(
        f.header(alg="HS512"), f.claims(), lambda text: hmac.new(f.key, text, hashlib.sha512).digest()
    ),
    "jwk in the header": lambda f: token_of(f.header(jwk=_jwk(OWN)), f.claims(), hs256(OWN)),
    "jwk in the header, our key": lambda f: f.token({"jwk": _jwk(OWN)}),
    "jku in the header": lambda f: f.token({"jku": "http://127.0.0.1:1/keys"}),
    "x5u in the header": lambda f: f.token({"x5u": "http://127.0.0.1:1/keys"}),
    "x5c in the header": lambda f: f.token({"x5c": ["MIIB"]}),
    "crit in the header": lambda f: f.token({"crit": ["exp"]}),
    "b64 in the header": lambda f: f.token({"b64": False, "crit": ["b64"]}),
    "unknown kid": lambda f: token_of(f.header(kid="0" * 16), f.claims(), hs256(OWN)),
    "unknown kid, our key": lambda f: f.token({"kid": "0" * 16}),
    "missing kid": lambda f: f.token({"kid": None}),
    "a kid that is a path": lambda f: token_of(f.header(kid="/dev/null"), f.claims(), hs256(b"")),
    "a kid that is a number": lambda f: f.token({"kid": 1}),
    "a kid that is a list": lambda f: f.token({"kid": [f.kid]}),
    "short key": lambda f: token_of(f.header(), f.claims(), hs256(b"secret")),
    "empty key": lambda f: token_of(f.header(), f.claims(), hs256(b"")),
    "wrong audience": lambda f: f.token(claims={"aud": "somebody else"}),
    "list audience": lambda f: f.token(claims={"aud": [AUDIENCE]}),
    "wrong issuer": lambda f: f.token(claims={"iss": "somebody else"}),
    "list issuer": lambda f: f.token(claims={"iss": [ISSUER]}),
    "expired": lambda f: f.token(claims={"exp": int(NOW()) - 60}),
    "not yet valid": lambda f: f.token(claims={"nbf": int(NOW()) + 60}),
    "issued in the future": lambda f: f.token(claims={"iat": int(NOW()) + 60}),
    "expiry that is no number": lambda f: f.token(claims={"exp": "soon"}),
    "subject that is no id": lambda f: f.token(claims={"sub": "1 OR 1=1"}),
    "subject that is a number": lambda f: f.token(claims={"sub": 1}),
    "organization that is no id": lambda f: f.token(claims={"org": "acme"}),
    "organization that is a list": lambda f: f.token(claims={"org": [str(f.organization_id)]}),
    "claims that are a list": lambda f: token_of(f.header(), [f.claims()], hs256(f.key)),
    "header that is a list": lambda f: token_of([f.header()], f.claims(), hs256(f.key)),
    "nested without end": lambda f: f"{base64url(b'[' * 5000)}.e30.AAAA",
    "too long": lambda f: f.token(claims={"more": "x" * 10_000}),
    "cut": lambda f: f.token()[:-5],
    "two parts": lambda f: f.token().rpartition(".")[0],
    "four parts": lambda f: f.token() + ".AAAA",
    "no token": lambda _: "garbage",
    "dots": lambda _: "..",
    "not ASCII": lambda f: f.token() + "é",
    **{
        f"without {name}": lambda f, name=name: f.token(claims={name: None})
        for name in ("iss", "aud", "sub", "org", "iat", "nbf", "exp", "jti")
    },
}
