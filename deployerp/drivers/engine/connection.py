"""The connection to one Docker Engine, and how its failures become errors of ours."""

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiodocker
import aiohttp

from deployerp.core.errors import EngineError, EngineRefused
from deployerp.drivers.reasons import reason_of

# An engine that says nothing for this long while it should be answering is taken for dead.
_SILENCE_SECONDS = 120
_REFUSALS = (400, 404)
# The library's own status for a connection that could not be made.
_NOT_CONNECTED = 900


class EngineConnection:
    """Speaks to the engine at `url` (`unix:///path`); use as an async context manager, or call `close`."""

    def __init__(self, url: str) -> None:
        timeout = aiohttp.ClientTimeout(sock_connect=10, sock_read=_SILENCE_SECONDS)
        # Half of aiodocker is not typed, so that typing the other half would only look safe.
        self._docker: Any = aiodocker.Docker(url, timeout=timeout)

    async def close(self) -> None:
        await self._docker.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def version(self) -> str:
        """The engine's version, for example `20.10.24`. Raises EngineError while it does not answer."""
        with doing("say its version"):
            return str((await self._docker.version())["Version"])

    async def data_directory(self) -> str:
        """Where on its server the engine keeps images, containers and volumes."""
        with doing("say where its data is"):
            return str((await self._docker.system.info())["DockerRootDir"])


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn every failure to do `what` into EngineError, or EngineRefused where trying again is in vain."""
    try:
        yield
    except aiodocker.DockerError as error:
        if error.status == _NOT_CONNECTED:
            # Its text names the socket, which with a server is a path of the control plane.
            raise EngineError(
                f"The Docker engine cannot be reached to {what}: check that it runs on the server.",
                details={"reason": reason_of(error.__context__ or error)},
            ) from error
        kind = EngineRefused if error.status in _REFUSALS else EngineError
        raise kind(
            f"The Docker engine could not {what}: {error.message}",
            details={"engine_status": error.status},
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise EngineError(
            f"The Docker engine stopped answering when asked to {what}: check that it runs on the server.",
            details={"reason": reason_of(error)},
        ) from error


def label_filter(labels: Mapping[str, str | None]) -> dict[str, list[str]]:
    """The engine's filter for things with all these labels; None stands for any value.

    Raises ValueError without a label, because that would select everything on the server.
    """
    if not labels:
        raise ValueError("select by at least one label")
    return {"label": [name if value is None else f"{name}={value}" for name, value in labels.items()]}
