"""The images of a release: chosen from the settings once, and recorded from then on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deployerp.activities.steps.hosts import bring_image
from deployerp.activities.steps.instance_parts import (
    PGDATA,
    Images,
    Parts,
)
from deployerp.core.errors import ImageRefused
from deployerp.domain.releases import Release
from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host

_VERSION_SECONDS = 60


@dataclass(frozen=True)
class RecordedImage:
    """An image by the name that was set, and by what names exactly this one, once that is known."""

    name: str
    digest: str | None = None


@dataclass(frozen=True)
class RecordedImages:
    postgres: RecordedImage
    odoo: RecordedImage

    def columns(self) -> Mapping[str, str | None]:
        """The facts of the release that they are."""
        return {
            "postgres_image": self.postgres.name,
            "postgres_digest": self.postgres.digest,
            "odoo_image": self.odoo.name,
            "odoo_digest": self.odoo.digest,
        }


def recorded_images(release: Release) -> RecordedImages | None:
    """None until the deploy of the release has chosen them."""
    if release.postgres_image is None or release.odoo_image is None:
        return None
    return RecordedImages(
        RecordedImage(release.postgres_image, release.postgres_digest),
        RecordedImage(release.odoo_image, release.odoo_digest),
    )


async def references(engine: Engine, images: RecordedImages) -> Images:
    """By what the engine knows the images: their names, unless these have moved on to others."""
    return Images(await _reference(engine, images.postgres), await _reference(engine, images.odoo))


async def bring_images(host: Host, images: RecordedImages) -> RecordedImages:
    """Sees to it that the server has them, and tells exactly which these are. Raises `ImageUnavailable`."""
    return RecordedImages(await _bring(host, images.postgres), await _bring(host, images.odoo))


async def check_major(engine: Engine, parts: Parts) -> None:
    """Raises `ImageRefused` when another major version of PostgreSQL made the instance's data."""
    if parts.volumes.pgdata not in await engine.find_volumes(parts.labels):
        return
    spec = ContainerSpec(
        name=f"{parts.postgres}-version",
        image=parts.images.postgres,
        labels=parts.labels,
        entrypoint=["sh", "-c"],
        command=[f"cat {PGDATA}/PG_VERSION; postgres --version"],
        user="0",
        volumes={parts.volumes.pgdata: PGDATA},
    )
    ended = await engine.run_once(spec, timeout=_VERSION_SECONDS)
    versions = re.fullmatch(r"(\d+)\s+postgres \(PostgreSQL\) (\d+).*", ended.text, re.DOTALL)
    if versions and versions[1] != versions[2]:
        raise ImageRefused(
            f"Image {parts.images.postgres} is PostgreSQL {versions[2]}, and the instance's data is of "
            f"PostgreSQL {versions[1]}, which it cannot read: bring an image of PostgreSQL {versions[1]} "
            "to the server under that name, then retry the operation."
        )


async def _reference(engine: Engine, image: RecordedImage) -> str:
    if image.digest is None:
        return image.name
    exact = await engine.image_id(image.digest)
    return image.name if exact in (None, await engine.image_id(image.name)) else image.digest


async def _bring(host: Host, image: RecordedImage) -> RecordedImage:
    await bring_image(host, image.name, image.digest)
    engine = await host.engine()
    if image.digest is not None and await engine.image_id(image.digest) is not None:
        return image
    return RecordedImage(image.name, await engine.image_digest(image.name))
