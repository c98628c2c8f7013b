"""The images that the control plane needs, on its own engine: already there, pulled, or built.

Where no registry answers, an image with the official one's contract is built from packages by the
Dockerfiles under `images/`, under the very name that was asked for.
"""

import asyncio
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import aiodocker

from deployerp.core.errors import EngineError, ImageUnavailable
from deployerp.drivers.engine.connection import doing
from deployerp.drivers.engine.images import MEGABYTE, Images
from deployerp.drivers.engine.networks import ignoring
from deployerp.embedded.local_engine import Machine, Report, engine_url, exclusive, install_packages, run

DIGEST_LABEL = "deployerp.image.digest"
# What a recipe's `prepare` writes, beside its Dockerfile.
PREPARED = "rootfs.tar"
# Relative to a checkout, which is also what an editable installation runs from.
IMAGES = Path(__file__).parents[2] / "images"

_REPORT_SECONDS = 5
_OUTPUT_LINES = 30
_SLOW_ANSWER_SECONDS = 3
_PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"})


@dataclass(frozen=True)
class Recipe:
    """How an image is had without a registry.

    `directory` of its Dockerfile; the image it is built `on`; `prepare`, a program there that is given the
    path of an archive to write for the build; `public` names may be asked of a registry, the others are
    ours alone: whoever owned them there could slip in an image.
    """

    directory: str
    on: str | None = "debian:13"
    prepare: str | None = None
    public: bool = True


RECIPES: Mapping[str, Recipe] = {
    "debian:13": Recipe("debian", on=None, prepare="make-rootfs"),
    "caddy:2.11": Recipe("caddy"),
    "odoo:19.0": Recipe("odoo"),
    "postgres:17": Recipe("postgres"),
    "deployerp/node:1": Recipe("node", public=False),
}


@dataclass(frozen=True)
class ProvidedImage:
    """An image of the engine; `image_id` is `sha256:...`, `origin` how it came to be there."""

    name: str
    image_id: str
    origin: Literal["present", "registry", "built"]


# Registries that let us wait for nothing once: this process does not wait for them again.
_silent_registries: set[str] = set()


class Builder(Images):
    """An engine that also builds."""

    async def digest(self, name: str) -> str | None:
        """What the image was built from, or None for an image that we did not build."""
        image = await self._image(name)
        labels = (image or {}).get("Config", {}).get("Labels") or {}
        # A label is inherited: that of an image built by hand names our base, not it.
        owner, _, digest = labels.get(DIGEST_LABEL, "").partition(" ")
        return str(digest) if owner == name else None

    async def build(self, name: str, context: IO[bytes], digest: str, report: Report) -> None:
        """Build the tar `context`; raises EngineError with the end of the build's output in `details`."""
        tail: deque[str] = deque(maxlen=_OUTPUT_LINES)
        said = time.monotonic()
        messages = self._docker.images.build(
            fileobj=context,
            encoding="identity",
            tag=name,
            buildargs=await _proxies(),
            labels={DIGEST_LABEL: f"{name} {digest}"},
            forcerm=True,
            stream=True,
        )
        with doing(f"build image {name}"):
            try:
                async for message in messages:
                    lines = [line.strip() for line in message.get("stream", "").splitlines() if line.strip()]
                    tail.extend(lines)
                    if lines and time.monotonic() - said > _REPORT_SECONDS:
                        said = time.monotonic()
                        report(f"{name}: {lines[-1][:100]}")
            except aiodocker.DockerError as error:
                raise EngineError(
                    f"Image {name} could not be built: {error.message}", details={"output": list(tail)}
                ) from error

    async def discard(self, image_id: str) -> None:
        """Remove an image that has no name any more; one that a container uses stays."""
        with doing(f"remove image {image_id}"), ignoring(404, 409):
            await self._docker.images.delete(image_id)


async def provide(
    name: str, *, report: Report, state: Path, images: Path = IMAGES, recipes: Mapping[str, Recipe] = RECIPES
) -> ProvidedImage:
    """Have the image on the local engine: look, ask its registry, build it.

    `report` gets a line per thing that happens; `state` is a folder for locks and scratch; `images` holds
    the Dockerfiles. Several tasks and processes may ask at once, for the same image or for others.
    An image of ours whose Dockerfile or base has changed since is made anew.
    Raises ImageUnavailable when nobody has it and there is no recipe, EngineError when a build fails.
    """
    async with Builder(engine_url()) as engine:
        return await _Workshop(engine, report, state, images, recipes).provide(name)


@dataclass(frozen=True)
class _Workshop:
    """What every step of providing needs."""

    engine: Builder
    report: Report
    state: Path
    images: Path
    recipes: Mapping[str, Recipe]

    async def provide(self, name: str) -> ProvidedImage:
        lock = name.replace("/", "_").replace(":", "_")
        async with exclusive(self.state / "images" / f"{lock}.lock"):
            digest = recipe_digest(name, self.images, self.recipes)
            found = await self.engine.image_id(name)
            outdated = found and digest and await self.engine.digest(name) not in (None, digest)
            if found and not outdated:
                return ProvidedImage(name, found, "present")
            refusal = "its recipe has changed" if outdated else await self._pull(name)
            if refusal:
                self.report(f"{name}: {refusal}; building it from packages.")
                await self._build(name, digest)
            made = await self.engine.image_id(name)
            if made is None:
                raise EngineError(f"Image {name} was removed as soon as it was made: try again.")
            if found and found != made:
                await self.engine.discard(found)
            return ProvidedImage(name, made, "built" if refusal else "registry")

    async def _pull(self, name: str) -> str | None:
        """None when the registry gave it, else why not; raised when there is no recipe to fall back on."""
        recipe, registry = self.recipes.get(name), _registry(name)
        if recipe and not recipe.public:
            return "it is in no registry"
        if recipe and registry in _silent_registries:
            return "no registry answers"
        started = time.monotonic()
        try:
            await self.engine.pull_image(name, lambda text: self.report(f"{name}: {text} from the registry"))
        except (ImageUnavailable, EngineError) as error:
            if recipe is None:
                raise
            if time.monotonic() - started > _SLOW_ANSWER_SECONDS:
                _silent_registries.add(registry)
            reason = str(error.details.get("reason", "no answer")).rpartition(": ")[2]
            return f"no registry serves it ({reason})"
        self.report(f"{name}: pulled from the registry in {time.monotonic() - started:.0f} s.")
        return None

    async def _build(self, name: str, digest: str | None) -> None:
        recipe = self.recipes[name]
        directory = self.images / recipe.directory
        if digest is None:
            raise ImageUnavailable(
                f"Image {name} is in no engine and no registry, and {directory} has no Dockerfile: "
                "run from a checkout, or load the image into the engine (docker load).",
                details={"image": name},
            )
        if recipe.on:
            await self.provide(recipe.on)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(
            dir=self.state, prefix="build-", ignore_cleanup_errors=True
        ) as scratch:
            context = Path(scratch, "context")
            shutil.copytree(directory, context)
            if recipe.prepare:
                await _prepare(context / recipe.prepare, context / PREPARED)
            archive = await asyncio.to_thread(_archive, context, Path(scratch, "context.tar"))
            with archive.open("rb") as content:
                await self.engine.build(name, content, digest, self.report)
        # The library ends a stream that broke off as if it were complete.
        if await self.engine.digest(name) != digest:
            raise EngineError(f"The build of image {name} broke off: try again.", details={"image": name})
        size = await self.engine.image_size(name) or 0
        self.report(f"{name}: built in {time.monotonic() - started:.0f} s, {size // MEGABYTE} MB.")


def recipe_digest(name: str, images: Path = IMAGES, recipes: Mapping[str, Recipe] = RECIPES) -> str | None:
    """Of everything that the image is built from, its base's recipe included; None without a Dockerfile."""
    recipe = recipes.get(name)
    if recipe is None or not (images / recipe.directory / "Dockerfile").is_file():
        return None
    base = recipe_digest(recipe.on, images, recipes) if recipe.on else None
    total = hashlib.sha256((base or "").encode())
    directory = images / recipe.directory
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        executable = path.stat().st_mode & 0o100
        total.update(f"{path.relative_to(directory)} {executable} {content}\n".encode())
    return total.hexdigest()


async def _prepare(program: Path, archive: Path) -> None:
    machine = Machine()
    if not machine.root:
        raise ImageUnavailable(
            "No registry answers, and only root can make a base image from packages: run as root, "
            "or load debian:13 into the engine (docker load)."
        )
    if shutil.which("debootstrap") is None:
        await install_packages("debootstrap", "debian-archive-keyring", machine=machine)
    await run(str(program), str(archive))


async def _proxies() -> dict[str, str]:
    """This machine's proxies as build arguments: the engine keeps those names out of an image's history."""
    proxies = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES and value}
    if "http_proxy" not in proxies and shutil.which("apt-config"):
        settings = await run("apt-config", "dump")
        configured = re.search(r'^Acquire::http::Proxy "(http.+)";', settings, re.MULTILINE)
        if configured:
            proxies["http_proxy"] = configured[1]
    return proxies


def _archive(directory: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(directory, arcname=".")
    return path


def _registry(name: str) -> str:
    """The registry's host; a first part without a dot, a port or `localhost` is a user of the default one."""
    first, slash, _ = name.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "default"
