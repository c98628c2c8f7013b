"""Kept connections to servers, on a real sshd (case R13)."""

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deployerp.core.errors import HostForwardingForbidden, HostKeyMismatch, HostUnreachable
from deployerp.drivers.server import host_pool
from deployerp.drivers.server.host import Host, generate_key_pair
from deployerp.drivers.server.host_pool import HostPool
from tests.machines import SSHServer, sshd_with

pytestmark = pytest.mark.fault("27")

KEY = "a server"


@pytest.fixture
async def pool() -> AsyncIterator[HostPool]:
    pool = HostPool()
    yield pool
    await pool.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SSHServer]:
    with sshd_with(tmp_path) as server:
        yield server


async def echo(pool: HostPool, server: SSHServer, word: str = "in") -> str:
    async with pool.open(KEY, server.target) as host:
        return await said(host, word)


async def said(host: Host, word: str = "in") -> str:
    return (await host.run(["echo", word], timeout=20)).text


async def test_one_after_the_other_share_a_connection(pool: HostPool, server: SSHServer) -> None:
    for word in ("one", "two", "three"):
        assert await echo(pool, server, word) == word
    assert len(server.logins()) == 1


async def test_what_one_opens_is_closed_at_its_end_and_not_with_the_connection(
    pool: HostPool, server: SSHServer
) -> None:
    async with pool.open(KEY, server.target) as kept:
        async with pool.open(KEY, server.target) as host:
            engine = await host.engine()
            await engine.version()
            path = await host.forward_socket("/var/run/docker.sock")
            assert os.access(path, os.W_OK)
        assert not os.access(path, os.F_OK)
        assert await said(kept) == "in"
        async with asyncio.timeout(5):
            while kept._connection._channels:
                await asyncio.sleep(0.05)
    assert len(server.logins()) == 1


async def test_a_connection_that_nobody_uses_is_closed_after_a_while(server: SSHServer) -> None:
    pool = HostPool(idle_seconds=0.3)
    assert await echo(pool, server) == "in"
    async with pool.open(KEY, server.target) as host:
        await asyncio.sleep(0.5)
        assert await said(host) == "in"
    async with asyncio.timeout(5):
        while "Disconnected from" not in server.log.read_text():
            await asyncio.sleep(0.05)
    assert await echo(pool, server) == "in"
    assert len(server.logins()) == 2
    await pool.close()


async def test_closing_the_pool_closes_what_it_keeps(pool: HostPool, server: SSHServer) -> None:
    async with pool.open(KEY, server.target) as host:
        connection = host._connection
    await pool.close()
    assert connection.is_closed()


async def test_a_broken_connection_is_replaced(pool: HostPool, server: SSHServer) -> None:
    async with pool.open(KEY, server.target) as host:
        host._connection.abort()
        with pytest.raises(HostUnreachable):
            await said(host)
        await host._connection.wait_closed()
    assert await echo(pool, server) == "in"
    assert len(server.logins()) == 2


async def test_another_host_key_is_never_served_by_an_old_connection(
    pool: HostPool, server: SSHServer
) -> None:
    async with pool.open(KEY, server.target) as old:
        changed = server.with_host_key(generate_key_pair("another").public)
        with pytest.raises(HostKeyMismatch):
            async with pool.open(KEY, changed):
                pytest.fail("used a connection to another machine")
        assert await said(old) == "in"
    assert await echo(pool, server) == "in"
    assert len(server.logins()) == 2


async def test_another_login_key_is_never_served_by_an_old_connection(
    pool: HostPool, server: SSHServer
) -> None:
    assert await echo(pool, server) == "in"
    other = generate_key_pair("new")
    authorized = server.log.parent / "authorized_keys"
    authorized.write_text(other.public + "\n")
    async with pool.open(KEY, server.with_key(other.private)) as host:
        assert await said(host) == "in"
    assert len(server.logins()) == 2


async def test_a_dropped_connection_serves_those_who_have_it_and_nobody_else(
    pool: HostPool, server: SSHServer
) -> None:
    async with pool.open(KEY, server.target) as old:
        pool.drop(KEY)
        assert await echo(pool, server) == "in"
        assert await said(old) == "in"
    assert len(server.logins()) == 2


async def test_who_is_cancelled_while_logging_in_does_not_take_the_others_along(
    pool: HostPool, server: SSHServer
) -> None:
    first, second = (asyncio.create_task(echo(pool, server)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "in"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(server.logins()) == 1


async def test_a_failing_login_is_shared_and_the_next_tries_anew(
    pool: HostPool, server: SSHServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_pool, "_LOGIN_SECONDS", 0.5)
    tries = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    target = dataclasses.replace(server.target, port=port)

    async def use() -> None:
        async with pool.open(KEY, target):
            pytest.fail("logged in to silence")

    async with listener:
        began = time.monotonic()
        failures = await asyncio.gather(*(use() for _ in range(20)), return_exceptions=True)
        assert {type(failure) for failure in failures} == {HostUnreachable}
        assert (tries, time.monotonic() - began < 3) == (1, True)
    assert await echo(pool, server) == "in"


async def test_forwarding_that_sshd_allows_since_is_used_at_once(
    pool: HostPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = await asyncio.start_unix_server(lambda reader, writer: writer.close(), tmp_path / "socket")
    with sshd_with(tmp_path, "AllowStreamLocalForwarding no") as server:
        async with listening:
            with pytest.raises(HostForwardingForbidden):
                async with pool.open(KEY, server.target) as host:
                    await host.check_forwarding()
            config = tmp_path / "sshd_config"
            config.write_text(config.read_text().replace("AllowStreamLocalForwarding no\n", ""))
            server.process.send_signal(1)
            await asyncio.sleep(0.5)
            async with pool.open(KEY, server.target) as host:
                await host.check_forwarding()


async def test_an_sshd_that_runs_fewer_commands_at_once_is_told_of_and_got_over(
    pool: HostPool, tmp_path: Path
) -> None:
    with sshd_with(tmp_path, "MaxSessions 1") as server:
        async with pool.open(KEY, server.target) as busy:
            sleeping = asyncio.create_task(busy.run(["sleep", "2"], timeout=10))
            await asyncio.sleep(0.3)
            with pytest.raises(HostUnreachable, match="MaxSessions"):
                await echo(pool, server)
            assert await echo(pool, server) == "in"
            await sleeping


async def test_commands_wait_for_each_other_below_the_limit_of_sessions(
    pool: HostPool, server: SSHServer
) -> None:
    async def sleep() -> int:
        async with pool.open(KEY, server.target) as host:
            return (await host.run(["sleep", "0.1"], timeout=10)).exit_status

    assert await asyncio.gather(*(sleep() for _ in range(40))) == [0] * 40
    assert len(server.logins()) == 1


async def test_commands_that_were_given_up_do_not_use_up_the_sessions(
    pool: HostPool, server: SSHServer
) -> None:
    async with pool.open(KEY, server.target) as host:
        for _ in range(12):
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.1):
                    await host.run(["sleep", "0.3"], timeout=10)
            # sshd keeps the session until the command has ended: no more than some of them at a time.
            await asyncio.sleep(0.3)
        assert await said(host) == "in"
