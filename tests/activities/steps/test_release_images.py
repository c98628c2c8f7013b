"""The images of a release are facts: settings decide at its deploy only."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from temporalio.testing import ActivityEnvironment

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.records import Records
from deployerp.activities.steps.hosts import Hosts
from deployerp.activities.steps.instance_parts import PGDATA, Images, Parts, parts_of
from deployerp.activities.steps.prepared_databases import start_postgres
from deployerp.core.errors import ImageRefused
from deployerp.core.secrets import Vault
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.instances import Instance
from deployerp.domain.operations.messages import OperationEnd, OperationOrder
from deployerp.domain.releases import Release, active_release
from deployerp.drivers.engine.containers import ContainerSpec
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host
from tests.activities.conftest import Neighbours, Removal, docker, release_of
from tests.conftest import Fleet

pytestmark = pytest.mark.fault("8")
# Of this process alone: others run the same tests on the same engine.
_OURS = f"deployerp-test-{uuid4().hex[:12]}"
POSTGRES, ODOO = f"{_OURS}/postgres:17", f"{_OURS}/odoo:19.0"


@pytest.fixture
def set_images(images: Images, busybox: str) -> Iterator[None]:
    """Names of this test's own, which it may move."""
    docker("tag", images.postgres, POSTGRES)
    docker("tag", busybox, ODOO)
    yield
    docker("rmi", POSTGRES, ODOO)


@pytest.fixture
def hosts(settings: Settings, host: Host) -> Hosts:
    return Neighbours(Vault(settings.encryption_keys), host)


@pytest.fixture
def settings_of_the_deploy(settings: Settings) -> Settings:
    return settings.model_copy(update={"postgres_image": POSTGRES, "odoo_image": ODOO})


def steps_with(records: Records, hosts: Hosts, settings: Settings) -> InstanceActivities:
    return InstanceActivities(records, hosts, Vault(settings.encryption_keys), settings)


@pytest.fixture
async def deployed(
    set_images: None,
    fleet: Fleet,
    records: Records,
    host: Host,
    engine: Engine,
    hosts: Hosts,
    settings_of_the_deploy: Settings,
    remove_afterwards: Removal,
) -> Parts:
    """An instance of which PostgreSQL runs, with a cluster that its first start has made."""
    order = await begun(fleet, await fleet.begin_instance((await fleet.server())["id"]))
    steps = steps_with(records, hosts, settings_of_the_deploy)
    await ActivityEnvironment().run(steps.pull_images, order)
    instance = await records.get(Instance, order.resource_id)
    parts = parts_of(instance, await release_of(records, instance.id), Images(POSTGRES, ODOO))
    remove_afterwards(parts.labels)
    await engine.ensure_network(parts.network, parts.labels)
    # As the instance's own, but that the image may make the cluster without a password.
    own = parts.postgres_spec({"POSTGRES_HOST_AUTH_METHOD": "trust"})
    await engine.ensure_container(own)
    await start_postgres(host, engine, parts, [])
    await fleet.records.end_operation(OperationEnd(order, "succeeded"))
    return parts


async def begun(fleet: Fleet, answer: dict) -> OperationOrder:
    order = await fleet.order(answer["operation"]["id"])
    await fleet.records.claim_operation(order)
    return order


async def restart(fleet: Fleet, parts: Parts) -> OperationOrder:
    instance_id = parts.labels["deployerp.instance"]
    path = f"/v1/instances/{instance_id}/actions"
    return await begun(fleet, await fleet.client.data("POST", path, {"action": "restart"}, 202))


def image_of(container: str) -> str:
    return docker("inspect", "-f", "{{.Config.Image}} {{.Image}}", container).strip()


async def test_a_restart_runs_the_images_of_the_deploy(
    deployed: Parts, fleet: Fleet, records: Records, hosts: Hosts, settings: Settings, engine: Engine
) -> None:
    """The settings name others by then, and so does the tag that the deploy was made from."""
    before = await release_of(records, deployed.labels["deployerp.instance"])
    digest = await engine.image_digest(POSTGRES)
    assert (before.postgres_image, before.odoo_image, before.postgres_digest) == (POSTGRES, ODOO, digest)
    ran = image_of(deployed.postgres)
    docker("tag", ODOO, POSTGRES)
    order = await restart(fleet, deployed)
    changed = settings.model_copy(update={"postgres_image": ODOO, "odoo_image": "deployerp-test/absent:1"})
    steps = steps_with(records, hosts, changed)
    environment = ActivityEnvironment()
    for step in (steps.pull_images, steps.stop_containers, steps.start_postgres):
        await environment.run(step, order)
    assert image_of(deployed.postgres).split()[1] == ran.split()[1]
    after = await release_of(records, order.resource_id)
    assert (after.postgres_image, after.postgres_digest) == (POSTGRES, digest)


async def test_another_major_version_of_postgres_is_refused_before_anything_stops(
    deployed: Parts,
    fleet: Fleet,
    records: Records,
    hosts: Hosts,
    settings_of_the_deploy: Settings,
    engine: Engine,
    sessions: SessionFactory,
) -> None:
    order = await restart(fleet, deployed)
    await forget_images(sessions, order)
    await engine.remove_container(deployed.postgres)
    await write_version(engine, deployed, 16)
    steps = steps_with(records, hosts, settings_of_the_deploy)
    with pytest.raises(ImageRefused, match=r"is PostgreSQL 17, and the instance's data is of PostgreSQL 16"):
        await ActivityEnvironment().run(steps.pull_images, order)
    assert (await release_of(records, order.resource_id)).postgres_image is None
    await write_version(engine, deployed, 17)
    await ActivityEnvironment().run(steps.pull_images, order)


async def write_version(engine: Engine, parts: Parts, major: int) -> None:
    spec = ContainerSpec(
        name=f"{parts.prefix}-write",
        image=POSTGRES,
        labels=parts.labels,
        entrypoint=["sh", "-c", f"echo {major} >{PGDATA}/PG_VERSION"],
        user="0",
        volumes={parts.volumes.pgdata: PGDATA},
    )
    await engine.run_once(spec, timeout=60)


async def forget_images(sessions: SessionFactory, order: OperationOrder) -> None:
    async with sessions() as session, session.begin():
        nothing = dict.fromkeys(("postgres_image", "postgres_digest", "odoo_image", "odoo_digest"))
        await session.execute(
            update(Release).where(active_release(UUID(order.resource_id))).values(**nothing)
        )
