"""Where the sockets are that lead to servers: a folder of this process, which others like it clear up."""

import atexit
import fcntl
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import IO

_PREFIX = "deployerp-sockets-"
_LOCK = "lock"


@cache
def socket_folder() -> Path:
    """A folder that only we may enter (0700): who reaches the engine's socket rules the server.

    It goes with this process. Those of processes that were killed are removed when it is made.
    """
    remove_abandoned()
    # Under another name until it is locked: nobody else must take it for abandoned.
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
    held = _lock(folder)
    named = folder.with_name(folder.name.removeprefix("."))
    folder.rename(named)
    atexit.register(_remove, named, held)
    return named


def remove_abandoned() -> None:
    """Removes the folders whose processes are gone: nobody holds their locks any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            held = _lock(folder)
        except OSError:
            # It is in use, or another user's, or has just been removed.
            continue
        _remove(folder, held)


def _lock(folder: Path) -> IO[str]:
    """Raises OSError where another process holds the lock."""
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def _remove(folder: Path, held: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    held.close()
