"""The sender of webhooks against real receivers on loopback, and against URLs that must not be called."""

import asyncio
import gzip
import ipaddress
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st

from deployerp.domain.errors import AddressRefused
from deployerp.drivers.http import (
    EndpointUnreachable,
    WebhookSender,
    check_url,
    is_public,
    retry_after_of,
)

LOOPBACK = IPv4Network("127.0.0.1/32")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Every connect of this process passes here, whichever library makes it.
_connects: list[object] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        _connects.append(arguments[1])


sys.addaudithook(_audit)


@pytest.fixture
def connects() -> list[object]:
    _connects.clear()
    return _connects


@asynccontextmanager
async def receiver(handler: Handler, host: str = "127.0.0.1", **site: Any) -> AsyncIterator[int]:
    """A real HTTP server at `host`; gives its port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    port = site.pop("port", 0)
    await web.TCPSite(runner, host, port, **site).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@asynccontextmanager
async def raw_receiver(answer: bytes) -> AsyncIterator[int]:
    """A server that says `answer`, whatever it is asked, and then says nothing."""
    open_writers: list[asyncio.StreamWriter] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    for writer in open_writers:
        writer.close()
    server.close()
    await server.wait_closed()


def answering(status: int = 200) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status)

    return handle


def resolving(*answers: Sequence[str]) -> tuple[Callable[[str, int], Awaitable[Sequence[str]]], list[str]]:
    """A name server that gives one answer after the other, and what it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked


# What is sent and what comes back.


async def test_sends_the_body_and_headers_as_given_and_returns_the_answer(connects: list[object]) -> None:
    seen: list[tuple[str, str, bytes, dict[str, str]]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, await request.read(), dict(request.headers)))
        return web.Response(status=202, text="queued")

    async with receiver(handle) as port:
        answer = await WebhookSender([LOOPBACK]).send(
            f"http://127.0.0.1:{port}/hook?a=1", b'{"type":"x"}', {"webhook-id": "evt_1"}
        )
    assert (answer.status, answer.excerpt, answer.retry_after) == (202, "queued", None)
    assert answer.duration_ms < 2000
    [(method, path, body, headers)] = seen
    assert (method, path, body) == ("POST", "/hook?a=1", b'{"type":"x"}')
    assert headers["webhook-id"] == "evt_1"
    assert headers["Host"] == f"127.0.0.1:{port}"
    assert connects == [("127.0.0.1", port)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    reached: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(status=status, headers={"Location": "/inner"})

    async with receiver(handle) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/outer", b"", {})
    assert answer.status == status
    assert reached == ["/outer"]


async def test_the_excerpt_is_bounded_and_can_be_stored_as_text() -> None:
    endless = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"\x00\xff" * 8192)
        except ConnectionError:
            endless.set()
        return response

    async with receiver(handle) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
        await asyncio.wait_for(endless.wait(), 5)
    assert len(answer.excerpt) == 4096
    assert "\0" not in answer.excerpt
    answer.excerpt.encode()


async def test_a_compressed_answer_is_not_opened() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with raw_receiver(head + bomb) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    assert answer.status == 200
    assert len(answer.excerpt) <= 4096
    assert not answer.excerpt.startswith("0")


async def test_a_receiver_that_stalls_is_given_up_after_the_timeout() -> None:
    async with raw_receiver(b"") as port:
        started = time.perf_counter()
        with pytest.raises(EndpointUnreachable, match=r"No answer within 0\.3 s"):
            await WebhookSender([LOOPBACK], timeout=0.3).send(f"http://127.0.0.1:{port}/", b"", {})
    assert 0.25 < time.perf_counter() - started < 1.5


async def test_a_name_server_that_stalls_counts_towards_the_timeout() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    started = time.perf_counter()
    with pytest.raises(EndpointUnreachable, match=r"No answer within 0\.2 s"):
        await WebhookSender(timeout=0.2, resolve=resolve).send("http://hooks.test/", b"", {})
    assert time.perf_counter() - started < 1.5


async def test_a_body_that_stalls_does_not_undo_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployerp.drivers.http._EXCERPT_SECONDS", 0.2)
    async with raw_receiver(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart") as port:
        answer = await WebhookSender([LOOPBACK], timeout=5).send(f"http://127.0.0.1:{port}/", b"", {})
    assert (answer.status, answer.excerpt) == (200, "part")


async def test_what_is_not_http_and_what_does_not_listen_are_unreachable() -> None:
    async with raw_receiver(b"220 mail.example ESMTP\r\n") as port:
        with pytest.raises(EndpointUnreachable, match="without an HTTP answer"):
            await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    with pytest.raises(EndpointUnreachable, match="No connection"):
        await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})


async def test_errors_do_not_repeat_the_url() -> None:
    async with raw_receiver(b"nonsense\r\n\r\n") as port:
        with pytest.raises(EndpointUnreachable) as caught:
            await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/T0KEN?key=T0KEN", b"", {})
    assert "T0KEN" not in str(caught.value) + str(caught.value.details)
    assert caught.value.__cause__ is None


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied: list[str] = []

    async def proxy(request: web.Request) -> web.Response:
        proxied.append(request.path)
        return web.Response()

    async with receiver(proxy) as proxy_port, receiver(answering(204)) as port:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    assert answer.status == 204
    assert proxied == []


# TLS speaks to the name, over the checked address.


def _certificate(folder: Path, name: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return server


async def test_tls_asks_for_the_name_and_checks_it(tmp_path: Path, connects: list[object]) -> None:
    server = _certificate(tmp_path, "hooks.test")
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    resolve, _ = resolving(["127.0.0.1"])
    sender = WebhookSender([LOOPBACK], resolve=resolve, tls=trusting)
    async with receiver(answering(), ssl_context=server) as port:
        answer = await sender.send(f"https://hooks.test:{port}/", b"", {})
        assert (answer.status, names, connects) == (200, ["hooks.test"], [("127.0.0.1", port)])
        with pytest.raises(EndpointUnreachable, match="certificate does not hold"):
            await sender.send(f"https://other.test:{port}/", b"", {})
        with pytest.raises(EndpointUnreachable, match="certificate does not hold"):
            await WebhookSender([LOOPBACK], resolve=resolve).send(f"https://hooks.test:{port}/", b"", {})
    async with receiver(answering()) as port:
        with pytest.raises(EndpointUnreachable, match="TLS failed"):
            await sender.send(f"https://hooks.test:{port}/", b"", {})


# Where a URL must not lead.

HOSTILE_FORMS = [
    "http://user:password@93.184.216.34/",
    "http://user@93.184.216.34/",
    "http://:password@93.184.216.34/",
    "http://93.184.216.34@127.0.0.1/",
    "http://93.184.216.34\\@127.0.0.1/",
    "http://93.184.216.34 @127.0.0.1/",
    "http://93.184.216.34#@127.0.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://127.0.0.1./",
    "http://127.0.0.01/",
    "http://127.0.0.256/",
    "http://[::1%25lo]/",
    "http://[::1%lo]/",
    "http://[v1.x]/",
    "http://[::1/",
    "http://127。0。0。1/",
    "http://①②⑦.0.0.1/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://localhost%00.example.com/",
    "http://%6c%6f%63%61%6c%68%6f%73%74/",
    "http://127.0.0.1%2f.example.com/",
    "http:///etc/passwd",
    "http:127.0.0.1/",
    "http://a..example.com/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:80:90/",
    "http://example.com/\r\nHost: inner",
    "http://example.com/\tx",
    "https://bücher.example/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp://example.com/",
    "unix:///var/run/docker.sock",
    "//example.com/",
    "example.com",
    "",
    "http://" + "a" * 64 + ".example/",
    "http://example.com/" + "a" * 2048,
]

HOSTILE_LITERALS = [
    "http://127.0.0.1/",
    "http://127.255.255.254:8080/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://169.254.169.254/latest/meta-data/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://192.168.1.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a00:1::1]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[2001:db8::1]/",
    "http://[2001:20::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fd20:ce::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://localhost/",
    "http://LOCALHOST/",
]


@pytest.mark.parametrize("url", HOSTILE_FORMS)
async def test_hostile_forms_are_refused_without_a_question_or_a_connection(
    url: str, connects: list[object]
) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        check_url(url)
    resolve, asked = resolving(["93.184.216.34"])
    with pytest.raises(AddressRefused, match=r"URL must "):
        await WebhookSender([LOOPBACK], timeout=2, resolve=resolve).send(url, b"", {})
    assert (asked, connects) == ([], [])


@pytest.mark.parametrize("url", HOSTILE_LITERALS)
async def test_hostile_addresses_are_refused_without_a_connection(url: str, connects: list[object]) -> None:
    with pytest.raises(AddressRefused, match="DEPLOYERP_WEBHOOK_ALLOWED_NETWORKS"):
        await WebhookSender(timeout=2).send(url, b"", {})
    assert connects == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["fe80::1%1"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::10.0.0.1"],
        ["93.184.216.34", "10.0.0.1"],
        ["10.0.0.1", "93.184.216.34"],
        ["2606:4700::1", "::1"],
    ],
)
async def test_a_name_with_any_hostile_address_is_refused(
    addresses: list[str], connects: list[object]
) -> None:
    resolve, _ = resolving(addresses)
    with pytest.raises(AddressRefused) as caught:
        await WebhookSender(resolve=resolve).send("https://hooks.test/", b"", {})
    assert connects == []
    assert not any(address in caught.value.message for address in addresses)


async def test_a_name_that_is_rebound_is_called_where_it_was_checked(connects: list[object]) -> None:
    reached: list[str] = []

    def handler(name: str) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            reached.append(name)
            return web.Response()

        return handle

    resolve, asked = resolving(["127.0.0.2"], ["127.0.0.1"])
    sender = WebhookSender([IPv4Network("127.0.0.2/32")], resolve=resolve)
    async with (
        receiver(handler("outer"), "127.0.0.2") as port,
        receiver(handler("inner"), "127.0.0.1", port=port),
    ):
        assert (await sender.send(f"http://rebound.test:{port}/", b"", {})).status == 200
        assert (asked, reached, connects) == (["rebound.test"], ["outer"], [("127.0.0.2", port)])
        # The next attempt asks again, learns the new address and refuses it.
        with pytest.raises(AddressRefused):
            await sender.send(f"http://rebound.test:{port}/", b"", {})
    assert (asked, reached, len(connects)) == (["rebound.test"] * 2, ["outer"], 1)


async def test_every_checked_address_is_tried(connects: list[object]) -> None:
    resolve, _ = resolving(["127.0.0.3", "127.0.0.1"])
    async with receiver(answering()) as port:
        sender = WebhookSender([IPv4Network("127.0.0.0/8")], resolve=resolve)
        assert (await sender.send(f"http://hooks.test:{port}/", b"", {})).status == 200
    assert connects == [("127.0.0.3", port), ("127.0.0.1", port)]


async def test_only_the_allowed_network_is_allowed(connects: list[object]) -> None:
    sender = WebhookSender([LOOPBACK, IPv6Network("fd00::/8")])
    for host in ("127.0.0.2", "10.0.0.1", "[::1]", "[64:ff9b::127.0.0.1]"):
        with pytest.raises(AddressRefused):
            await sender.send(f"http://{host}/", b"", {})
    assert connects == []
    async with receiver(answering()) as port:
        assert (await sender.send(f"http://[::ffff:127.0.0.1]:{port}/", b"", {})).status == 200


@pytest.mark.parametrize("failure", [OSError("no such name"), UnicodeError("label too long"), None])
async def test_a_name_without_an_address_is_unreachable(failure: Exception | None) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if failure:
            raise failure
        return []

    with pytest.raises(EndpointUnreachable, match=r"hooks\.test has no address"):
        await WebhookSender(resolve=resolve).send("http://hooks.test/", b"", {})


# The rules, as such.


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/webhooks",
        "http://example.com",
        "https://EXAMPLE.com:8443/a/b?c=d%20e",
        "https://xn--bcher-kva.example/",
        "https://example.com./",
        "https://my_host.example/",
        "https://93.184.216.34/",
        "https://[2606:4700::1111]:8443/",
        "https://1.2.3.4.example/",
    ],
)
def test_ordinary_urls_keep_to_the_rule(url: str) -> None:
    assert check_url(url) == url


@given(st.text() | st.from_regex(r"https?://[!-~]{0,40}", fullmatch=True))
@example("http://[")
@example("http://[::ffff:1.2.3.4.5]/")
@example("http://xn--/")
def test_the_rule_raises_nothing_but_its_error(url: str) -> None:
    complaint: Exception | None = None
    try:
        assert check_url(url) == url
    except ValueError as error:
        complaint = error
    assert complaint is None or (type(complaint) is ValueError and str(complaint).startswith("must "))


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6) | st.ip_addresses(v=6, network="2000::/3"))
def test_what_is_public_is_global_to_the_standard_library_too(address: IPv4Address | IPv6Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast
    assert is_public(address) or not _is_surely_public(address)


def _is_surely_public(address: IPv4Address | IPv6Address) -> bool:
    return address in ipaddress.ip_network("2600::/12" if address.version == 6 else "8.0.0.0/8")


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_public_as_the_one_it_holds(address: IPv4Address) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        embedded = IPv6Address(int(IPv6Address(prefix)) + int(address))
        assert is_public(embedded) == is_public(address)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        ("999999999999", 86_400),
        ("9" * 5000, None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
        ("Fri, 02 Jan 2026 03:05:05 -0000", 60.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_of(value, NOW) == seconds


@given(st.text())
@example("0 0 0 0 0 0")
@example(", ")
def test_retry_after_never_raises(value: str) -> None:
    seconds = retry_after_of(value, NOW)
    assert seconds is None or 0 <= seconds <= 86_400
