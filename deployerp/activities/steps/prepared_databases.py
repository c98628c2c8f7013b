"""A database per server, images and modules that is made once and copied for each instance.

Odoo takes half a minute to fill a new database and a second to start on a copied one.
"""

import asyncio
from collections.abc import Collection

from deployerp.activities.steps.crashes import Watch, check_postgres, mask_log
from deployerp.activities.steps.instance_parts import PREPARED_LABEL, Images, Parts, Volumes, preparation_of
from deployerp.activities.steps.interceptor import tell
from deployerp.activities.steps.waiting import until_it_answers
from deployerp.core.errors import CommandFailed, ImageUnavailable
from deployerp.core.secrets import new_password
from deployerp.domain.instances import Instance
from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.odoo import odoo
from deployerp.drivers.server.host import Host

_POSTGRES_SECONDS = 60
_INITIALISE_SECONDS = 900
SUPERUSER = "postgres"


async def prepare(host: Host, instance: Instance, images: Images) -> Volumes:
    """The volumes to copy; makes them where there are none. Only one at a time makes them on a server."""
    engine = await host.engine()
    parts, complete = preparation_of(instance, images, await _image_ids(engine, images))
    async with host.lock("prepared-databases"):
        if complete in await engine.find_volumes({PREPARED_LABEL: None}):
            tell("There is one to copy")
            return parts.volumes
        # What a killed predecessor left, also for another instance, is of unknown worth and in the way.
        await _discard(engine, parts)
        try:
            await _make(host, engine, parts)
            await engine.ensure_volume(complete, _prepared_label(parts))
        except BaseException:
            await asyncio.shield(_discard(engine, parts))
            raise
    return parts.volumes


async def _make(host: Host, engine: Engine, parts: Parts) -> None:
    password = new_password()
    for volume in (parts.volumes.pgdata, parts.volumes.filestore):
        await engine.ensure_volume(volume, _prepared_label(parts))
    await engine.ensure_network(parts.network, parts.labels)
    tell("Starting PostgreSQL")
    environment = {"POSTGRES_USER": SUPERUSER, "POSTGRES_PASSWORD": new_password()}
    await engine.ensure_container(parts.postgres_spec(environment))
    await start_postgres(host, engine, parts, secrets=environment.values())
    await run_sql(engine, parts, odoo.create_database_sql(password), database=SUPERUSER)
    tell("Odoo fills it with its modules")
    configuration = odoo.Configuration(odoo.CAPACITIES["development"], password, new_password())
    await _initialise(engine, parts.odoo_spec(configuration, command=odoo.initialise_command()), [password])
    # Copied while it is stopped: a cluster that was shut down cleanly starts without recovery.
    await engine.stop_container(parts.postgres)
    await engine.remove_container(parts.postgres)
    await engine.remove_network(parts.network)


async def _initialise(engine: Engine, spec: ContainerSpec, secrets: Collection[str]) -> None:
    try:
        await engine.run_once(spec, timeout=_INITIALISE_SECONDS)
    except CommandFailed as error:
        status, output = error.details["exit_status"], error.details["output"]
        raise CommandFailed(
            f"Odoo ended with exit status {status} while it filled the database: "
            "the last lines of its log tell why.",
            log=mask_log(output, secrets),
        ) from error


async def _discard(engine: Engine, parts: Parts) -> None:
    await engine.remove_labelled(_prepared_label(parts))


async def start_postgres(host: Host, engine: Engine, parts: Parts, secrets: Collection[str]) -> None:
    """Starts PostgreSQL and waits until it takes connections over the network.

    Raises `ContainerFailed`, `DiskFull`, `NotHealthy`; what is shown of its log has the `secrets` masked.
    """
    watch = Watch(host, engine, parts, secrets)

    async def look() -> None:
        await watch.look(parts.postgres)
        await check_postgres(engine, parts)

    await engine.start_container(parts.postgres)
    await until_it_answers(look, seconds=_POSTGRES_SECONDS)


async def run_sql(engine: Engine, parts: Parts, sql: str, *, database: str = odoo.DATABASE) -> None:
    """Runs statements as the superuser, through standard input: they hold secrets.

    Raises `CommandFailed`.
    """
    await engine.execute(
        parts.postgres,
        ["psql", "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--dbname", database, "--file", "-"],
        input=sql.encode(),
        user=SUPERUSER,
        timeout=60,
        check=True,
    )


async def _image_ids(engine: Engine, images: Images) -> tuple[str, ...]:
    found = {name: await engine.image_id(name) for name in (images.postgres, images.odoo)}
    for name, image_id in found.items():
        if image_id is None:
            raise ImageUnavailable(f"The server lost the image {name}: retry the operation.")
    return tuple(image_id for image_id in found.values() if image_id)


def _prepared_label(parts: Parts) -> dict[str, str]:
    return {PREPARED_LABEL: parts.labels[PREPARED_LABEL]}
