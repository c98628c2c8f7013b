"""Kept SSH connections: one for each server, which all that is done there at a time shares."""

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress

from deployerp.core.errors import (
    DeployError,
    HostAuthenticationFailed,
    HostForwardingForbidden,
    HostKeyMismatch,
    HostUnreachable,
)
from deployerp.drivers.server.host import Host, open_host
from deployerp.drivers.server.ssh_connection import SSHConnection
from deployerp.drivers.server.ssh_login import HostTarget, log_in

_IDLE_SECONDS = 60.0
# sshd reads its configuration and our key when somebody logs in: what was changed there must count some day.
_LONGEST_SECONDS = 3600.0
_LOGIN_SECONDS = 10.0
# After these the next user logs in anew: the connection may be at fault, or the server's sshd put right.
_SUSPICIOUS = (HostUnreachable, HostForwardingForbidden, HostKeyMismatch, HostAuthenticationFailed)


class HostPool:
    """Opens hosts over kept connections; `close` it at the end.

    sshd limits logins (MaxStartups) and bans addresses that connect too often (PerSourcePenalties).
    """

    def __init__(self, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._kept: dict[Hashable, _Kept] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self, key: Hashable, target: HostTarget) -> AsyncIterator[Host]:
        """The server `key`, over its kept connection or a new one; `target` is where and who it is now.

        Those who come while somebody logs in wait for that login and share its failure. A connection to
        another address, host key or with another key of ours is never used.
        Raises the errors of `connect`.
        """
        kept = self._connection(key, target)
        kept.begin_use()
        try:
            connection = await asyncio.shield(kept.login)
            async with open_host(connection) as host:
                yield host
        except _SUSPICIOUS:
            self._retire(key, kept)
            raise
        finally:
            if kept.end_use() and not kept.is_retired:
                kept.call_when_idle(self._idle_seconds, lambda: self._retire(key, kept))
            self._close_unused(kept)

    def drop(self, key: Hashable) -> None:
        """Lets nobody else use the connection to the server `key`; those who do may go on."""
        if (kept := self._kept.get(key)) is not None:
            self._retire(key, kept)

    async def close(self) -> None:
        """Closes all connections, whoever uses them."""
        for kept in self._kept.values():
            kept.is_retired = True
            self._begin_to_close(kept)
        self._kept.clear()
        await asyncio.gather(*self._closing)

    def _connection(self, key: Hashable, target: HostTarget) -> "_Kept":
        kept = self._kept.get(key)
        if kept is not None and kept.serves(target):
            return kept
        if kept is not None:
            self._retire(key, kept)
        kept = self._kept[key] = _Kept(target)
        return kept

    def _retire(self, key: Hashable, kept: "_Kept") -> None:
        kept.is_retired = True
        if self._kept.get(key) is kept:
            del self._kept[key]
        self._close_unused(kept)

    def _close_unused(self, kept: "_Kept") -> None:
        if kept.is_retired and not kept.uses:
            self._begin_to_close(kept)

    def _begin_to_close(self, kept: "_Kept") -> None:
        task = asyncio.create_task(kept.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Kept:
    """One connection and how many use it."""

    def __init__(self, target: HostTarget) -> None:
        self.target = target
        self.uses = 0
        self.is_retired = False
        self._old_at = asyncio.get_running_loop().time() + _LONGEST_SECONDS
        self._idle: asyncio.TimerHandle | None = None
        # A task of its own: who began it may be cancelled while others wait for it.
        self.login = asyncio.create_task(_log_in(target))
        self.login.add_done_callback(_retrieve)

    def serves(self, target: HostTarget) -> bool:
        if target != self.target or asyncio.get_running_loop().time() > self._old_at:
            return False
        if not self.login.done():
            return True
        failed = self.login.cancelled() or self.login.exception() is not None
        return not failed and not self.login.result().is_closed

    def begin_use(self) -> None:
        self.uses += 1
        if self._idle is not None:
            self._idle.cancel()

    def end_use(self) -> bool:
        """Says whether nobody uses it any more."""
        self.uses -= 1
        return not self.uses

    def call_when_idle(self, seconds: float, work: Callable[[], None]) -> None:
        self._idle = asyncio.get_running_loop().call_later(seconds, work)

    async def close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self.login.cancel()
        with suppress(asyncio.CancelledError, DeployError):
            await (await self.login).close()


async def _log_in(target: HostTarget) -> SSHConnection:
    return SSHConnection(target, await log_in(target, _LOGIN_SECONDS))


def _retrieve(login: asyncio.Task[SSHConnection]) -> None:
    # So that asyncio does not log as lost the failure of a login that nobody waits for any more.
    if not login.cancelled():
        login.exception()
