"""A full disk of a server, told as one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from deployerp.core.errors import DeployError, DiskFull, UpstreamError
from deployerp.drivers.server.host import Disk, Host

_MEGABYTE = 1_000_000
# PostgreSQL's write-ahead log grows by files of 16 MB; with less than a few of them nothing runs for long.
_FULL_BYTES = 64 << 20
_NO_SPACE = ("no space left on device", "disk quota exceeded")


@asynccontextmanager
async def naming_full_disks(host: Host) -> AsyncIterator[None]:
    """Raises `DiskFull` in place of an error that tells of a full disk in other words."""
    try:
        yield
    except DiskFull:
        raise
    except UpstreamError as error:
        said = f"{error.in_full} {error.details.get('output', '')}"
        if not _tells_of_no_space(said) or (disk := await _engine_disk(host)) is None:
            raise
        raise DiskFull(in_words(disk), log=error.log) from error


async def full_disk(host: Host, said: str) -> Disk | None:
    """The disk with the data of the server's engine, if it is full or a program `said` so."""
    disk = await _engine_disk(host)
    if disk is not None and (disk.free_bytes < _FULL_BYTES or _tells_of_no_space(said)):
        return disk
    return None


def in_words(disk: Disk) -> str:
    free, size = (f"{amount // _MEGABYTE:,}" for amount in (disk.free_bytes, disk.size_bytes))
    return (
        f"There is no space left on the server's disk at {disk.path} ({free} of {size} MB are free): "
        "free some or enlarge the disk, then retry the operation."
    )


def _tells_of_no_space(said: str) -> bool:
    return any(phrase in said.lower() for phrase in _NO_SPACE)


async def _engine_disk(host: Host) -> Disk | None:
    # It only explains another error, which must not be lost when the disk cannot be asked for.
    with suppress(DeployError):
        return await host.disk_of(await (await host.engine()).data_directory())
    return None
