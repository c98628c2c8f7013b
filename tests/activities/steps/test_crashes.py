"""Containers that end whenever they are started: real ones, on the local engine, seen through a real sshd."""

import subprocess
import time
import uuid
from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from deployerp.activities.instances import InstanceActivities
from deployerp.activities.records import Records
from deployerp.activities.steps.crashes import Watch
from deployerp.activities.steps.disks import naming_full_disks
from deployerp.activities.steps.instance_parts import ROLE_LABEL, Images, Parts, Volumes, parts_of
from deployerp.activities.steps.interceptor import Step, as_application_error
from deployerp.activities.steps.prepared_databases import _initialise, start_postgres
from deployerp.core.errors import CommandFailed, ContainerFailed, DiskFull, EngineError, HostUnreachable
from deployerp.domain.instances import Instance
from deployerp.domain.operations.messages import OperationEnd, OperationOrder
from deployerp.domain.operations.steps import StepRun
from deployerp.drivers.engine.containers import ContainerSpec, masked
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.odoo import odoo
from deployerp.drivers.server.host import Host
from tests.activities.conftest import Removal, release_of
from tests.conftest import Fleet

pytestmark = pytest.mark.fault("11")
SECRET = "correct-horse-battery-staple"
POSTGRES = {"POSTGRES_USER": "postgres", "POSTGRES_PASSWORD": SECRET}


@pytest.fixture
def parts(label: dict[str, str], busybox: str) -> Parts:
    prefix = f"deployerp-test-{uuid.uuid4().hex[:12]}"
    return Parts(
        prefix=prefix,
        labels=label,
        images=Images(busybox, busybox),
        volumes=Volumes(f"{prefix}-pgdata", f"{prefix}-filestore"),
        capacity=odoo.CAPACITIES["development"],
    )


def in_the_place_of_odoo(parts: Parts, script: str) -> ContainerSpec:
    return ContainerSpec(
        name=parts.odoo,
        image=parts.images.odoo,
        labels=parts.labels | {ROLE_LABEL: "odoo"},
        command=["sh", "-c", script],
        restart_policy="unless-stopped",
    )


def make_small_volume(name: str, labels: dict[str, str]) -> None:
    options = [part for each in ("type=tmpfs", "device=tmpfs", "o=size=20m") for part in ("--opt", each)]
    label = [part for item in labels.items() for part in ("--label", "=".join(item))]
    subprocess.run(["docker", "volume", "create", *options, *label, name], check=True, capture_output=True)


def restarts(container: str) -> int:
    asked = ["docker", "inspect", "-f", "{{.RestartCount}}", container]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)


async def until_it_restarted(watch: Watch, container: str, times: int) -> None:
    deadline = time.monotonic() + 60
    while restarts(container) < times:
        assert time.monotonic() < deadline
        await watch.look(container)


async def test_postgres_that_finds_no_space_is_told_with_its_disk(
    host: Host, engine: Engine, parts: Parts, images: Images
) -> None:
    parts = replace(parts, images=images)
    await engine.ensure_network(parts.network, parts.labels)
    make_small_volume(parts.volumes.pgdata, parts.labels)
    await engine.ensure_container(parts.postgres_spec(POSTGRES))
    started = time.monotonic()
    with pytest.raises(DiskFull) as caught:
        await start_postgres(host, engine, parts, [SECRET])
    assert time.monotonic() - started < 30
    disk = await host.disk_of(await engine.data_directory())
    assert "PostgreSQL ended 3 times with exit status 1" in caught.value.message
    assert f"disk at {disk.path} (" in caught.value.message
    assert f"of {disk.size_bytes // 1_000_000:,} MB are free" in caught.value.message
    assert "No space left on device" in caught.value.log
    assert not caught.value.retryable


async def test_an_exit_counts_only_while_postgres_answers(host: Host, engine: Engine, parts: Parts) -> None:
    await engine.ensure_container(in_the_place_of_odoo(parts, "exit 2"))
    await engine.start_container(parts.odoo)
    await until_it_restarted(Watch(host, engine, parts, []), parts.odoo, 5)


async def test_exits_of_different_kinds_are_waited_for(
    host: Host, engine: Engine, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.activities.steps.crashes.postgres_answers", answers)
    script = "test -e /tmp/odd && { rm /tmp/odd; exit 3; }; touch /tmp/odd; exit 2"
    await engine.ensure_container(in_the_place_of_odoo(parts, script.replace("rm", "busybox rm")))
    await engine.start_container(parts.odoo)
    await until_it_restarted(Watch(host, engine, parts, []), parts.odoo, 5)


async def answers(*_: object) -> bool:
    return True


async def test_what_a_program_wrote_is_shown_without_secrets(
    host: Host, engine: Engine, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.activities.steps.crashes.postgres_answers", answers)
    script = f"echo first; echo 'key {SECRET} pin 7431'; printf 'broken \\377\\000 \\033[31m\\n'; exit 42"
    await engine.ensure_container(in_the_place_of_odoo(parts, script))
    await engine.start_container(parts.odoo)
    with pytest.raises(ContainerFailed) as caught:
        await until_it_restarted(Watch(host, engine, parts, [SECRET, "7431", ""]), parts.odoo, 10)
    assert "Odoo ended 3 times with exit status 42" in caught.value.message
    assert "key *** pin ***\n" in caught.value.log
    assert not any(control in caught.value.log for control in "\0\033")


async def test_a_container_that_waits_for_its_restart_is_started_at_once(
    engine: Engine, parts: Parts
) -> None:
    spec = in_the_place_of_odoo(parts, "test -e /tmp/now && exec sleep 600; exit 2")
    await engine.ensure_container(spec)
    await engine.start_container(parts.odoo)
    while restarts(parts.odoo) < 4:
        pass
    await engine.start_container(parts.odoo)
    assert restarts(parts.odoo) < 4


@pytest.fixture
async def order(fleet: Fleet) -> OperationOrder:
    """A deploy of an instance with a secret variable that is a word of Odoo's log."""
    variables = {"WORD": {"value": "authentication", "secret": True}}
    server = await fleet.server()
    begun = await fleet.begin_instance(server["id"], envVars=variables)
    order = await fleet.order(begun["operation"]["id"])
    await fleet.records.claim_operation(order)
    return order


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_odoo_that_ends_at_once_fails_its_operation_within_seconds(
    steps: InstanceActivities,
    order: OperationOrder,
    records: Records,
    fleet: Fleet,
    engine: Engine,
    images: Images,
    remove_afterwards: Removal,
) -> None:
    """Its PostgreSQL answers and does not know the role that Odoo signs in as."""
    release = await release_of(records, order.resource_id)
    parts = parts_of(await records.get(Instance, order.resource_id), release, images)
    remove_afterwards(parts.labels)
    await engine.ensure_network(parts.network, parts.labels)
    await engine.ensure_container(parts.postgres_spec(POSTGRES))
    await engine.start_container(parts.postgres)
    environment = ActivityEnvironment()
    await environment.run(steps.pull_images, order)
    await environment.run(steps.start_postgres, order)
    await environment.run(steps.start_odoo, order)
    started = time.monotonic()
    with pytest.raises(ContainerFailed) as caught:
        async with Step(records, StepRun(order.operation_id, "wait_for_odoo")).recorded():
            await environment.run(steps.wait_for_odoo, order)
    assert time.monotonic() - started < 30
    # What passes through Temporal holds no line of the log.
    failure = as_application_error(caught.value)
    assert (failure.non_retryable, failure.details) == (True, ({},))
    assert failure.message.startswith("Odoo ended 3 times with exit status 1")
    assert "password" not in failure.message
    await records.end_operation(OperationEnd(order, "failed", failure.type, failure.message))
    told = await fleet.client.data("GET", f"/v1/operations/{order.operation_id}")
    assert told["errorCode"] == "container_failed"
    assert told["errorMessage"].startswith(failure.message + "\n")
    assert 'password *** failed for user "odoo"' in told["errorMessage"]
    assert "authentication" not in told["errorMessage"]
    instance = await fleet.client.data("GET", f"/v1/instances/{order.resource_id}")
    assert instance["statusMessage"] == failure.message


async def test_odoo_that_fails_to_fill_a_database_is_told_with_its_log(engine: Engine, parts: Parts) -> None:
    spec = replace(in_the_place_of_odoo(parts, f"echo no module {SECRET}; exit 5"), restart_policy="no")
    with pytest.raises(CommandFailed) as caught:
        await _initialise(engine, spec, [SECRET])
    assert "exit status 5" in caught.value.message
    assert (caught.value.log, caught.value.details) == ("no module ***", {})


async def test_an_engine_without_space_is_told_with_its_disk(host: Host) -> None:
    with pytest.raises(DiskFull, match=r"disk at /.* MB are free"):
        async with naming_full_disks(host):
            raise EngineError("could not create: write /var/lib/docker/x: no space left on device")
    with pytest.raises(HostUnreachable):
        async with naming_full_disks(host):
            raise HostUnreachable("It does not answer.")


@pytest.mark.parametrize(
    "written",
    [
        "pass word+1",
        '{"key": "a\\"b\\nsecond line"}',
        "'a\"b\\nsecond line'",
        "second line",
        "pass%20word%2B1",
    ],
)
def test_a_secret_is_masked_in_every_form(written: str) -> None:
    text = masked(f"it says {written}.", ["pass word+1", 'a"b\nsecond line', "a"])
    assert not any(part in text for part in ("word", "second", 'a"b'))
