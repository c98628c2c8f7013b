"""The engine's verbs, on a real engine: over its own socket and over one forwarded through SSH."""

import asyncio
import dataclasses
import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from deployerp.core.errors import CommandFailed, EngineError, EngineRefused, ImageUnavailable
from deployerp.drivers.engine.containers import ContainerSpec, PublishedPort
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import connect

SECRET = "correct-horse-battery-staple"
SLEEP = ["sleep", "600"]


@pytest.fixture(params=["local", "ssh"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    if request.param == "local":
        async with Engine.local() as local:
            yield local
    else:
        async with connect(request.getfixturevalue("sshd").target) as host:
            yield await host.engine()


@pytest.fixture
def name() -> str:
    return f"deployerp-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def spec(name: str, busybox: str, label: dict[str, str]) -> ContainerSpec:
    return ContainerSpec(name=name, image=busybox, labels=label, command=SLEEP, stop_timeout=0)


def docker(*arguments: str, check: bool = True) -> str:
    """What the engine's own client says."""
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True).stdout


def labels_of(kind: str, name: str) -> dict[str, str]:
    template = "{{json .Labels}}" if kind != "container" else "{{json .Config.Labels}}"
    return dict(json.loads(docker(kind, "inspect", "-f", template, name)))


# Containers


async def test_a_container_is_kept_while_its_spec_is_the_same(engine: Engine, spec: ContainerSpec) -> None:
    first = await engine.ensure_container(spec)
    [state] = await engine.find_containers(spec.labels)
    assert (state.id, state.name, state.state, state.image) == (first, spec.name, "created", spec.image)
    assert (state.exit_code, state.started_at, state.health) == (None, None, None)
    await engine.start_container(spec.name)
    await engine.start_container(spec.name)
    assert await engine.ensure_container(spec) == first
    [state] = await engine.find_containers(spec.labels)
    assert state.state == "running"
    assert state.started_at is not None
    assert abs(datetime.now(UTC) - state.started_at) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"A": "1"}},
        {"files": {"/etc/made": b"x"}},
        {"command": ["sleep", "601"]},
        {"memory_bytes": 64 << 20},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_container_is_replaced_when_its_spec_changes(
    engine: Engine, spec: ContainerSpec, change: dict[str, Any]
) -> None:
    first = await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    second = await engine.ensure_container(dataclasses.replace(spec, **change))
    assert second != first
    [state] = await engine.find_containers(spec.labels)
    assert (state.id, state.state) == (second, "created")


async def test_what_a_killed_predecessor_left_half_made_is_replaced(
    engine: Engine, spec: ContainerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_file = dataclasses.replace(spec, files={"/etc/made": b"x"})
    with monkeypatch.context() as killed:
        killed.setattr("deployerp.drivers.engine.engine.archive", lambda files: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await engine.ensure_container(with_file)
    await engine.ensure_container(with_file)
    await engine.start_container(spec.name)
    assert (await engine.execute(spec.name, ["cat", "/etc/made"], timeout=10)).stdout == b"x"
    assert [state.name for state in await engine.find_containers(spec.labels)] == [spec.name]


async def test_files_are_in_place_before_the_start(engine: Engine, spec: ContainerSpec) -> None:
    content = os.urandom(100_000)
    volume = f"{spec.name}-volume"
    await engine.ensure_volume(volume, spec.labels)
    spec = dataclasses.replace(
        spec,
        volumes={volume: "/data"},
        files={"/etc/made.conf": content, "/data/deep/er/in.volume": b"kept"},
        command=["sh", "-c", "cat /etc/made.conf >/tmp/copy; exec sleep 600"],
    )
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    await asyncio.sleep(0.3)
    assert (await engine.execute(spec.name, ["cat", "/tmp/copy"], timeout=10)).stdout == content
    assert (await engine.execute(spec.name, ["cat", "/data/deep/er/in.volume"], timeout=10)).text == "kept"
    owners = await engine.execute(
        spec.name, ["stat", "-c", "%U %a", "/etc/made.conf", "/data/deep", "/etc"], timeout=10
    )
    assert owners.text.replace("UNKNOWN", "root").split("\n") == ["root 644", "root 755", "root 755"]


async def test_stop_restart_and_remove_can_be_repeated(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    await engine.restart_container(spec.name, timeout=0)
    [state] = await engine.find_containers(spec.labels)
    assert state.state == "running"
    for _ in range(2):
        await engine.stop_container(spec.name, timeout=0)
    [state] = await engine.find_containers(spec.labels)
    assert (state.state, state.exit_code) == ("exited", 137)
    for _ in range(2):
        await engine.remove_container(spec.name)
    await engine.stop_container(spec.name)
    assert await engine.find_containers(spec.labels) == []


async def test_a_container_is_stopped_as_it_wants_before_it_is_removed(
    engine: Engine, spec: ContainerSpec
) -> None:
    volume = f"{spec.name}-volume"
    await engine.ensure_volume(volume, spec.labels)
    script = "trap 'echo clean >/data/end; exit 0' TERM; touch /data/up; while :; do sleep 0.05; done"
    polite = dataclasses.replace(
        spec, command=["sh", "-c", script], volumes={volume: "/data"}, stop_timeout=10
    )
    await engine.ensure_container(polite)
    await engine.start_container(spec.name)
    reader = dataclasses.replace(
        spec, name=f"{spec.name}-reader", volumes={volume: "/data"}, command=["cat", "/data/end"]
    )
    await asyncio.sleep(0.5)
    await engine.remove_container(spec.name)
    assert (await engine.run_once(reader, timeout=20)).text == "clean"


async def test_starting_what_is_not_there_is_refused_for_good(engine: Engine, name: str) -> None:
    with pytest.raises(EngineRefused) as caught:
        await engine.start_container(name)
    assert caught.value.retryable is False


async def test_a_container_of_an_unknown_image_says_so(engine: Engine, spec: ContainerSpec) -> None:
    with pytest.raises(ImageUnavailable, match="deployerp-test/nothing"):
        await engine.ensure_container(dataclasses.replace(spec, image="deployerp-test/nothing:1"))


async def test_the_whole_spec_reaches_the_container(engine: Engine, spec: ContainerSpec) -> None:
    network = f"{spec.name}-net"
    await engine.ensure_network(network, spec.labels)
    full = dataclasses.replace(
        spec,
        entrypoint=["sh", "-c"],
        command=["id -u >/tmp/user; exec sleep 600"],
        environment={"COLOUR": "blue"},
        network=network,
        aliases=["other-name"],
        published_ports=[PublishedPort(8080, 0, "127.0.0.1")],
        restart_policy="unless-stopped",
        memory_bytes=64 << 20,
        nano_cpus=500_000_000,
        user="1234",
        stop_timeout=7,
    )
    container = await engine.ensure_container(full)
    await engine.start_container(spec.name)
    [inspected] = json.loads(docker("inspect", container))
    host = inspected["HostConfig"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert (host["Memory"], host["NanoCpus"]) == (64 << 20, 500_000_000)
    assert inspected["Config"]["StopTimeout"] == 7
    assert inspected["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"
    assert "other-name" in inspected["NetworkSettings"]["Networks"][network]["Aliases"]
    asked = await engine.execute(spec.name, ["sh", "-c", "cat /tmp/user; echo $COLOUR"], timeout=10)
    assert asked.text == "1234\nblue"
    [state] = await engine.find_containers(spec.labels)
    assert state.networks[network].count(".") == 3


# Secrets


def test_neither_the_spec_nor_its_fingerprint_shows_a_secret(spec: ContainerSpec) -> None:
    secret = dataclasses.replace(spec, environment={"PASSWORD": SECRET}, files={"/etc/f": SECRET.encode()})
    assert SECRET not in repr(secret)
    labels = secret.engine_config()["Labels"]
    assert SECRET not in json.dumps(labels)
    other = dataclasses.replace(secret, files={"/etc/f": b"other"})
    assert labels["deployerp.spec"] != other.fingerprint()


@pytest.mark.parametrize("environment", [{"": SECRET}, {"A=B": SECRET}, {"A": f"{SECRET}\0"}])
async def test_a_bad_variable_is_refused_without_its_value(
    engine: Engine, spec: ContainerSpec, environment: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="environment variable") as caught:
        dataclasses.replace(spec, environment=environment)
    assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="environment variable") as caught:
        await engine.execute(spec.name, ["true"], environment=environment, timeout=5)
    assert SECRET not in str(caught.value)


async def test_failed_programs_do_not_tell_secrets(engine: Engine, spec: ContainerSpec) -> None:
    argv = ["sh", "-c", "env; env >&2; exit 4"]
    environment = {"PASSWORD": SECRET, "LONGER": f"{SECRET}-and-more"}
    with pytest.raises(CommandFailed) as caught:
        await engine.run_once(dataclasses.replace(spec, command=argv, environment=environment), timeout=20)
    assert "PASSWORD=***" in caught.value.details["output"]
    assert "and-more" not in caught.value.details["output"]
    assert SECRET not in f"{caught.value} {caught.value.details}"

    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    with pytest.raises(CommandFailed) as caught:
        await engine.execute(spec.name, argv, environment=environment, timeout=20, check=True)
    assert SECRET not in f"{caught.value} {caught.value.details}"


async def test_a_container_that_cannot_start_does_not_tell_secrets(
    engine: Engine, spec: ContainerSpec
) -> None:
    broken = dataclasses.replace(
        spec, command=["no-such-program"], environment={"PASSWORD": SECRET}, files={"/etc/f": SECRET.encode()}
    )
    await engine.ensure_container(broken)
    with pytest.raises(EngineError, match="no-such-program") as caught:
        await engine.start_container(spec.name)
    assert SECRET not in f"{caught.value} {caught.value.details}"


# Programs


async def test_execute_gives_exit_code_and_both_outputs(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    argv = ["sh", "-c", "echo out; echo err >&2; echo $VALUE; id -u; exit 5"]
    ended = await engine.execute(
        spec.name, argv, environment={"VALUE": "two words $HOME"}, user="77", timeout=10
    )
    assert ended.exit_code == 5
    assert ended.stdout == b"out\ntwo words $HOME\n77\n"
    assert ended.stderr == b"err\n"


async def test_execute_feeds_the_whole_input_and_ends_it(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    payload = os.urandom(5_000_000)
    ended = await engine.execute(spec.name, ["cat"], input=payload, timeout=30)
    assert ended.stdout == payload
    assert (await engine.execute(spec.name, ["wc", "-c"], input=b"", timeout=10)).text == "0"
    # A program that leaves most of its input unread is no failure of ours.
    ended = await engine.execute(spec.name, ["head", "-c", "3"], input=b"abc" * 1_000_000, timeout=10)
    assert (ended.exit_code, ended.stdout) == (0, b"abc")


async def test_execute_gives_up_when_time_is_up(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"within 0\.3 s"):
        await engine.execute(spec.name, SLEEP, timeout=0.3)
    assert time.monotonic() - began < 5
    assert (await engine.execute(spec.name, ["cat"], timeout=10)).exit_code == 0


async def test_execute_refuses_endless_output(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    with pytest.raises(EngineError, match="16 MiB"):
        await engine.execute(spec.name, ["cat", "/dev/zero"], timeout=30)
    await engine.remove_container(spec.name)


async def test_execute_in_a_stopped_container_fails(engine: Engine, spec: ContainerSpec) -> None:
    await engine.ensure_container(spec)
    with pytest.raises(EngineError, match="not running"):
        await engine.execute(spec.name, ["cat"], timeout=10)


async def test_run_once_leaves_nothing_behind(engine: Engine, spec: ContainerSpec) -> None:
    once = dataclasses.replace(
        spec, command=["sh", "/etc/script"], files={"/etc/script": b"echo done; echo warned >&2"}
    )
    # What a killed predecessor left under the same name.
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    ended = await engine.run_once(once, timeout=20)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, b"done\n", b"warned\n")
    with pytest.raises(CommandFailed) as caught:
        await engine.run_once(
            dataclasses.replace(once, files={"/etc/script": b"echo bad; exit 9"}), timeout=20
        )
    assert caught.value.details == {"exit_status": 9, "output": "bad"}
    with pytest.raises(EngineError, match=r"within 0\.3 s"):
        await engine.run_once(spec, timeout=0.3)
    task = asyncio.create_task(engine.run_once(spec, timeout=60))
    while [one.state for one in await engine.find_containers(spec.labels)] != ["running"]:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await engine.find_containers(spec.labels) == []


async def test_logs_are_the_last_lines(engine: Engine, spec: ContainerSpec) -> None:
    noisy = dataclasses.replace(
        spec, command=["sh", "-c", "for i in 1 2 3 4; do echo $i; done; exec sleep 600"]
    )
    await engine.ensure_container(noisy)
    await engine.start_container(spec.name)
    await asyncio.sleep(0.3)
    assert await engine.logs(spec.name, tail=2) == "3\n4\n"


# Networks and volumes


async def test_networks_connect_containers_by_alias(engine: Engine, spec: ContainerSpec) -> None:
    network = f"{spec.name}-net"
    for _ in range(2):
        await engine.ensure_network(network, spec.labels)
    assert await engine.find_networks(spec.labels) == [network]
    assert labels_of("network", network) == spec.labels
    served = dataclasses.replace(
        spec, command=["httpd", "-f", "-p", "80", "-h", "/tmp"], files={"/tmp/hello": b"hi"}
    )
    await engine.ensure_container(served)
    await engine.start_container(spec.name)
    await asyncio.gather(*(engine.connect_network(spec.name, network, ["web"]) for _ in range(2)))
    await engine.connect_network(spec.name, network, ["web"])
    client = dataclasses.replace(
        spec,
        name=f"{spec.name}-client",
        network=network,
        command=["sh", "-c", "printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | nc web 80"],
    )
    assert (await engine.run_once(client, timeout=20)).text.endswith("hi")
    for _ in range(2):
        await engine.disconnect_network(spec.name, network)
    [state] = await engine.find_containers(spec.labels)
    assert network not in state.networks
    await engine.disconnect_network(f"{spec.name}-nobody", network)


async def test_volumes_are_copied_with_owners_and_modes(engine: Engine, spec: ContainerSpec) -> None:
    source, target = f"{spec.name}-a", f"{spec.name}-b"
    for volume in (source, target, target):
        await engine.ensure_volume(volume, spec.labels)
    assert await engine.find_volumes(spec.labels) == [source, target]
    fill = (
        "mkdir -m 700 /v/.hidden; echo x >/v/.hidden/file; cd /v/.hidden; chown 999:998 file; chmod 640 file"
    )
    writer = dataclasses.replace(spec, command=["sh", "-c", fill], volumes={source: "/v"})
    await engine.run_once(writer, timeout=20)
    for _ in range(2):
        await engine.copy_volume(source, target, spec.image, spec.labels)
    reader = dataclasses.replace(
        spec, command=["stat", "-c", "%u %g %a", "/v/.hidden", "/v/.hidden/file"], volumes={target: "/v"}
    )
    assert (await engine.run_once(reader, timeout=20)).text == "0 0 700\n999 998 640"


async def test_volumes_that_the_engine_makes_by_itself_are_labelled(
    engine: Engine, spec: ContainerSpec
) -> None:
    volume = f"{spec.name}-implicit"
    await engine.ensure_container(dataclasses.replace(spec, volumes={volume: "/v"}))
    assert labels_of("volume", volume) == spec.labels


async def test_remove_labelled_removes_all_of_the_label_and_nothing_else(
    engine: Engine, spec: ContainerSpec
) -> None:
    network, volume = f"{spec.name}-net", f"{spec.name}-vol"
    mine = {**spec.labels, "deployerp.instance": spec.name}
    await engine.ensure_network(network, mine)
    await engine.ensure_volume(volume, mine)
    await engine.ensure_container(
        dataclasses.replace(spec, labels=mine, network=network, volumes={volume: "/v"})
    )
    await engine.start_container(spec.name)
    shared, stopped = (
        dataclasses.replace(spec, name=f"{spec.name}-{suffix}") for suffix in ("shared", "stopped")
    )
    for other in (shared, stopped):
        await engine.ensure_container(other)
        await engine.connect_network(other.name, network)
    await engine.start_container(shared.name)

    selection = {"deployerp.instance": spec.name}
    await asyncio.gather(*(engine.remove_labelled(selection) for _ in range(2)))
    await engine.remove_labelled(selection)

    assert await engine.find_containers(selection) == []
    assert await engine.find_networks(selection) == []
    assert await engine.find_volumes(selection) == []
    states = {state.name: state.state for state in await engine.find_containers(spec.labels)}
    assert states == {shared.name: "running", stopped.name: "created"}
    # It would refuse to start while it still remembered the removed network.
    await engine.start_container(stopped.name)


async def test_removing_without_a_label_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="label"):
        await engine.remove_labelled({})


# Images


async def test_an_image_travels_from_engine_to_engine(engine: Engine, busybox: str) -> None:
    name = f"deployerp-test/travel:{uuid.uuid4().hex[:8]}"
    docker("tag", busybox, name)
    try:
        identity, size = await engine.image_id(name), await engine.image_size(name)
        assert identity is not None
        assert size is not None
        chunks = [chunk async for chunk in engine.export_image(name)]
        docker("rmi", name)
        assert await engine.image_id(name) is None
        said: list[str] = []
        await engine.load_image(_each(chunks), said.append, size_bytes=size)
        assert await engine.image_id(name) == identity
        assert said[0] == f"1 of {size // 1_000_000} MB"
    finally:
        docker("rmi", name, check=False)


async def test_loading_what_is_no_image_fails(engine: Engine) -> None:
    with pytest.raises(EngineError):
        await engine.load_image(_each([b"no tar at all" * 1000]), lambda _: None)


async def test_exporting_what_is_not_there_says_so(engine: Engine) -> None:
    with pytest.raises(ImageUnavailable):
        await anext(engine.export_image("deployerp-test/nothing:1"))


@pytest.mark.parametrize("registry", ["no-such-host.invalid", "127.0.0.1:1"])
async def test_a_registry_that_is_not_there_is_told_apart(engine: Engine, registry: str) -> None:
    with pytest.raises(ImageUnavailable, match="No registry answers"):
        await engine.pull_image(f"{registry}/image:1", lambda _: None)


async def test_a_registry_that_says_nothing_is_given_up_soon(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployerp.drivers.engine.images._FIRST_ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(ImageUnavailable, match="No registry answers"):
            await engine.pull_image(f"127.0.0.1:{silent.getsockname()[1]}/image:1", lambda _: None)
        assert time.monotonic() - began < 3


class Registry:
    """As much of a registry as a pull needs, with one image of 3 MB."""

    def __init__(self) -> None:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            entry = tarfile.TarInfo("payload")
            entry.size = 3_000_000
            tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
        packed = gzip.compress(layer.getvalue(), 1)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [_digest(layer.getvalue())]},
            }
        ).encode()
        docker = "application/vnd.docker"
        self.manifest_type = f"{docker}.distribution.manifest.v2+json"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.manifest_type,
                "config": _descriptor(f"{docker}.container.image.v1+json", config),
                "layers": [_descriptor(f"{docker}.image.rootfs.diff.tar.gzip", packed)],
            }
        ).encode()
        self.blobs = {_digest(blob): blob for blob in (config, packed)}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind, reference = request.path.rsplit("/", 2)[-2:] if request.path != "/v2/" else ("", "")
        if kind == "":
            return web.json_response({})
        if kind == "manifests" and reference in ("1", _digest(self.manifest)):
            return web.Response(body=self.manifest, content_type=self.manifest_type)
        if kind == "blobs" and reference in self.blobs:
            return await self._trickle(request, self.blobs[reference])
        body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return web.json_response(body, status=404)

    async def _trickle(self, request: web.Request, blob: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
        await response.prepare(request)
        for start in range(0, len(blob), 500_000):
            await response.write(blob[start : start + 500_000])
            await asyncio.sleep(0.15)
        return response


@pytest.fixture
async def registry() -> AsyncIterator[tuple[Registry, str]]:
    registry = Registry()
    application = web.Application()
    application.router.add_route("*", "/v2/{rest:.*}", registry.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield registry, f"127.0.0.1:{runner.addresses[0][1]}/deployerp-test/pulled"
    await runner.cleanup()


async def test_a_pull_reports_its_progress(engine: Engine, registry: tuple[Registry, str]) -> None:
    name = f"{registry[1]}:1"
    said: list[str] = []
    try:
        await engine.pull_image(name, said.append)
        assert await engine.image_id(name) is not None
        assert [text for text in said if text.endswith(" of 3 MB")]
        assert said[-1] == "unpacking"
        said.clear()
        await engine.pull_image(name, said.append)
        assert said == []
    finally:
        docker("rmi", name, check=False)


async def test_an_image_that_the_registry_does_not_know_is_unavailable(
    engine: Engine, registry: tuple[Registry, str]
) -> None:
    with pytest.raises(ImageUnavailable, match="does not serve") as caught:
        await engine.pull_image(f"{registry[1]}:2", lambda _: None)
    assert caught.value.retryable is False


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(content), "digest": _digest(content)}


async def _each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


# The connection


async def test_an_engine_that_is_not_there_is_worth_a_retry(tmp_path: Path) -> None:
    async with Engine(f"unix://{tmp_path}/nothing.sock") as engine:
        with pytest.raises(EngineError) as caught:
            await engine.version()
        assert caught.value.retryable


async def test_an_engine_behind_a_dead_forward_is_worth_a_retry(sshd: Any) -> None:
    async with connect(sshd.target) as host:
        path = await host.forward_socket("/nowhere/docker.sock")
        async with Engine(f"unix://{path}") as engine:
            with pytest.raises(EngineError) as caught:
                await engine.find_containers({"deployerp.test": None})
    assert caught.value.retryable


async def test_a_volume_that_an_image_declares_is_kept_in_memory_unless_it_is_mounted(
    engine: Engine, spec: ContainerSpec, busybox: str, name: str
) -> None:
    """An engine that dies while it removes a container would leave a volume without a label or a name."""
    image = f"{name}:1"
    made = docker("create", "--name", f"{name}-base", busybox, "true").strip()
    docker("commit", "--change", "VOLUME /kept", "--change", "VOLUME /lost", made, image)
    docker("rm", made)
    try:
        await engine.ensure_container(dataclasses.replace(spec, image=image, volumes={name: "/kept"}))
        await engine.start_container(name)
        mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", name))
        assert [(each["Type"], each["Name"], each["Destination"]) for each in mounts] == [
            ("volume", name, "/kept")
        ]
        assert (await engine.execute(name, ["touch", "/lost/x"], timeout=10)).exit_code == 0
    finally:
        docker("rm", "--force", "--volumes", name)
        docker("volume", "rm", "--force", name)
        docker("rmi", "--force", image)
