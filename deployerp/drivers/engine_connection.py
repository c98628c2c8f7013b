"""The connection to one Docker Engine, and how its failures become errors of ours."""

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiodocker
import aiohttp

from deployerp.domain.errors import EngineError, EngineRefused

# An engine that says nothing for this long while it should be answering is taken for dead.
_SILENCE_SECONDS = 120
_REFUSALS = (400, 404)


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


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn every failure to do `what` into EngineError, or EngineRefused where trying again is in vain."""
    try:
        yield
    except aiodocker.DockerError as error:
        kind = EngineRefused if error.status in _REFUSALS else EngineError
        raise kind(
            f"The Docker engine could not {what}: {error.message}",
            details={"engine_status": error.status},
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise EngineError(
            f"The Docker engine stopped answering when asked to {what}: check that it runs on the server.",
            details={"reason": f"{type(error).__name__}: {error}"},
        ) from error


def label_filter(labels: Mapping[str, str | None]) -> dict[str, list[str]]:
    """The engine's filter for things with all these labels; None stands for any value.

    Raises ValueError without a label, because that would select everything on the server.
    """
    if not labels:
        raise ValueError("select by at least one label")
    return {"label": [name if value is None else f"{name}={value}" for name, value in labels.items()]}
