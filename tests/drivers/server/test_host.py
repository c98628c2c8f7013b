"""SSH against a real sshd, and against servers that are not the one that was pinned."""

import asyncio
import dataclasses
import errno
import os
import socket
import stat
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from deployerp.core.errors import (
    CommandFailed,
    EngineError,
    HostAuthenticationFailed,
    HostForwardingForbidden,
    HostKeyMismatch,
    HostUnreachable,
    ProxyError,
)
from deployerp.drivers.caddy import Caddy
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import connect, generate_key_pair
from deployerp.drivers.server.ssh_login import HostTarget
from tests.machines import sshd_with


class Witness(asyncssh.SSHServer):
    """Records every try to log in."""

    def __init__(self, tries: list[str]) -> None:
        self.tries = tries

    def begin_auth(self, username: str) -> bool:
        self.tries.append(username)
        return True


@asynccontextmanager
async def impostor(*algorithms: str) -> AsyncIterator[tuple[int, list[str]]]:
    tries: list[str] = []
    keys = [asyncssh.generate_private_key(algorithm) for algorithm in algorithms]
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=keys, server_factory=lambda: Witness(tries)
    )
    yield listener.get_port(), tries
    listener.close()
    await listener.wait_closed()


def test_key_pair_is_ed25519_and_its_private_half_is_not_shown() -> None:
    pair = generate_key_pair("a comment")
    assert pair.public.startswith("ssh-ed25519 ")
    assert pair.public.endswith(" a comment")
    assert "\n" not in pair.public
    assert asyncssh.import_private_key(pair.private).export_public_key().decode().strip() == pair.public
    target = HostTarget("127.0.0.1", 22, "root", pair.private, pair.public)
    assert "PRIVATE" not in repr(pair) + repr(target)
    assert pair.private not in repr(pair) + repr(target)


async def test_run_passes_arguments_as_they_are(sshd: Any) -> None:
    argv = ["printf", "%s|", "two words", "$HOME", "`id`", "it's", "a;b", "", "-n", "ä\n"]
    async with connect(sshd.target) as host:
        completed = await host.run(argv, timeout=10)
    assert completed.exit_status == 0
    assert completed.stdout.decode() == "two words|$HOME|`id`|it's|a;b||-n|ä\n|"


async def test_run_feeds_input_and_ends_it(sshd: Any) -> None:
    payload = os.urandom(3_000_000)
    async with connect(sshd.target) as host:
        assert (await host.run(["cat"], input=payload, timeout=20)).stdout == payload
        assert (await host.run(["wc", "-c"], input=b"", timeout=10)).text == "0"
        assert (await host.run(["wc", "-c"], timeout=10)).text == "0"


async def test_run_reports_what_a_failing_command_said(sshd: Any) -> None:
    argv = ["sh", "-c", "echo fine; echo broken >&2; exit 3"]
    async with connect(sshd.target) as host:
        with pytest.raises(CommandFailed) as caught:
            await host.run(argv, timeout=10)
        assert caught.value.details == {"exit_status": 3, "stderr": "broken"}
        completed = await host.run(argv, timeout=10, check=False)
    assert (completed.exit_status, completed.stdout, completed.stderr) == (3, b"fine\n", b"broken\n")


async def test_a_command_killed_by_a_signal_is_a_failure(sshd: Any) -> None:
    async with connect(sshd.target) as host:
        with pytest.raises(CommandFailed):
            await host.run(["sh", "-c", "kill -9 $$"], timeout=10)


async def test_run_ends_when_time_is_up(sshd: Any) -> None:
    async with connect(sshd.target) as host:
        began = time.monotonic()
        with pytest.raises(CommandFailed, match=r"within 0\.3 s"):
            await host.run(["sleep", "30"], timeout=0.3)
        assert time.monotonic() - began < 5
        assert (await host.run(["echo", "usable"], timeout=10)).text == "usable"


async def test_forwarded_socket_is_private_and_goes_with_the_connection(sshd: Any, tmp_path: Path) -> None:
    remote = str(tmp_path / "remote.sock")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_unix_server(echo, remote)
    async with server:
        async with connect(sshd.target) as host:
            path = await host.forward_socket(remote)
            directory = Path(path).parent
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"through")
            writer.write_eof()
            assert await reader.read() == b"THROUGH"
            writer.close()
            await writer.wait_closed()
        assert not directory.exists()


async def test_forwarded_port_leads_to_where_the_server_sees_it(sshd: Any) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, connect(sshd.target) as host:
        path = await host.forward_port("127.0.0.1", server.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_a_lock_excludes_others_and_goes_with_the_connection(sshd: Any) -> None:
    name = f"test-{uuid.uuid4().hex}"
    try:
        async with connect(sshd.target) as second:
            async with connect(sshd.target) as first:
                holder = first.lock(name)
                await holder.__aenter__()
                with pytest.raises(CommandFailed, match="Others have held"):
                    async with second.lock(name, timeout=1):
                        pytest.fail("two hold one lock")
                first._connection.abort()
                async with second.lock(name, timeout=5):
                    pass
                await holder.__aexit__(None, None, None)
            for _ in range(2):
                async with second.lock(name, timeout=5):
                    pass
    finally:
        os.unlink(f"/run/deployerp-{name}.lock")  # noqa: PTH108


async def test_engine_answers_through_the_forwarded_socket(sshd: Any) -> None:
    async with connect(sshd.target) as host:
        engine = await host.engine()
        assert engine is await host.engine()
        assert (await engine.version())[0].isdigit()


async def test_another_host_key_is_refused_before_anything_is_sent(sshd: Any) -> None:
    expected = generate_key_pair("another").public
    with pytest.raises(HostKeyMismatch) as caught:
        async with connect(sshd.with_host_key(expected)):
            pytest.fail("connected to a machine that is not the server")
    assert caught.value.retryable is False

    async with impostor("ssh-ed25519") as (port, tries):
        with pytest.raises(HostKeyMismatch):
            async with connect(dataclasses.replace(sshd.target, port=port)):
                pytest.fail("connected to a machine that is not the server")
        assert tries == []


async def test_a_machine_without_a_key_of_the_pinned_kind_is_refused(sshd: Any) -> None:
    async with impostor("ecdsa-sha2-nistp256") as (port, tries):
        with pytest.raises(HostKeyMismatch):
            async with connect(dataclasses.replace(sshd.target, port=port)):
                pytest.fail("connected to a machine that is not the server")
        assert tries == []


async def test_known_hosts_files_are_not_asked(
    sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    address = f"[127.0.0.1]:{sshd.target.port}"
    (tmp_path / ".ssh" / "known_hosts").write_text(f"{address} {sshd.target.host_key}\n")
    (tmp_path / ".ssh" / "config").write_text("Host *\n  StrictHostKeyChecking no\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HostKeyMismatch):
        async with connect(sshd.with_host_key(generate_key_pair("another").public)):
            pytest.fail("trusted a file")


async def test_a_key_that_the_server_does_not_know_is_refused(
    sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The right key lies where SSH clients look by default: only the given one may be tried.
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text(sshd.target.private_key)
    monkeypatch.setenv("HOME", str(tmp_path))
    stranger = generate_key_pair("stranger")
    with pytest.raises(HostAuthenticationFailed) as caught:
        async with connect(sshd.with_key(stranger.private)):
            pytest.fail("logged in with a key that nobody allowed")
    assert stranger.private not in str(caught.value)


@pytest.mark.fault("14")
@pytest.mark.parametrize(
    "option", ["AllowStreamLocalForwarding no", "AllowTcpForwarding no", "DisableForwarding yes"]
)
async def test_an_sshd_that_forbids_forwarding_is_told_as_that(tmp_path: Path, option: str) -> None:
    listening = await asyncio.start_unix_server(lambda reader, writer: writer.close(), tmp_path / "socket")
    with sshd_with(tmp_path, option) as server:
        async with listening, connect(server.target) as host:
            for use in (host.check_forwarding, host.engine):
                with pytest.raises(HostForwardingForbidden, match=option.split()[0]) as caught:
                    await use()
                assert caught.value.retryable is False


@pytest.mark.fault("14")
async def test_an_engine_that_is_not_there_is_not_taken_for_forbidden_forwarding(sshd: Any) -> None:
    async with connect(sshd.target) as host:
        await host.check_forwarding()
        path = await host.forward_socket("/nowhere/docker.sock")
        async with Engine(f"unix://{path}") as engine, Caddy(path) as proxy:
            with pytest.raises(EngineError, match="check that it runs on the server") as refused:
                await engine.stop_container("one")
            with pytest.raises(ProxyError) as unanswered:
                await proxy.routes()
    for error in (refused.value, unanswered.value):
        assert error.retryable
        assert str(Path(path).parent) not in f"{error.message} {error.details}"


@asynccontextmanager
async def says(greeting: bytes | None) -> AsyncIterator[int]:
    """The port of a server that greets whoever comes and closes, or with None says nothing."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeting is None:
            await reader.read()
        else:
            writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def why_unreachable(target: HostTarget) -> str:
    with pytest.raises(HostUnreachable) as caught:
        async with connect(target, timeout=0.5):
            pytest.fail("logged in to what is no sshd")
    assert caught.value.retryable
    return caught.value.message


@pytest.mark.fault("14")
@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"220 mail.example.com ESMTP\r\n", "does not speak SSH"),
        (None, "says nothing for 0.5 s"),
        (b"", "closed the connection before it spoke SSH"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "was lost while we logged in"),
        (b"Exceeded MaxStartups\r\n", "MaxStartups"),
        (b"Not allowed at this time\r\n", "PerSourcePenalties"),
    ],
)
async def test_what_is_at_the_port_is_told_apart(sshd: Any, greeting: bytes | None, words: str) -> None:
    async with says(greeting) as port:
        assert words in await why_unreachable(dataclasses.replace(sshd.target, port=port))


@pytest.mark.fault("14")
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refuses connections"),
        (OSError(errno.EHOSTUNREACH, "no route"), "no route to the server"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "has no address"),
        (TimeoutError(), "did not answer within 0.5 s"),
        (OSError(errno.EADDRNOTAVAIL, "no ports left"), "No connection"),
    ],
)
async def test_why_there_is_no_connection_is_told_apart(
    sshd: Any, monkeypatch: pytest.MonkeyPatch, failure: OSError, words: str
) -> None:
    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
    assert words in await why_unreachable(sshd.target)


async def test_a_closed_port_is_unreachable_and_worth_a_retry(sshd: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(HostUnreachable) as caught:
            async with connect(dataclasses.replace(sshd.target, port=unused.getsockname()[1])):
                pytest.fail("connected to nothing")
    assert caught.value.retryable


async def test_a_machine_that_says_nothing_is_unreachable_in_time(sshd: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(HostUnreachable):
            async with connect(dataclasses.replace(sshd.target, port=silent.getsockname()[1]), timeout=0.5):
                pytest.fail("connected to silence")
        assert time.monotonic() - began < 3


async def test_a_server_that_dies_is_noticed(sshd: Any) -> None:
    """A relay between us and sshd stops passing bytes on, as a machine without power does."""
    frozen = asyncio.Event()
    relays: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if frozen.is_set():
                await asyncio.sleep(3600)
            writer.write(data)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", sshd.target.port)
        relays.append(asyncio.create_task(pump(reader, upstream_writer)))
        relays.append(asyncio.create_task(pump(upstream_reader, writer)))
        writers.extend([writer, upstream_writer])

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    target = dataclasses.replace(sshd.target, port=server.sockets[0].getsockname()[1])
    try:
        async with connect(target) as host:
            assert (await host.run(["echo", "alive"], timeout=5)).text == "alive"
            frozen.set()
            began = time.monotonic()
            with pytest.raises(HostUnreachable):
                await host.run(["sleep", "60"], timeout=60)
            assert 10 < time.monotonic() - began < 25
    finally:
        server.close()
        for task in relays:
            task.cancel()
        for writer in writers:
            writer.close()
