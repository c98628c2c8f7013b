"""The public keys of another issuer of tokens, from where it publishes them (JWKS, RFC 7517)."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import jwt
import structlog

from deployerp.drivers.web.bodies import read_body

log = structlog.get_logger()
FRESH_SECONDS = 300
# Tokens with keys that nobody knows must not make us ask more often than this.
PATIENCE_SECONDS = 30
TIMEOUT_SECONDS = 5
MAX_BYTES = 256 * 1024
# How many keys are worth a look: issuers publish a handful.
_MOST_KEYS = 100

# What keys of an algorithm look like; a key of another kind must never verify it.
_KINDS: dict[str, dict[str, str]] = {
    "RS256": {"kty": "RSA"},
    "RS384": {"kty": "RSA"},
    "RS512": {"kty": "RSA"},
    "PS256": {"kty": "RSA"},
    "ES256": {"kty": "EC", "crv": "P-256"},
    "ES384": {"kty": "EC", "crv": "P-384"},
    "EdDSA": {"kty": "OKP", "crv": "Ed25519"},
}


class KeySet:
    """Keys by their names, for one algorithm; asked for again when they are old or one is missing."""

    def __init__(self, url: str, algorithm: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._algorithm = algorithm
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching = asyncio.Lock()

    async def key(self, name: str) -> jwt.PyJWK | None:
        """The key of this name; while the issuer does not answer, as it was last known."""
        if self._is_due(name):
            async with self._fetching:
                # Whoever waited finds what the first one has fetched.
                if self._is_due(name):
                    await self._fetch()
        return self._keys.get(name)

    def _is_due(self, name: str) -> bool:
        now = self._clock()
        wanted = name not in self._keys or now - self._fetched >= FRESH_SECONDS
        return wanted and now - self._tried >= PATIENCE_SECONDS

    async def _fetch(self) -> None:
        try:
            self._keys = keys_of(await _download(self._url), self._algorithm)
            self._fetched = self._clock()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # A timeout has no words of its own.
            log.warning("keys of an issuer not fetched", url=self._url, reason=str(error) or repr(error))
        # Not before: who comes while it is being fetched is to wait for it.
        self._tried = self._clock()
        if not self._keys:
            log.warning("an issuer has no usable key", url=self._url, algorithm=self._algorithm)


def keys_of(document: bytes, algorithm: str) -> dict[str, jwt.PyJWK]:
    """The keys of a document that may verify tokens of the algorithm. Raises ValueError for no document.

    Left out is what is nameless, ambiguous, weak, secret, or meant for something else.
    """
    try:
        told = json.loads(document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it has no list of keys")
    fitting = [each for each in listed[:_MOST_KEYS] if isinstance(each, dict) and _fits(each, algorithm)]
    names = [each["kid"] for each in fitting]
    keys = {}
    for each in fitting:
        # One key that cannot be read must not take the others along.
        with suppress(jwt.PyJWTError, ValueError, TypeError):
            key = jwt.PyJWK(each, algorithm)
            weakness = key.Algorithm.check_key_length(key.Algorithm.prepare_key(key.key))
            if weakness is None and names.count(each["kid"]) == 1:
                keys[each["kid"]] = key
    return keys


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    operations = key.get("key_ops", ["verify"])
    return (
        isinstance(key.get("kid"), str)
        and all(key.get(name) == value for name, value in _KINDS[algorithm].items())
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        # Whoever has published the private part has lost the key.
        and "d" not in key
    )


async def _download(url: str) -> bytes:
    """The document at the operator's own URL. Raises ValueError, `aiohttp.ClientError`, `OSError`."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    # Unpacking could make much of little.
    plain = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=plain, auto_decompress=False) as http,
        http.get(url, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"it answered {response.status}")
        return await read_body(response, MAX_BYTES)
