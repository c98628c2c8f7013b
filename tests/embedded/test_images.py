"""Images on a real engine: found, pulled from a registry of the test's own, built; and what they promise."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from deployerp.core.errors import CommandFailed, EngineError, ImageUnavailable
from deployerp.drivers.engine import images as engine_images
from deployerp.drivers.engine.containers import ContainerSpec, PublishedPort
from deployerp.drivers.engine.engine import Engine
from deployerp.embedded import images
from deployerp.embedded.images import RECIPES, ProvidedImage, Recipe, provide, recipe_digest

# Shared with every other user of a checkout: its lock is what keeps two from building the same image.
ROOT = Path(__file__).parents[2]
STATE = ROOT / ".deployerp"
PASSWORD = "correct-horse-battery-staple"


class Workshop:
    """A folder of Dockerfiles with one image of the test's own on top of busybox."""

    def __init__(self, directory: Path, busybox: str) -> None:
        self.name = f"deployerp-test/{uuid.uuid4().hex[:12]}:1"
        self.names = [self.name]
        self.directory = directory / "images"
        self.state = directory / "state"
        self.recipes = {self.name: Recipe("thing", on=None, public=False)}
        self.said: list[str] = []
        self.busybox = busybox
        self.write("thing", "RUN echo -n one > /word")

    def write(self, directory: str, line: str, base: str | None = None) -> None:
        (self.directory / directory).mkdir(parents=True, exist_ok=True)
        (self.directory / directory / "Dockerfile").write_text(f"FROM {base or self.busybox}\n{line}\n")

    def also(self, name: str, recipe: Recipe) -> str:
        self.recipes[name] = recipe
        self.names.append(name)
        return name

    async def provide(self, name: str | None = None) -> ProvidedImage:
        return await provide(
            name or self.name,
            report=self.said.append,
            state=self.state,
            images=self.directory,
            recipes=self.recipes,
        )


@pytest.fixture
def workshop(tmp_path: Path, busybox: str) -> Iterator[Workshop]:
    workshop = Workshop(tmp_path, busybox)
    yield workshop
    subprocess.run(["docker", "rmi", "--force", *workshop.names], check=False, capture_output=True)


# The decision


async def test_an_image_that_is_there_is_not_asked_for(workshop: Workshop) -> None:
    provided = await workshop.provide(workshop.busybox)
    assert provided.name == workshop.busybox
    assert provided.image_id.startswith("sha256:")
    assert provided.origin == "present"
    assert workshop.said == []


async def test_an_image_is_built_once_and_again_when_its_recipe_changes(workshop: Workshop) -> None:
    first = await workshop.provide()
    assert first.origin == "built"
    assert "building it" in workshop.said[0]
    assert re.search(r"built in \d+ s, \d+ MB", workshop.said[-1])
    assert await workshop.provide() == ProvidedImage(workshop.name, first.image_id, "present")
    workshop.write("thing", "RUN echo -n two > /word")
    second = await workshop.provide()
    assert second.origin == "built"
    assert second.image_id != first.image_id
    assert any("recipe has changed" in line for line in workshop.said)
    assert first.image_id not in docker("images", "--all", "--quiet", "--no-trunc").decode()
    assert (await workshop.provide()).origin == "present"


async def test_a_changed_base_changes_what_stands_on_it(workshop: Workshop) -> None:
    base = workshop.also(f"{workshop.name}-base", Recipe("base", on=None, public=False))
    workshop.recipes[workshop.name] = Recipe("thing", on=base, public=False)
    workshop.write("base", "RUN echo -n base > /base")
    workshop.write("thing", "RUN cat /base > /word", base=base)
    first = await workshop.provide()
    workshop.write("base", "RUN echo -n other > /base")
    second = await workshop.provide()
    assert second.origin == "built"
    assert second.image_id != first.image_id


async def test_an_image_built_by_hand_is_left_alone(workshop: Workshop) -> None:
    base = workshop.also(f"{workshop.name}-base", Recipe("base", on=None, public=False))
    workshop.write("base", "RUN echo -n base > /base")
    await workshop.provide(base)
    workshop.write("thing", "RUN echo -n ours > /word", base=base)
    directory = workshop.directory / "thing"
    docker("build", "-t", workshop.name, str(directory))
    workshop.recipes[workshop.name] = Recipe("thing", on=base, public=False)
    assert (await workshop.provide()).origin == "present"


async def test_two_who_ask_at_once_build_once(workshop: Workshop) -> None:
    provided = await asyncio.gather(*(workshop.provide() for _ in range(3)))
    assert sorted(image.origin for image in provided) == ["built", "present", "present"]
    assert len({image.image_id for image in provided}) == 1


async def test_prepare_writes_what_the_build_adds(workshop: Workshop) -> None:
    workshop.recipes[workshop.name] = Recipe("thing", on=None, prepare="make", public=False)
    workshop.write("thing", "ADD rootfs.tar /", base="scratch")
    program = workshop.directory / "thing" / "make"
    program.write_text('#!/bin/sh\ncd "$(mktemp -d)" && echo made > made && tar -cf "$1" made\n')
    program.chmod(0o755)
    if os.geteuid() != 0:
        with pytest.raises(ImageUnavailable, match="root"):
            await workshop.provide()
        return
    assert (await workshop.provide()).origin == "built"
    assert "made" in files_of_image(docker("save", workshop.name))


async def test_a_failed_build_shows_the_end_of_its_output(workshop: Workshop) -> None:
    workshop.write("thing", "RUN echo the reason; exit 7")
    with pytest.raises(EngineError, match="could not be built") as failed:
        await workshop.provide()
    assert "the reason" in failed.value.details["output"]


async def test_without_registry_and_recipe_the_image_is_unavailable(workshop: Workshop) -> None:
    with pytest.raises(ImageUnavailable, match="absent"):
        await workshop.provide("127.0.0.1:9/absent:1")
    (workshop.directory / "thing" / "Dockerfile").unlink()
    with pytest.raises(ImageUnavailable, match="checkout"):
        await workshop.provide()


# The registry


async def test_a_registry_that_answers_is_pulled_from(workshop: Workshop) -> None:
    async with registry(serves=True) as (address, asked):
        name = workshop.also(f"{address}/thing:1", Recipe("thing", on=None))
        provided = await workshop.provide(name)
        assert provided.origin == "registry"
        assert provided.image_id == f"sha256:{hashlib.sha256(CONFIG).hexdigest()}"
        assert f"{name}: pulled from the registry" in workshop.said[-1]
        assert asked
        assert (await workshop.provide(name)).origin == "present"


async def test_a_registry_without_the_image_leaves_it_to_be_built(workshop: Workshop) -> None:
    async with registry(serves=False) as (address, asked):
        name = workshop.also(f"{address}/thing:1", Recipe("thing", on=None))
        assert (await workshop.provide(name)).origin == "built"
        assert asked
        assert "no registry serves it" in workshop.said[0]


async def test_names_that_are_ours_are_asked_of_no_registry(workshop: Workshop) -> None:
    async with registry(serves=True) as (address, asked):
        name = workshop.also(f"{address}/thing:1", Recipe("thing", on=None, public=False))
        assert (await workshop.provide(name)).origin == "built"
        assert asked == []


async def test_a_silent_registry_is_waited_for_once(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_images, "_FIRST_ANSWER_SECONDS", 0.6)
    monkeypatch.setattr(images, "_SLOW_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(images, "_silent_registries", set())
    connections = 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        first = workshop.also(f"{address}/one:1", Recipe("thing", on=None))
        second = workshop.also(f"{address}/two:1", Recipe("thing", on=None))
        assert (await workshop.provide(first)).origin == "built"
        waited_for = connections
        assert waited_for > 0
        assert (await workshop.provide(second)).origin == "built"
        assert connections == waited_for
    assert any("no registry answers" in line for line in workshop.said)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_dockerfile(name: str) -> None:
    assert recipe_digest(name) is not None


# The control plane's own image

# Debian 13 has no other version than 3.13, and the Dockerfile takes 3.11: what is pinned works for both only
# as long as there are wheels for both, which another test sees to.
PYTHON = """RUN apt-get update \\
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \\
    && ln -s python3 /usr/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt"""


@pytest.mark.fault("25")
async def test_the_control_plane_is_built_and_runs(workshop: Workshop) -> None:
    workshop.write("thing", PYTHON, base=await provided("debian:13"))
    await workshop.provide()
    proxies = [f"--build-arg={name}" for name in os.environ if name.lower() in images._PROXIES]
    build = ["docker", "build", "--force-rm", f"--build-arg=PYTHON={workshop.name}", *proxies, str(ROOT)]
    # The first stage has a name of its own, so that nothing of it is left.
    for name, options in ((f"{workshop.name}-build", ["--target=build"]), (f"{workshop.name}-plane", [])):
        workshop.names.insert(0, name)
        built = await asyncio.to_thread(
            subprocess.run, [*build, f"--tag={name}", *options], capture_output=True, text=True
        )
        assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    assert b"Usage: deployerp" in docker("run", "--rm", workshop.names[0], "--help")


@pytest.mark.fault("25")
async def test_everything_pinned_has_wheels_for_the_python_of_the_image(tmp_path: Path) -> None:
    """The image has no compiler; what is pinned must be complete too, since each has its hash."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    [version] = re.findall(r"^ARG PYTHON=python:(\d+\.\d+)-slim", dockerfile, re.MULTILINE)
    locks = [ROOT / name for name in ("requirements.lock", "requirements-build.lock")]
    for lock in locks:
        assert f"pip-compile with Python {version}\n" in lock.read_text(), f"{lock.name} is another version's"
    resolved = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", version, "--target", str(tmp_path)),
            *(part for lock in locks for part in ("--requirement", str(lock))),
        ],
        capture_output=True,
        text=True,
    )
    assert resolved.returncode == 0, (resolved.stdout + resolved.stderr)[-3000:]


# What the images promise, from wherever they came


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine.local() as engine:
        yield engine


async def provided(name: str) -> str:
    return (await provide(name, report=print, state=STATE)).name


@pytest.fixture
async def postgres(engine: Engine, label: dict[str, str]) -> ContainerSpec:
    """A running server of the official contract, its password from a file."""
    unique = label["deployerp.test"]
    await engine.ensure_network(f"net-{unique}", label)
    spec = ContainerSpec(
        name=f"postgres-{unique}",
        image=await provided("postgres:17"),
        labels=label,
        environment={
            "POSTGRES_USER": "owner",
            "POSTGRES_PASSWORD_FILE": "/tmp/password",
            "POSTGRES_DB": "shop",
        },
        files={"/tmp/password": PASSWORD.encode()},
        volumes={f"pgdata-{unique}": "/var/lib/postgresql/data"},
        network=f"net-{unique}",
        aliases=["db"],
    )
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    await ready(engine, spec)
    return spec


async def test_postgres(engine: Engine, postgres: ContainerSpec) -> None:
    async def sql(statement: str, password: str = PASSWORD) -> str:
        command = ["psql", "-h", "127.0.0.1", "-U", "owner", "-d", "shop", "-Atc", statement]
        environment = {"PGPASSWORD": password}
        return (
            await engine.execute(postgres.name, command, environment=environment, timeout=20, check=True)
        ).text

    assert (await sql("SHOW server_version")).startswith("17.")
    assert await sql("SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database LIMIT 1")
    assert await sql("SHOW server_encoding") == "UTF8"
    assert await sql("SHOW data_directory") == "/var/lib/postgresql/data"
    assert await sql("SHOW listen_addresses") == "*"
    await sql("CREATE TABLE kept (id int)")
    network = (await engine.find_containers(postgres.labels))[0].networks
    assert network
    owner = await engine.execute(postgres.name, ["stat", "-c", "%u", "/proc/1"], timeout=20)
    assert owner.text == "999"
    for program in ("pg_dump", "pg_restore", "createdb", "pg_ctl", "initdb"):
        version = await engine.execute(postgres.name, [program, "--version"], timeout=20, check=True)
        assert " 17." in version.text
    await engine.restart_container(postgres.name)
    await ready(engine, postgres)
    assert await sql("SELECT count(*) FROM kept") == "0"
    logs = await engine.logs(postgres.name)
    assert "received fast shutdown request" in logs
    assert PASSWORD not in logs


async def test_postgres_asks_everybody_who_comes_over_the_network_for_the_password(
    engine: Engine, postgres: ContainerSpec, label: dict[str, str]
) -> None:
    client = ContainerSpec(
        name=f"client-{label['deployerp.test']}",
        image=postgres.image,
        labels=label,
        network=postgres.network,
        environment={"PGPASSWORD": PASSWORD},
        entrypoint=["psql"],
        command=["-h", "db", "-U", "owner", "-d", "shop", "-Atc", "SELECT current_user"],
    )
    assert (await engine.run_once(client, timeout=30)).text == "owner"
    stranger = ContainerSpec(**{**vars(client), "environment": {"PGPASSWORD": "guessed"}})
    with pytest.raises(CommandFailed):
        await engine.run_once(stranger, timeout=30)


async def test_postgres_does_not_start_without_a_password(engine: Engine, label: dict[str, str]) -> None:
    spec = ContainerSpec(
        name=f"postgres-{label['deployerp.test']}", image=await provided("postgres:17"), labels=label
    )
    with pytest.raises(CommandFailed) as failed:
        await engine.run_once(spec, timeout=30)
    assert "POSTGRES_PASSWORD" in json.dumps(failed.value.details)


async def test_caddy(engine: Engine, label: dict[str, str]) -> None:
    spec = ContainerSpec(
        name=f"caddy-{label['deployerp.test']}",
        image=await provided("caddy:2.11"),
        labels=label,
        published_ports=[PublishedPort(80, 0, "127.0.0.1")],
        files={"/etc/caddy/Caddyfile": b":80\nrespond / first\n"},
        volumes={f"caddy-{label['deployerp.test']}": "/data"},
    )
    await engine.ensure_container(spec)
    await engine.start_container(spec.name)
    published = docker("port", spec.name, "80/tcp").decode().strip()
    assert await answer(f"http://{published}/") == "first"
    # `caddy reload` speaks to the admin API.
    reload = ["caddy", "reload", "--config", "-", "--adapter", "caddyfile"]
    await engine.execute(spec.name, reload, input=b":80\nrespond / second\n", timeout=20, check=True)
    assert await answer(f"http://{published}/") == "second"
    places = await engine.execute(
        spec.name, ["sh", "-c", 'echo "$XDG_DATA_HOME $XDG_CONFIG_HOME"; caddy version'], timeout=20
    )
    assert places.text.startswith("/data /config\n")
    assert re.search(r"\bv?2\.11\.\d+", places.text)


async def test_odoo(engine: Engine, postgres: ContainerSpec, label: dict[str, str]) -> None:
    image = await provided("odoo:19.0")
    name = f"odoo-{label['deployerp.test']}"
    version = ContainerSpec(name=name, image=image, labels=label, entrypoint=["odoo"], command=["--version"])
    assert "19.0" in (await engine.run_once(version, timeout=60)).text
    look = (
        "id -un; echo $ODOO_RC; test -w /var/lib/odoo -a -w /mnt/extra-addons -a -r $ODOO_RC && echo usable;"
        "pg_dump --version; python3 -c 'import gevent, psycopg2; print(\"imports\")'"
    )
    # Mounted as those of an instance: what an image declares and nobody mounts belongs to root.
    volumes = {f"{name}-filestore": "/var/lib/odoo", f"{name}-addons": "/mnt/extra-addons"}
    shell = ContainerSpec(
        name=name, image=image, labels=label, entrypoint=["sh"], command=["-c", look], volumes=volumes
    )
    seen = (await engine.run_once(shell, timeout=60)).text.splitlines()
    assert seen[:3] == ["odoo", "/etc/odoo/odoo.conf", "usable"]
    assert seen[3].startswith("pg_dump (PostgreSQL)")
    assert seen[4] == "imports"
    # The entry point waits for the database that the environment names, and hands it on.
    started = ContainerSpec(
        name=name,
        image=image,
        labels=label,
        network=postgres.network,
        environment={"HOST": "db", "PORT": "5432", "USER": "owner", "PASSWORD": PASSWORD},
        command=["odoo", "--stop-after-init", "--no-http"],
    )
    output = await engine.run_once(started, timeout=60)
    said = (output.stdout + output.stderr).decode()
    assert "owner@db:5432" in said
    assert PASSWORD not in said


async def ready(engine: Engine, postgres: ContainerSpec) -> None:
    command = ["pg_isready", "--quiet", "-h", "127.0.0.1"]
    async with asyncio.timeout(60):
        while True:
            if (await engine.execute(postgres.name, command, timeout=20)).exit_code == 0:
                return
            await asyncio.sleep(0.1)


async def answer(url: str) -> str:
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    return await response.text()
            await asyncio.sleep(0.05)


def docker(*arguments: str) -> bytes:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True).stdout


# A registry with one image of one file


def layer() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("hello"))
    return content.getvalue()


LAYER = layer()
COMPRESSED = gzip.compress(LAYER, mtime=0)
CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(LAYER).hexdigest()}"]},
    }
).encode()


def described(kind: str, content: bytes) -> dict[str, str | int]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {
        "mediaType": f"application/vnd.docker.{kind}",
        "size": len(content),
        "digest": digest,
    }


MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described("container.image.v1+json", CONFIG),
        "layers": [described("image.rootfs.diff.tar.gzip", COMPRESSED)],
    }
).encode()


@contextlib.asynccontextmanager
async def registry(*, serves: bool) -> AsyncIterator[tuple[str, list[str]]]:
    """The registry protocol on loopback, which engines trust without TLS; its address and what was asked."""
    asked: list[str] = []
    blobs = {f"sha256:{hashlib.sha256(blob).hexdigest()}": blob for blob in (CONFIG, COMPRESSED)}

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/v2/":
            return web.json_response({})
        if serves and "/manifests/" in request.path:
            digest = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
            headers = {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest}
            return web.Response(body=MANIFEST, headers=headers)
        blob = blobs.get(request.path.rpartition("/")[2])
        if blob is None:
            unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return web.json_response(unknown, status=404)
        return web.Response(body=blob, content_type="application/octet-stream")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def files_of_image(saved: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(saved)) as image:
        layers = [name for name in image.getnames() if name.endswith("layer.tar")]
        names: set[str] = set()
        for each in layers:
            content = image.extractfile(each)
            assert content is not None
            with tarfile.open(fileobj=content) as archive:
                names.update(archive.getnames())
        return names
