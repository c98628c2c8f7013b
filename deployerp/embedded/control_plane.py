"""The embedded control plane: everything in one place, for trying out, development and CI.

SQLite, a Temporal development server with a database file, and a directory that answers as S3.
"""

import asyncio
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from deployerp.core.errors import Unavailable
from deployerp.core.secrets import new_encryption_key
from deployerp.core.settings import Settings
from deployerp.drivers.temporal import SEARCH_ATTRIBUTES
from deployerp.embedded.images import provide
from deployerp.embedded.local_engine import ensure_engine

Report = Callable[[str], None]
_READY_SECONDS = 30
_STOP_SECONDS = 10
# The defaults make a workflow task wait for the next tick of 50 ms.
_TEMPORAL_TUNING = (
    *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=5000"),
    *("--dynamic-config-value", "history.timerProcessorMaxPollRPS=5000"),
    *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"),
)


@dataclass(frozen=True)
class Ports:
    """Where the parts listen on loopback."""

    api: int = 8000
    temporal: int = 7233
    temporal_ui: int = 8233
    object_storage: int = 9333
    worker: int = 8010

    @classmethod
    def free(cls) -> "Ports":
        """Ports that nobody uses at the moment."""
        sockets = [socket.socket() for _ in fields(cls)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        return cls(*ports)


def embedded_settings(home: Path, ports: Ports) -> Settings:
    """The settings of an embedded control plane in `home`; what else the environment sets is kept."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    given = Settings()
    derived = {
        "database_url": f"sqlite+aiosqlite:///{home}/deployerp.db",
        "temporal_address": f"127.0.0.1:{ports.temporal}",
        "api_port": ports.api,
        "worker_port": ports.worker,
        "worker_url": f"http://127.0.0.1:{ports.worker}",
        "encryption_keys": [_load_or_create(home / "encryption.key", new_encryption_key)],
    }
    kept = {name: getattr(given, name) for name in given.model_fields_set & derived.keys()}
    # The home is never the environment's: keys and database of one and the rest of another fit nowhere.
    return Settings.model_validate(given.model_dump() | derived | kept | {"home": home})


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables by which another process gets the same settings."""
    secrets = {"encryption_keys", "temporal_api_key"}
    values = json.loads(settings.model_dump_json(exclude=secrets, exclude_none=True))
    values["encryption_keys"] = [key.get_secret_value() for key in settings.encryption_keys]
    if settings.temporal_api_key is not None:
        values["temporal_api_key"] = settings.temporal_api_key.get_secret_value()
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {f"DEPLOYERP_{name.upper()}": value for name, value in plain.items()}


async def provide_images(settings: Settings, report: Report) -> None:
    """An engine on this machine, and on it the images that servers and instances run."""
    origin = await ensure_engine(report, settings.home)
    report(f"Docker engine: {origin.value}")
    names = (
        settings.node_image,
        settings.caddy_image,
        settings.postgres_image,
        *(settings.odoo_image_for(version) for version in settings.odoo_versions),
    )
    images = await asyncio.gather(*(provide(name, report=report, state=settings.home) for name in names))
    for image in images:
        report(f"Image {image.name}: {image.origin}")


@asynccontextmanager
async def services(settings: Settings, ports: Ports) -> AsyncIterator[None]:
    """Runs Temporal and the object storage beside this process; they end with it, however it ends.

    Raises `Unavailable` when one does not come up.
    """
    async with AsyncExitStack() as running:
        for name, command, port, environment in (
            ("Temporal", _temporal_command(settings, ports), ports.temporal, {}),
            ("object storage", *_object_storage(settings, ports)),
        ):
            await running.enter_async_context(_service(settings.home, name, command, port, environment))
        yield


def _temporal_command(settings: Settings, ports: Ports) -> list[str]:
    attributes = [f"--search-attribute={key.name}=Keyword" for key in SEARCH_ATTRIBUTES]
    return [
        _program("temporal"),
        *("server", "start-dev", "--ip", "127.0.0.1", "--log-level", "warn"),
        *("--port", str(ports.temporal), "--ui-port", str(ports.temporal_ui)),
        *("--db-filename", str(settings.home / "temporal.db"), "--namespace", settings.temporal_namespace),
        *attributes,
        *_TEMPORAL_TUNING,
    ]


def _object_storage(settings: Settings, ports: Ports) -> tuple[list[str], int, dict[str, str]]:
    objects = settings.home / "objects"
    objects.mkdir(exist_ok=True)
    key = _load_or_create(
        settings.home / "object-storage.key", lambda: f"deployerp,{secrets.token_urlsafe(24)}"
    )
    address = f"127.0.0.1:{ports.object_storage}"
    # The key through the environment: arguments are for all to see. There a list is CSV, so it is quoted.
    return (
        [_program("rclone"), "serve", "s3", str(objects), "--addr", address],
        ports.object_storage,
        {"RCLONE_AUTH_KEY": f'"{key}"', "RCLONE_CONFIG": str(settings.home / "rclone.conf")},
    )


@asynccontextmanager
async def _service(
    home: Path, name: str, command: Sequence[str], port: int, environment: Mapping[str, str]
) -> AsyncIterator[None]:
    await check_free(name, port)
    # A parent that is killed takes its services along, where the system can do that.
    with_parent = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    log = home / f"{name.replace(' ', '-').lower()}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *with_parent,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            # Ctrl-C is ours to handle: the services end last.
            start_new_session=True,
        )
    try:
        await _until_listening(process, name, port, log)
        yield
    finally:
        await _stop(process)


async def check_free(name: str, port: int) -> None:
    """Raises `Unavailable` when somebody listens already where the part of this name is to."""
    if await _listens(port):
        raise Unavailable(
            f"Port {port}, which is for {name}, is in use: another control plane may be running."
            " Stop it, or choose other ports (see `deployerp dev --help`)."
        )


async def _until_listening(process: asyncio.subprocess.Process, name: str, port: int, log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    while not await _listens(port):
        if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
            raise Unavailable(f"{name} did not start: {log} tells why.")
        await asyncio.sleep(0.05)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _program(name: str) -> str:
    """A program that a package has put beside our own Python, whether or not that is on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Unavailable(f"The program `{name}` is missing: `pip install deployerp[embedded]` brings it.")
    return found


def _load_or_create(path: Path, make: Callable[[], str]) -> str:
    """A secret of this home's own, made at its first use."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(make())
    return path.read_text()
