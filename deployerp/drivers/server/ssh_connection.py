"""One SSH connection that several users share, and the bounds of what they open over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import asyncssh

from deployerp.core.errors import CommandFailed
from deployerp.drivers.server.ssh_login import HostTarget

# sshd lets ten sessions run over one connection (MaxSessions). Commands take six of them and wait for each
# other; the rest are for locks, one for each name, and for commands that outlived their time.
_COMMANDS_AT_ONCE = 6
_GOODBYE_SECONDS = 5


class SSHConnection:
    """A logged-in connection: its commands are queued, and each lock's name is held once at a time."""

    def __init__(self, target: HostTarget, ssh: asyncssh.SSHClientConnection) -> None:
        self.target = target
        self.ssh = ssh
        self.commands = asyncio.Semaphore(_COMMANDS_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def is_closed(self) -> bool:
        return self.ssh.is_closed()

    @asynccontextmanager
    async def turn(self, name: str, timeout: float) -> AsyncIterator[None]:
        """Waits until no other user of this connection holds the lock `name` or waits on the server for it.

        Raises `CommandFailed` after `timeout` seconds.
        """
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError as error:
            raise held_too_long(name) from error
        try:
            yield
        finally:
            lock.release()

    async def close(self) -> None:
        """Closes it with all that was opened over it, also when the server says nothing any more."""
        self.ssh.close()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self.ssh.wait_closed()
        except TimeoutError:
            self.ssh.abort()


def held_too_long(name: str) -> CommandFailed:
    return CommandFailed(f"Others have held the server's lock `{name}` for too long: try again.")
