"""The sender of webhooks against real receivers on loopback; what it refuses is in test_hostile_urls.py."""

import asyncio
import gzip
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from deployerp.core.errors import EndpointUnreachable
from deployerp.drivers.web.http import WebhookSender, retry_after_of
from tests.certificates import write_certificate
from tests.drivers.web.receivers import (
    LOOPBACK,
    answering,
    raw_receiver,
    receiver,
    recorded_connects,
    resolving,
    saying,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def connects() -> Iterator[list[object]]:
    with recorded_connects() as record:
        yield record


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
    async with raw_receiver(saying(head + bomb)) as port:
        answer = await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    assert answer.status == 200
    assert len(answer.excerpt) <= 4096
    assert not answer.excerpt.startswith("0")


async def test_a_receiver_that_stalls_is_given_up_after_the_timeout() -> None:
    async with raw_receiver(saying(b"")) as port:
        with pytest.raises(EndpointUnreachable, match=r"No answer within 0\.3 s"):
            await WebhookSender([LOOPBACK], timeout=0.3).send(f"http://127.0.0.1:{port}/", b"", {})


async def test_a_name_server_that_stalls_counts_towards_the_timeout() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    with pytest.raises(EndpointUnreachable, match=r"No answer within 0\.2 s"):
        await WebhookSender(timeout=0.2, resolve=resolve).send("http://hooks.test/", b"", {})


async def test_a_body_that_stalls_does_not_undo_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployerp.drivers.web.http._EXCERPT_SECONDS", 0.2)
    async with raw_receiver(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")) as port:
        answer = await WebhookSender([LOOPBACK], timeout=5).send(f"http://127.0.0.1:{port}/", b"", {})
    assert (answer.status, answer.excerpt) == (200, "part")


async def test_what_is_not_http_and_what_does_not_listen_are_unreachable() -> None:
    async with raw_receiver(saying(b"220 mail.example ESMTP\r\n")) as port:
        with pytest.raises(EndpointUnreachable, match="without an HTTP answer"):
            await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})
    with pytest.raises(EndpointUnreachable, match="No connection"):
        await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {})


async def test_errors_do_not_repeat_the_url() -> None:
    async with raw_receiver(saying(b"nonsense\r\n\r\n")) as port:
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
    files = write_certificate(folder, name)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    return server


async def test_tls_asks_for_the_name_and_checks_it(tmp_path: Path, connects: list[object]) -> None:
    server = _certificate(tmp_path, "hooks.test")
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=tmp_path / "hooks.test.pem")
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


async def test_a_name_is_verified_also_beside_a_kept_connection_of_another(tmp_path: Path) -> None:
    server = _certificate(tmp_path, "hooks.test")
    resolve, _ = resolving(["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=tmp_path / "hooks.test.pem")
    async with (
        receiver(answering(), ssl_context=server) as port,
        WebhookSender([LOOPBACK], resolve=resolve, tls=trusting) as sender,
    ):
        assert (await sender.send(f"https://hooks.test:{port}/", b"", {})).status == 200
        with pytest.raises(EndpointUnreachable, match="certificate does not hold"):
            await sender.send(f"https://other.test:{port}/", b"", {})


# Names and addresses.


@pytest.mark.parametrize("failure", [OSError("no such name"), UnicodeError("label too long"), None])
async def test_a_name_without_an_address_is_unreachable(failure: Exception | None) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if failure:
            raise failure
        return []

    with pytest.raises(EndpointUnreachable, match=r"hooks\.test has no address"):
        await WebhookSender(resolve=resolve).send("http://hooks.test/", b"", {})


async def test_every_checked_address_is_tried(connects: list[object]) -> None:
    resolve, _ = resolving(["127.0.0.3", "127.0.0.1"])
    async with receiver(answering()) as port:
        sender = WebhookSender([IPv4Network("127.0.0.0/8")], resolve=resolve)
        assert (await sender.send(f"http://hooks.test:{port}/", b"", {})).status == 200
    assert connects == [("127.0.0.3", port), ("127.0.0.1", port)]


async def test_an_address_that_does_not_answer_leaves_time_for_the_next(connects: list[object]) -> None:
    resolve, _ = resolving(["127.0.0.3", "127.0.0.1"])
    async with receiver(answering()) as port:
        with _deaf("127.0.0.3", port):
            connects.clear()
            sender = WebhookSender([IPv4Network("127.0.0.0/8")], timeout=2, resolve=resolve)
            assert (await sender.send(f"http://hooks.test:{port}/", b"", {})).status == 200
    assert connects == [("127.0.0.3", port), ("127.0.0.1", port)]


@contextmanager
def _deaf(host: str, port: int) -> Iterator[None]:
    """An address that takes no connection and does not say so: its queue is full."""
    with socket.create_server((host, port), backlog=0), socket.create_connection((host, port)):
        yield


async def test_name_servers_that_stall_do_not_hold_the_threads_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    answered = threading.Event()

    def stalled(host: object, *_: object, **__: object) -> list[object]:
        asked.append(host)
        answered.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stalled)
    threads = min(32, (os.cpu_count() or 1) + 4)  # as many as asyncio's own pool has
    sends = [asyncio.create_task(WebhookSender().send("http://hooks.test/", b"", {})) for _ in range(threads)]
    try:
        while len(asked) < threads:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.to_thread(threading.get_ident), 10)
    finally:
        answered.set()
    for send in sends:
        with pytest.raises(EndpointUnreachable, match="has no address"):
            await send


# Connections that are kept.


async def test_connections_are_kept_while_the_sender_is_held(connects: list[object]) -> None:
    async with receiver(answering(200, text="noted")) as port:
        async with WebhookSender([LOOPBACK]) as sender:
            for _ in range(3):
                assert (await sender.send(f"http://127.0.0.1:{port}/", b"{}", {})).excerpt == "noted"
            assert len(connects) == 1
        # With its holder went the connection.
        await sender.send(f"http://127.0.0.1:{port}/", b"{}", {})
    assert len(connects) == 2


async def test_connections_are_kept_while_another_attempt_runs(connects: list[object]) -> None:
    release = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await release.wait()
        return web.Response()

    sender = WebhookSender([LOOPBACK])
    async with receiver(handle) as port:
        slow = asyncio.create_task(sender.send(f"http://127.0.0.1:{port}/slow", b"", {}))
        for _ in range(3):
            await sender.send(f"http://127.0.0.1:{port}/", b"", {})
        release.set()
        assert (await slow).status == 200
        assert len(connects) == 2
        await sender.send(f"http://127.0.0.1:{port}/", b"", {})
    assert len(connects) == 3


async def test_names_do_not_share_connections(connects: list[object]) -> None:
    hosts: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        hosts.append(request.host)
        return web.Response()

    resolve, _ = resolving(["127.0.0.1"])
    async with receiver(handle) as port, WebhookSender([LOOPBACK], resolve=resolve) as sender:
        for name in ("one.test", "two.test", "one.test"):
            await sender.send(f"http://{name}:{port}/", b"", {})
    assert hosts == [f"one.test:{port}", f"two.test:{port}", f"one.test:{port}"]
    assert len(connects) == 2


async def test_the_users_headers_do_not_change_whom_it_is_for() -> None:
    hosts: list[list[str]] = []

    async def handle(request: web.Request) -> web.Response:
        hosts.append(request.headers.getall("Host"))
        return web.Response()

    async with receiver(handle) as port:
        await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"", {"host": "inner"})
    assert hosts == [[f"127.0.0.1:{port}"]]


async def test_a_kept_connection_that_the_receiver_closes_is_made_anew() -> None:
    seen: list[str] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append("connection")
        await reader.readuntil(b"\r\n\r\n")
        seen.append("request")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        seen.append("request")
        writer.close()

    async with raw_receiver(converse) as port, WebhookSender([LOOPBACK]) as sender:
        for _ in range(2):
            assert (await sender.send(f"http://127.0.0.1:{port}/", b"{}", {})).status == 200
    assert seen == ["connection", "request", "request", "connection", "request"]


async def test_a_new_connection_that_the_receiver_closes_is_a_failure() -> None:
    seen: list[str] = []

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append("request")
        writer.close()

    async with raw_receiver(converse) as port:
        with pytest.raises(EndpointUnreachable, match="broke off"):
            await WebhookSender([LOOPBACK]).send(f"http://127.0.0.1:{port}/", b"{}", {})
    assert seen == ["request"]


async def test_an_answer_that_is_not_read_to_its_end_ends_its_connection(connects: list[object]) -> None:
    part = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 10_000
    async with raw_receiver(saying(part)) as port, WebhookSender([LOOPBACK]) as sender:
        for _ in range(2):
            assert len((await sender.send(f"http://127.0.0.1:{port}/", b"{}", {})).excerpt) == 4096
    assert len(connects) == 2


# What a receiver asks for.


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
