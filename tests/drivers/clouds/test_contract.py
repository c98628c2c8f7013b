"""What every cloud promises, asked of the fake, of EC2 (moto) and of the docker provider."""

import asyncio
import base64
import dataclasses
import gzip
import random
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import boto3
import docker as docker_client
import libcloud.compute.drivers.ec2
import moto.settings
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from libcloud.common.digitalocean import DigitalOcean_v2_BaseDriver, DigitalOcean_v2_Connection
from libcloud.common.exceptions import BaseHTTPError, RateLimitReachedError
from libcloud.common.types import InvalidCredsError, LibcloudError
from moto.server import ThreadedMotoServer

from deployerp.core.errors import (
    CredentialsRefused,
    DeployError,
    HostUnreachable,
    ProviderError,
    ProviderRefused,
    ProviderThrottled,
)
from deployerp.drivers.clouds.cloud import (
    Cloud,
    Node,
    NodeSpec,
    credential_fields,
    honours_client_token,
    provider_kinds,
)
from deployerp.drivers.clouds.docker import DockerNodeDriver
from deployerp.drivers.clouds.libcloud import _ROWS, LibcloudClouds
from deployerp.drivers.server import user_data
from deployerp.drivers.server.host import connect, generate_key_pair
from deployerp.drivers.server.ssh_login import HostTarget
from tests.conftest import free_port
from tests.drivers.clouds.fake_cloud import FakeCloud

AWS_CREDENTIALS = {"access_key_id": "key", "secret_access_key": "secret-value", "region": "eu-west-1"}


MOTO_IMAGE = "ami-12c6146b"


@dataclass(frozen=True)
class Subject:
    """A cloud under test, and a node that it could make; nodes with its tags are destroyed after the test."""

    cloud: Cloud
    spec: NodeSpec
    lacks: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def moto_server() -> Iterator[dict[str, Any]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"host": host, "port": port, "secure": False}
    server.stop()


def at_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    # moto leaves out the slash at the end that EC2 sends.
    monkeypatch.setattr(moto.settings, "EC2_ENABLE_INSTANCE_TYPE_VALIDATION", True)
    namespace = libcloud.compute.drivers.ec2.NAMESPACE.rstrip("/")
    monkeypatch.setattr(libcloud.compute.drivers.ec2, "NAMESPACE", namespace)


@pytest.fixture(params=["fake", "aws", "docker"])
async def subject(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Subject]:
    tags = {"deployerp.server": str(uuid.uuid4()), "deployerp.test": "contract"}
    spec = NodeSpec("contract", "small", None, None, "#!/bin/sh\n", tags, uuid.uuid4().hex)
    cloud: Cloud
    lacks: frozenset[str]
    match request.param:
        case "fake":
            cloud, lacks = FakeCloud(), frozenset()
        case "aws":
            at_moto(monkeypatch)
            clouds = LibcloudClouds({"aws": request.getfixturevalue("moto_server")})
            cloud = clouds.open("aws", AWS_CREDENTIALS)
            spec = dataclasses.replace(spec, size="t3.small", image=MOTO_IMAGE)
            # What EC2 has and moto has not: it takes a token again, and its XML does not name its encoding.
            lacks = frozenset({"client tokens", "UTF-8"})
        case _:
            cloud, lacks = LibcloudClouds().open("docker", {}), frozenset()
    yield Subject(cloud, spec, lacks)
    for node in await cloud.find_nodes(tags):
        await cloud.destroy_node(node.id)


def needs(subject: Subject, ability: str) -> None:
    if ability in subject.lacks:
        pytest.skip(f"this stand-in lacks {ability}")


async def eventually(look: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.05)


async def state_becomes(cloud: Cloud, node_id: str, state: str) -> None:
    async def look() -> bool:
        node = await cloud.get_node(node_id)
        return node is not None and node.state == state

    await eventually(look)


async def test_a_node_lives_and_is_gone(subject: Subject) -> None:
    cloud = subject.cloud
    created = await cloud.create_node(subject.spec)
    assert created.name == "contract"

    (found,) = await cloud.find_nodes(subject.spec.tags)
    assert found.id == created.id
    assert found.tags.items() >= subject.spec.tags.items()

    await state_becomes(cloud, created.id, "running")
    await cloud.stop_node(created.id)
    await state_becomes(cloud, created.id, "stopped")
    await cloud.start_node(created.id)
    await state_becomes(cloud, created.id, "running")
    await cloud.reboot_node(created.id)
    await state_becomes(cloud, created.id, "running")
    running = await cloud.get_node(created.id)
    assert running is not None
    assert running.address

    await cloud.destroy_node(created.id)
    assert await cloud.get_node(created.id) is None
    assert await cloud.find_nodes(subject.spec.tags) == []
    await cloud.destroy_node(created.id)


async def test_destroying_an_absent_node_is_success(subject: Subject) -> None:
    await subject.cloud.destroy_node("i-0123456789abcdef0")


async def test_an_absent_node_is_none(subject: Subject) -> None:
    assert await subject.cloud.get_node("i-0123456789abcdef0") is None


async def test_an_absent_node_cannot_be_started(subject: Subject) -> None:
    with pytest.raises(ProviderRefused):
        await subject.cloud.start_node("i-0123456789abcdef0")


async def test_one_client_token_gives_one_node(subject: Subject) -> None:
    needs(subject, "client tokens")
    first = await subject.cloud.create_node(subject.spec)
    second = await subject.cloud.create_node(subject.spec)
    assert first.id == second.id
    assert len(await subject.cloud.find_nodes(subject.spec.tags)) == 1


async def test_only_nodes_with_all_the_tags_are_found(subject: Subject) -> None:
    created = await subject.cloud.create_node(subject.spec)
    assert await subject.cloud.find_nodes({**subject.spec.tags, "deployerp.other": "x"}) == []
    assert await subject.cloud.find_nodes({"deployerp.server": str(uuid.uuid4())}) == []
    assert [node.id for node in await subject.cloud.find_nodes(subject.spec.tags)] == [created.id]


async def test_an_unknown_size_is_refused(subject: Subject) -> None:
    with pytest.raises(ProviderRefused):
        await subject.cloud.create_node(dataclasses.replace(subject.spec, size="no-such-size"))
    assert await subject.cloud.find_nodes(subject.spec.tags) == []


@pytest.mark.parametrize("name", ["Käse & Söhne", "a/b; $(id) 'q' \"d\"", "x" * 200])
async def test_any_name_survives(subject: Subject, name: str) -> None:
    if not name.isascii():
        needs(subject, "UTF-8")
    await subject.cloud.create_node(dataclasses.replace(subject.spec, name=name))
    (found,) = await subject.cloud.find_nodes(subject.spec.tags)
    assert found.name == name


async def test_there_is_something_to_choose_from(subject: Subject) -> None:
    sizes = await subject.cloud.list_sizes()
    assert subject.spec.size in {size.id for size in sizes}
    assert all(size.ram_mb > 0 for size in sizes)
    assert await subject.cloud.list_images()
    assert await subject.cloud.list_locations()


async def test_ec2_gets_the_user_data_that_cloud_init_unpacks(
    moto_server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_moto(monkeypatch)
    cloud = LibcloudClouds({"aws": moto_server}).open("aws", AWS_CREDENTIALS)
    script = "#!/bin/sh\n" + "echo a line of a long script\n" * 500
    node = await cloud.create_node(NodeSpec("x", "t3.small", None, MOTO_IMAGE, script, {}, "token"))
    ec2 = boto3.client(
        "ec2",
        region_name="eu-west-1",
        endpoint_url=f"http://{moto_server['host']}:{moto_server['port']}",
        aws_access_key_id="key",
        aws_secret_access_key="secret-value",
    )
    try:
        given = ec2.describe_instance_attribute(InstanceId=node.id, Attribute="userData")["UserData"]["Value"]
    finally:
        ec2.close()
    assert gzip.decompress(base64.b64decode(given)).decode() == script


# The account, before any cloud is called.


def test_every_kind_has_credentials_and_a_row() -> None:
    assert set(provider_kinds()) == set(_ROWS)
    assert honours_client_token("docker")
    assert not honours_client_token("digitalocean")
    assert [field.name for field in credential_fields("digitalocean") if field.secret] == ["token"]


@pytest.mark.parametrize(
    ("kind", "credentials", "details"),
    [
        ("nowhere", {}, {}),
        ("aws", {"access_key_id": "a", "region": "r"}, {"missing": ["secret_access_key"], "unknown": []}),
        ("docker", {"token": "x"}, {"missing": [], "unknown": ["token"]}),
    ],
)
def test_an_account_that_cannot_be_opened(
    kind: str, credentials: dict[str, str], details: dict[str, list[str]]
) -> None:
    with pytest.raises(ProviderRefused) as refused:
        LibcloudClouds().open(kind, credentials)
    assert refused.value.details == details


async def test_an_unknown_region_is_refused() -> None:
    cloud = LibcloudClouds().open("aws", {**AWS_CREDENTIALS, "region": "eu-nowhere-9"})
    with pytest.raises(ProviderRefused):
        await cloud.list_locations()


# What went wrong, in our words.


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RateLimitReachedError(headers={"retry-after": "17"}), ProviderThrottled),
        (BaseHTTPError(503, "slow down"), ProviderThrottled),
        (InvalidCredsError("no"), CredentialsRefused),
        (BaseHTTPError(422, "no such image"), ProviderRefused),
        (BaseHTTPError(409, "busy"), ProviderError),
        (BaseHTTPError(500, ""), ProviderError),
        (LibcloudError("odd"), ProviderError),
        (TimeoutError(), ProviderError),
        (ValueError("Invalid region"), ProviderRefused),
    ],
)
async def test_errors_are_told_apart_by_class_and_code(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[DeployError]
) -> None:
    def fail(self: DockerNodeDriver) -> None:
        raise raised

    monkeypatch.setattr(DockerNodeDriver, "list_locations", fail)
    with pytest.raises(expected) as caught:
        await LibcloudClouds().open("docker", {}).list_locations()
    assert type(caught.value) is expected
    if isinstance(raised, RateLimitReachedError):
        assert caught.value.details == {"retry_after": 17.0}


async def test_a_secret_that_the_cloud_repeats_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, moto_server: dict[str, Any]
) -> None:
    def fail(self: object) -> None:
        raise BaseHTTPError(400, "do not know secret-value")

    monkeypatch.setattr(libcloud.compute.drivers.ec2.EC2NodeDriver, "list_locations", fail)
    with pytest.raises(ProviderRefused) as refused:
        await LibcloudClouds({"aws": moto_server}).open("aws", AWS_CREDENTIALS).list_locations()
    assert "secret-value" not in refused.value.message


async def test_an_engine_that_does_not_answer_can_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(ProviderError) as failed:
            await LibcloudClouds().open("docker", {}).find_nodes({})
    assert failed.value.retryable


# The docker provider is a machine, too.


@dataclass(frozen=True)
class Machine:
    cloud: Cloud
    spec: NodeSpec
    node: Node
    target: HostTarget
    host_private_key: str
    script: str


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    ours, theirs = generate_key_pair("client"), generate_key_pair("host")
    script = user_data.render(theirs.private, ours.public)
    cloud = LibcloudClouds().open("docker", {})
    tags = {"deployerp.server": str(uuid.uuid4())}
    spec = NodeSpec("machine", "medium", None, None, script, tags, uuid.uuid4().hex)
    node = await cloud.create_node(spec)
    target = HostTarget("127.0.0.1", node.ssh_port, "root", ours.private, theirs.public)
    yield Machine(cloud, spec, node, target, theirs.private, script)
    await cloud.destroy_node(node.id)


async def run(target: HostTarget, *command: str, stdin: bytes = b"") -> str:
    """What a command on the node prints, once the node answers with the pinned host key."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with connect(target) as host:
                    return (await host.run(command, input=stdin, timeout=30)).text
            except HostUnreachable:
                await asyncio.sleep(0.05)


async def engine_answers(target: HostTarget) -> None:
    async def look() -> bool:
        return "ready" in await run(
            target, "sh", "-c", "docker info >/dev/null 2>&1 && echo ready || echo waiting"
        )

    await eventually(look)


async def test_user_data_makes_it_reachable_with_the_pinned_key(machine: Machine) -> None:
    assert (await run(machine.target, "id", "-u")).strip() == "0"
    marker = await run(machine.target, "cat", user_data.READY_MARKER)
    assert marker.strip() == user_data.revision(machine.script)


async def test_user_data_again_changes_nothing(machine: Machine) -> None:
    await engine_answers(machine.target)
    files = "find /etc/ssh /root/.ssh /etc/docker /etc/deployerp /var/lib/deployerp -type f"
    look = files + " -exec stat -c '%n %a %y' {} +; nft -s list ruleset; pgrep dockerd; pgrep -o sshd"
    before = await run(machine.target, "sh", "-c", look)
    said = await run(machine.target, "sh", "-s", stdin=machine.script.encode())
    assert said == ""
    assert await run(machine.target, "sh", "-c", look) == before
    assert "chain input" in before


async def test_secrets_show_neither_in_the_container_nor_in_its_processes(machine: Machine) -> None:
    await run(machine.target, "true")
    shown = (
        docker("inspect", machine.node.id) + docker("top", machine.node.id) + docker("logs", machine.node.id)
    )
    assert machine.host_private_key.splitlines()[1] not in shown
    assert "OPENSSH PRIVATE KEY" not in shown
    mode = await run(machine.target, "stat", "-c", "%a %U", "/var/lib/deployerp/user-data")
    assert mode.strip() == "600 root"


async def test_containers_live_within_the_node_and_survive_its_reboot(machine: Machine, busybox: str) -> None:
    await engine_answers(machine.target)
    await run(machine.target, "docker", "load", stdin=docker_bytes("save", busybox))
    script = "trap 'echo stopped cleanly; exit 0' TERM; while :; do sleep 0.1; done"
    await run(
        machine.target, "docker", "run", "-d", "--restart", "unless-stopped", "--name", "inner",
        busybox, "sh", "-c", script,
    )  # fmt: skip
    node_id = docker("inspect", "-f", "{{.Id}}", machine.node.id).strip()
    pid = await run(machine.target, "docker", "inspect", "-f", "{{.State.Pid}}", "inner")
    cgroups = await run(machine.target, "cat", f"/proc/{pid.strip()}/cgroup")
    assert f"{node_id}/nested/" in cgroups or "0::/" in cgroups.splitlines()

    async with connect(machine.target) as host:
        boot = await host.boot_id()
        assert await host.boot_id() == boot
    await machine.cloud.reboot_node(machine.node.id)
    again = await machine.cloud.get_node(machine.node.id)
    assert again is not None
    assert (again.ssh_port, again.http_port, again.https_port) == (
        machine.node.ssh_port,
        machine.node.http_port,
        machine.node.https_port,
    )
    await engine_answers(machine.target)
    async with connect(machine.target) as host:
        assert await host.boot_id() != boot
    assert "true" in await run(machine.target, "docker", "inspect", "-f", "{{.State.Running}}", "inner")
    assert "stopped cleanly" in await run(machine.target, "docker", "logs", "inner")


@pytest.fixture
def metadata_service(machine: Machine, busybox: str) -> Iterator[str]:
    """The address of a service outside the node that gives user data to the node, as a cloud's does."""
    name = f"metadata-{uuid.uuid4().hex[:12]}"
    serve = "echo private key > /tmp/user-data; httpd -p 53 -h /tmp; exec httpd -f -p 80 -h /tmp"
    docker("network", "create", "--subnet", f"169.254.{random.randrange(1, 255)}.0/24", name)
    try:
        docker("network", "connect", name, machine.node.id)
        docker("run", "-d", "--name", name, "--network", name, busybox, "sh", "-c", serve)
        yield docker(
            "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        ).strip()
    finally:
        for removal in (["rm", "-f", name], ["network", "disconnect", "-f", name, machine.node.id]):
            subprocess.run(["docker", *removal], capture_output=True)
        docker("network", "rm", name)


@pytest.mark.fault("3")
async def test_containers_do_not_reach_the_metadata_service(
    machine: Machine, metadata_service: str, busybox: str
) -> None:
    async def shell(line: str) -> str:
        return await run(machine.target, "bash", "-c", line)

    request = "printf 'GET /user-data HTTP/1.0\\r\\n\\r\\n'"

    async def node_reaches() -> bool:
        ask = f"exec 3<>/dev/tcp/{metadata_service}/80; {request} >&3; timeout 5 cat <&3"
        return "private key" in await shell(ask)

    async def container_reaches(port: int = 80) -> bool:
        ask = f"{request} | docker exec -i inner nc -w 2 {metadata_service} {port} 2>&1 || true"
        answer = await shell(ask)
        assert "private key" in answer or "timed out" in answer
        return "private key" in answer

    await engine_answers(machine.target)
    await run(machine.target, "docker", "load", stdin=docker_bytes("save", busybox))
    start = "docker run -d --name inner --network shop --restart unless-stopped"
    await shell(f"docker network create shop && {start} {busybox} sleep 1000000")
    assert await node_reaches()
    assert not await container_reaches()
    # Some clouds have the resolver of their machines there.
    assert await container_reaches(port=53)

    # The engine's end is the node's: what follows is a boot of both.
    await shell("pkill -KILL dockerd || true")
    await engine_answers(machine.target)
    assert await node_reaches()
    assert not await container_reaches()

    # Without the rules there is a way; preparing the machine again closes it.
    await shell("iptables -F DOCKER-USER")
    assert await container_reaches()
    await run(machine.target, "sh", "-s", stdin=machine.script.encode())
    assert not await container_reaches()


async def test_a_killed_node_boots_again(machine: Machine) -> None:
    await engine_answers(machine.target)
    docker("kill", "--signal", "KILL", machine.node.id)
    await machine.cloud.start_node(machine.node.id)
    await engine_answers(machine.target)


async def test_nothing_is_left_of_a_destroyed_node(machine: Machine) -> None:
    await machine.cloud.destroy_node(machine.node.id)
    server = machine.node.tags["deployerp.server"]
    assert docker("ps", "-aq", "--filter", f"label=deployerp.server={server}") == ""
    assert docker("volume", "ls", "-q", "--filter", f"label=deployerp.server={server}") == ""


async def test_a_volume_left_by_a_broken_destruction_goes_with_the_next(machine: Machine) -> None:
    docker("rm", "-f", machine.node.id)
    server = machine.node.tags["deployerp.server"]
    assert docker("volume", "ls", "-q", "--filter", f"label=deployerp.server={server}") != ""
    await machine.cloud.destroy_node(machine.node.id)
    assert docker("volume", "ls", "-q", "--filter", f"label=deployerp.server={server}") == ""


async def test_a_destruction_that_leaves_the_volume_is_no_success(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: docker_client.APIClient, name: str) -> None:
        raise docker_client.errors.APIError("volume is in use")

    server = machine.node.tags["deployerp.server"]
    with monkeypatch.context() as patch:
        patch.setattr(docker_client.APIClient, "remove_volume", refuse)
        with pytest.raises(ProviderError):
            await machine.cloud.destroy_node(machine.node.id)
    assert await machine.cloud.find_nodes({"deployerp.server": server}) == []
    await machine.cloud.destroy_node(machine.node.id)
    assert docker("volume", "ls", "-q", "--filter", f"label=deployerp.server={server}") == ""


async def test_a_volume_never_comes_before_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise LibcloudError("the worker is killed before it creates the container")

    cloud, server = LibcloudClouds().open("docker", {}), str(uuid.uuid4())
    monkeypatch.setattr(docker_client.APIClient, "create_container", die)
    with pytest.raises(DeployError):
        await cloud.create_node(
            NodeSpec("x", "small", None, None, "", {"deployerp.server": server}, uuid.uuid4().hex)
        )
    assert docker("volume", "ls", "-q", "--filter", f"label=deployerp.server={server}") == ""


async def test_calls_at_once_with_one_token_make_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DockerNodeDriver, "_confinement", None)
    clouds = [LibcloudClouds().open("docker", {}) for _ in range(3)]
    tags = {"deployerp.server": str(uuid.uuid4())}
    spec = NodeSpec("x", "small", None, None, "", tags, uuid.uuid4().hex)
    made = await asyncio.gather(*(cloud.create_node(spec) for cloud in clouds), return_exceptions=True)
    try:
        # Who comes second may be sent away, but only to try again.
        assert all(
            isinstance(one, Node) or (isinstance(one, ProviderError) and one.retryable) for one in made
        )
        node = await clouds[0].create_node(spec)
        assert [found.id for found in await clouds[0].find_nodes(tags)] == [node.id]
        assert docker("volume", "ls", "-q", "--filter", f"name={node.id}").split() == [f"{node.id}-docker"]
    finally:
        for found in await clouds[0].find_nodes(tags):
            await clouds[0].destroy_node(found.id)


async def test_a_creation_that_broke_off_before_the_start_is_finished(machine: Machine) -> None:
    image = docker("inspect", "-f", "{{.Config.Image}}", machine.node.id).strip()
    await machine.cloud.destroy_node(machine.node.id)
    labels = ["--label", "deployerp.node=machine"]
    docker("create", "--name", machine.node.id, *labels, image)  # not even confined as it must be
    left = await machine.cloud.get_node(machine.node.id)
    assert left is not None
    assert left.state == "failed"
    node = await machine.cloud.create_node(machine.spec)
    assert node.id == machine.node.id
    await run(dataclasses.replace(machine.target, port=node.ssh_port), "true")


async def test_an_unknown_image_leaves_nothing() -> None:
    cloud = LibcloudClouds().open("docker", {})
    tags = {"deployerp.server": str(uuid.uuid4())}
    with pytest.raises(ProviderRefused):
        await cloud.create_node(
            NodeSpec("x", "small", None, "deployerp/absent:1", "", tags, uuid.uuid4().hex)
        )
    assert await cloud.find_nodes(tags) == []


def docker(*arguments: str) -> str:
    return docker_bytes(*arguments).decode()


def docker_bytes(*arguments: str) -> bytes:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True).stdout


async def test_docker_nodes_are_made_of_the_image_that_is_set() -> None:
    cloud = LibcloudClouds({"docker": {"image": "deployerp-test/absent:1"}}).open("docker", {})
    with pytest.raises(ProviderError, match="deployerp-test/absent:1"):
        await cloud.create_node(NodeSpec("x", "small", None, None, "", {}, uuid.uuid4().hex))
    assert await cloud.list_images() == []


async def test_an_address_where_nobody_listens_is_named_as_such() -> None:
    credentials = {"auth_url": f"http://127.0.0.1:{free_port()}", "username": "u", "password": "p"}
    credentials |= {"project": "p", "region": "r"}
    clouds = LibcloudClouds(allowed_networks=[ip_network("127.0.0.0/8")])
    with pytest.raises(ProviderError, match="Could not reach the openstack API: connection refused"):
        await clouds.open("openstack", credentials).find_nodes({})


@pytest.mark.parametrize(("status", "error"), [(200, None), (401, CredentialsRefused)])
async def test_digitalocean_is_asked_with_its_token(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception] | None
) -> None:
    asked = []

    async def droplets(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers["Authorization"]))
        body = {"droplets": [], "links": {}, "meta": {"total": 0}}
        return web.json_response(body if status == 200 else {"message": "no", "id": "no"}, status=status)

    application = web.Application()
    application.router.add_get("/v2/droplets", droplets)
    async with TestServer(application) as server:

        class Local(DigitalOcean_v2_Connection):
            host = "127.0.0.1"

            def __init__(self, key: str, _secure: bool = True, **options: Any) -> None:
                super().__init__(key, secure=False, **options | {"port": server.port})

        monkeypatch.setattr(DigitalOcean_v2_BaseDriver, "connectionCls", Local)
        cloud = LibcloudClouds().open("digitalocean", {"token": "dop_v1_x"})
        if error is None:
            assert await cloud.find_nodes({"deployerp.server": "x"}) == []
        else:
            with pytest.raises(error) as refused:
                await cloud.find_nodes({"deployerp.server": "x"})
            assert "dop_v1_x" not in str(refused.value)
    assert asked == [("/v2/droplets", "Bearer dop_v1_x")]
