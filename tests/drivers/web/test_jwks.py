"""Keys of another issuer, from a real HTTP server on loopback."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from deployerp.drivers.web import jwks
from deployerp.drivers.web.jwks import FRESH_SECONDS, MAX_BYTES, PATIENCE_SECONDS, KeySet, keys_of

RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)


def rsa_jwk(kid: str = "one", key: rsa.RSAPrivateKey = RSA, **changes: Any) -> dict[str, Any]:
    told = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig"} | changes
    return {name: value for name, value in told.items() if value is not None}


def document(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


@dataclass
class Issuer:
    """Publishes what a test wants, and counts who asks."""

    url: str = ""
    body: bytes = field(default_factory=lambda: document(rsa_jwk()))
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.answering.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    published = Issuer()
    published.answering.set()
    application = web.Application()
    application.router.add_get("/keys", published.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    published.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield published
    published.answering.set()
    await runner.cleanup()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> KeySet:
    return KeySet(issuer.url, "RS256", clock=clock)


async def test_keys_are_fetched_once_and_kept(issuer: Issuer, keys: KeySet, clock: Clock) -> None:
    key = await keys.key("one")
    assert key is not None
    assert key.algorithm_name == "RS256"
    clock.now += FRESH_SECONDS - 1
    assert await keys.key("one") is key
    assert issuer.asked == 1


async def test_old_keys_are_fetched_again_and_those_that_are_gone_count_no_more(
    issuer: Issuer, keys: KeySet, clock: Clock
) -> None:
    await keys.key("one")
    issuer.body = document(rsa_jwk("two"))
    clock.now += FRESH_SECONDS
    assert await keys.key("one") is None
    assert await keys.key("two") is not None
    assert issuer.asked == 2


async def test_an_unknown_name_fetches_again_but_not_more_often_than_patience_allows(
    issuer: Issuer, keys: KeySet, clock: Clock
) -> None:
    await keys.key("one")
    issuer.body = document(rsa_jwk("one"), rsa_jwk("two"))
    clock.now += PATIENCE_SECONDS - 1
    for number in range(50):
        assert await keys.key(f"guess {number}") is None
    assert await keys.key("two") is None
    assert issuer.asked == 1
    clock.now += 1
    assert await keys.key("two") is not None
    assert issuer.asked == 2


async def test_many_at_once_share_one_request(issuer: Issuer, keys: KeySet) -> None:
    issuer.answering.clear()
    asking = [asyncio.create_task(keys.key("one")) for _ in range(50)]
    while not issuer.asked:
        await asyncio.sleep(0)
    issuer.answering.set()
    assert len({id(key) for key in await asyncio.gather(*asking)}) == 1
    assert issuer.asked == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (document(rsa_jwk("two")), 500),
        (document(rsa_jwk("two")), 404),
        (b"<html>", 200),
        (b"\xff", 200),
        (b"[]", 200),
        (b'{"keys": {}}', 200),
        (b"[" * 100_000, 200),
        (b" " * MAX_BYTES + document(rsa_jwk("two")), 200),
    ],
    ids=["error", "not found", "HTML", "no text", "list", "no list", "nested", "too large"],
)
async def test_a_fetch_that_fails_keeps_the_old_keys(
    issuer: Issuer, keys: KeySet, clock: Clock, body: bytes, status: int
) -> None:
    await keys.key("one")
    right, issuer.body, issuer.status = issuer.body, body, status
    clock.now += FRESH_SECONDS
    assert await keys.key("one") is not None
    assert issuer.asked == 2
    # And it is patient with an issuer that is down.
    assert await keys.key("one") is not None
    assert await keys.key("two") is None
    assert issuer.asked == 2
    issuer.body, issuer.status = right, 200
    clock.now += PATIENCE_SECONDS
    assert await keys.key("one") is not None
    assert issuer.asked == 3


async def test_an_issuer_that_is_silent_or_away_gives_no_key(
    issuer: Issuer, keys: KeySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT_SECONDS", 0.05)
    issuer.answering.clear()
    assert await keys.key("one") is None
    assert await KeySet("http://127.0.0.1:1/keys", "RS256").key("one") is None
    assert await KeySet("no url", "RS256").key("one") is None


@pytest.mark.fault("3")
async def test_redirects_are_not_followed(issuer: Issuer, keys: KeySet) -> None:
    issuer.status, issuer.headers = 302, {"Location": issuer.url}
    assert await keys.key("one") is None
    assert issuer.asked == 1


@pytest.mark.fault("3")
async def test_what_is_compressed_is_not_unpacked(issuer: Issuer, keys: KeySet) -> None:
    issuer.body, issuer.headers = gzip.compress(issuer.body), {"Content-Encoding": "gzip"}
    assert await keys.key("one") is None
    assert issuer.asked == 1


def secret() -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(RSA, as_dict=True) | {"kid": "one", "key_ops": ["verify"]}


def other(algorithm: Any, key: Any) -> dict[str, Any]:
    return algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "one"}


OCTETS = {"kty": "oct", "k": "c2VjcmV0" * 8, "kid": "one", "alg": "HS256"}
P256, P384 = (other(ECAlgorithm, ec.generate_private_key(curve())) for curve in (ec.SECP256R1, ec.SECP384R1))
ED25519 = other(OKPAlgorithm, ed25519.Ed25519PrivateKey.generate())
ED448 = other(OKPAlgorithm, ed448.Ed448PrivateKey.generate())


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("RS256", rsa_jwk()),
        ("RS256", rsa_jwk(alg="RS256", key_ops=["verify"])),
        ("RS256", rsa_jwk(use=None)),
        ("PS256", rsa_jwk(alg="PS256")),
        ("ES256", P256),
        ("ES384", P384),
        ("EdDSA", ED25519),
    ],
)
def test_keys_of_the_algorithm_are_taken(algorithm: str, key: dict[str, Any]) -> None:
    # Beside one that is broken, which changes nothing.
    (taken,) = keys_of(document({**key, "kid": "broken", "n": 1, "x": 1}, "text", key), algorithm).values()
    assert taken.algorithm_name == algorithm


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("RS256", OCTETS),
        ("RS256", OCTETS | {"alg": "RS256"}),
        ("RS256", rsa_jwk(key=WEAK)),
        ("RS256", rsa_jwk(alg="PS256")),
        ("RS256", rsa_jwk(alg="HS256")),
        ("RS256", rsa_jwk(use="enc")),
        ("RS256", rsa_jwk(key_ops=["encrypt"])),
        ("RS256", rsa_jwk(kid=None)),
        ("RS256", rsa_jwk(kid=1)),
        ("RS256", secret()),
        ("RS256", P256),
        ("RS256", ED25519),
        ("ES256", P384),
        ("ES256", rsa_jwk()),
        ("EdDSA", ED448),
        ("RS256", rsa_jwk(n="")),
        ("RS256", rsa_jwk(e="!")),
    ],
)  # fmt: skip
def test_other_keys_are_left_out(algorithm: str, key: dict[str, Any]) -> None:
    assert keys_of(document(key), algorithm) == {}


def test_two_keys_of_one_name_are_none() -> None:
    assert keys_of(document(rsa_jwk(), rsa_jwk(), rsa_jwk("two")), "RS256").keys() == {"two"}
