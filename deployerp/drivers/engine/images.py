"""Images of an engine: look up, pull, and move from one engine to another with readable progress."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiodocker

from deployerp.core.errors import DeployError, EngineError, ImageUnavailable
from deployerp.drivers.engine.connection import EngineConnection, doing

# A registry that is there says something about an image within a second or two.
_FIRST_ANSWER_SECONDS = 10
_STALLED_SECONDS = 120

MEGABYTE = 1_000_000
_REASON_LENGTH = 300

# The engine hands on what its own network stack and the registry said, as text only.
_NO_SUCH_IMAGE = (
    "not found",
    "manifest unknown",
    "does not exist",
    "denied",
    "unauthorized",
    "no matching",
)
_NO_REGISTRY = (
    "no such host",
    "connection refused",
    "no route to host",
    "network is unreachable",
    "i/o timeout",
    "timeout exceeded",
    "handshake timeout",
    "context deadline exceeded",
    "server misbehaving",
    "temporary failure in name resolution",
    "connection reset",
    "x509:",
    "proxyconnect",
)


class Images(EngineConnection):
    """The engine's verbs on images."""

    async def image_id(self, name: str) -> str | None:
        """`sha256:...`, or None when the engine does not have the image."""
        image = await self._image(name)
        return None if image is None else str(image["Id"])

    async def image_digest(self, name: str) -> str | None:
        """What names exactly this image, wherever its name moves: `name@sha256:...` from a registry.

        For one that came from no registry, its id; None when the engine does not have the image.
        """
        image = await self._image(name)
        return None if image is None else str([*(image["RepoDigests"] or ()), image["Id"]][0])

    async def image_size(self, name: str) -> int | None:
        """Bytes, unpacked, which is about what `export_image` yields; None when it is not there."""
        image = await self._image(name)
        return None if image is None else int(image["Size"])

    async def pull_image(self, name: str, progress: Callable[[str], None]) -> None:
        """Pull the image unless it is there; `progress` gets texts such as `41 of 120 MB`.

        Raises ImageUnavailable when no registry answers (within 10 s) or the registry does not have it,
        EngineError when the pull broke off.
        """
        if await self.image_id(name) is not None:
            return
        tally = PullProgress(progress)
        messages = self._docker.images.pull(name, stream=True)
        patience = _FIRST_ANSWER_SECONDS
        with doing(f"pull image {name}"):
            try:
                while (message := await _next(messages, patience)) is not None:
                    tally.take(message)
                    patience = _STALLED_SECONDS
            except aiodocker.DockerError as error:
                raise pull_error(name, error.status, error.message) from error
            except TimeoutError as error:
                if patience == _FIRST_ANSWER_SECONDS:
                    raise no_registry(name, {"image": name}) from error
                raise
        # The library ends a stream that broke off as if it were complete.
        if await self.image_id(name) is None:
            raise EngineError(
                f"The pull of image {name} broke off: try again.",
                details={"image": name},
            )

    async def export_image(self, name: str) -> AsyncIterator[bytes]:
        """The image as a tar, layers and name, in chunks. Raises ImageUnavailable when it is not there."""
        if await self.image_id(name) is None:
            raise ImageUnavailable(
                f"The engine does not have image {name}: pull or build it first.",
                details={"image": name},
            )
        with doing(f"export image {name}"):
            async with self._docker.images.export_image(name) as content:
                async for chunk in content.iter_any():
                    yield chunk

    async def load_image(
        self,
        chunks: AsyncIterator[bytes],
        progress: Callable[[str], None],
        *,
        size_bytes: int | None = None,
    ) -> None:
        """Load what `export_image` of another engine yields; `progress` gets `41 of 120 MB`.

        Holds a chunk at a time, never the image. Raises EngineError when the stream is no image.
        """
        messages = self._docker.images.import_image(counted(chunks, progress, size_bytes), stream=True)
        with doing("load an image"):
            async for _ in messages:
                pass

    async def _image(self, name: str) -> dict[str, Any] | None:
        with doing(f"look up image {name}"):
            try:
                return dict(await self._docker.images.inspect(name))
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise


async def _next(messages: AsyncIterator[dict[str, Any]], seconds: float) -> dict[str, Any] | None:
    async with asyncio.timeout(seconds):
        return await anext(messages, None)


def pull_error(name: str, status: int, reason: str) -> DeployError:
    """ImageUnavailable when asking again cannot help or nobody is there to ask, else EngineError."""
    said = reason.lower()
    details = {"image": name, "engine_status": status, "reason": reason}
    if any(phrase in said for phrase in _NO_REGISTRY):
        return no_registry(name, details)
    if status == 404 or any(phrase in said for phrase in _NO_SUCH_IMAGE):
        return ImageUnavailable(
            f"The registry does not serve image {name} ({_shortened(reason)}): check its name and the"
            " registry's access rules, or load it onto the server.",
            details=details,
        )
    return EngineError(
        f"The Docker engine could not pull image {name}: {_shortened(reason)}", details=details
    )


def no_registry(name: str, details: Mapping[str, Any]) -> ImageUnavailable:
    reason = _shortened(str(details.get("reason", "no answer in time")))
    return ImageUnavailable(
        f"No registry answers for image {name} ({reason}): check the server's network, or load the image"
        " onto it.",
        details=details,
    )


def _shortened(reason: str) -> str:
    """The first line of what the engine said, without the body of an answer that it could not read."""
    line = next(iter(reason.strip().splitlines()), "no reason given")
    return line.partition("response body")[0].strip()[:_REASON_LENGTH]


class PullProgress:
    """Adds up what the engine says of each layer: `41 of 120 MB`, later `unpacking`."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._layers: dict[str, tuple[int, int]] = {}
        self._last = ""

    def take(self, message: Mapping[str, Any]) -> None:
        layer, status = str(message.get("id", "")), str(message.get("status", ""))
        detail = message.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[layer] = (detail["current"], detail["total"])
        elif status in ("Download complete", "Pull complete") and layer in self._layers:
            total = self._layers[layer][1]
            self._layers[layer] = (total, total)
        if self._layers:
            self._say()

    def _say(self) -> None:
        done = sum(current for current, _ in self._layers.values())
        total = sum(total for _, total in self._layers.values())
        text = "unpacking" if done >= total else f"{done // MEGABYTE} of {max(total // MEGABYTE, 1)} MB"
        if text != self._last:
            self._last = text
            self._report(text)


async def counted(
    chunks: AsyncIterator[bytes], report: Callable[[str], None], size_bytes: int | None
) -> AsyncIterator[bytes]:
    """The same chunks; says after each megabyte how many have passed, of how many if that is known."""
    passed = reported = 0
    async for chunk in chunks:
        yield chunk
        passed += len(chunk)
        if passed // MEGABYTE > reported:
            reported = passed // MEGABYTE
            # The tar is a little larger than the image that it holds.
            of_all = f" of {max(size_bytes // MEGABYTE, reported)}" if size_bytes else ""
            report(f"{reported}{of_all} MB")
