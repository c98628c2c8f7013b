"""How commands begin and end, and what they tell when they cannot."""

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deployerp import __version__
from deployerp.cli import dev, serve
from deployerp.cli.app import main
from deployerp.core import logging
from deployerp.core.settings import Settings
from deployerp.embedded import control_plane
from tests.conftest import free_port, settings_for

KEYS = ["keys", "create", "--organization", "acme"]
NO_SCHEMA = ["error: The database schema is missing or out of date: run `deployerp migrate`."]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None of the developer's own settings; and logs that do not outlive the test."""
    monkeypatch.setattr(logging, "configure", lambda _: None)
    for name in list(os.environ):
        if name.startswith("DEPLOYERP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def busy_port() -> Iterator[int]:
    """One where somebody listens who never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a command that cannot do its work tells, line by line."""

    def run(*arguments: str, **settings: str) -> Sequence[str]:
        for name, value in settings.items():
            monkeypatch.setenv(f"DEPLOYERP_{name.upper()}", value)
        monkeypatch.setattr("sys.argv", ["deployerp", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()

    return run


def nowhere(home: Path, temporal_port: int) -> Settings:
    return settings_for(f"sqlite+aiosqlite:///{home}/unused.db", f"127.0.0.1:{temporal_port}", home)


@pytest.mark.parametrize(("number", "hangs"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_worker_that_waits_for_temporal_ends_by_a_signal(
    tmp_path: Path, busy_port: int, number: signal.Signals, hangs: bool
) -> None:
    settings = nowhere(tmp_path, busy_port if hangs else free_port())

    async def work() -> None:
        working = asyncio.create_task(serve.run_until_signal(settings))
        await asyncio.sleep(0.1)
        assert not working.done()
        signal.raise_signal(number)
        await asyncio.wait_for(working, 2)

    asyncio.run(work())


@pytest.mark.parametrize("options", [(), ("--reload",)], ids=str)
def test_a_port_of_the_api_that_is_in_use_is_told_before_anything_starts(
    told, tmp_path: Path, busy_port: int, options: tuple[str, ...]
) -> None:
    ports = control_plane.Ports.free()
    lines = told(
        *("dev", "--no-images", "--home", str(tmp_path / "home"), *options),
        *("--port", str(busy_port), "--temporal-port", str(ports.temporal)),
        *("--ui-port", str(ports.temporal_ui), "--storage-port", str(ports.object_storage)),
        *("--worker-port", str(ports.worker)),
    )
    assert len(lines) == 1
    assert lines[0].startswith(f"error: Port {busy_port}, which is for the API, is in use: another control")
    assert not list((tmp_path / "home").glob("*.log"))


def test_an_api_that_cannot_listen_lets_its_worker_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy_port: int
) -> None:
    ended = []

    async def work(_settings: Settings, stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append(True)

    monkeypatch.setattr(serve, "run_worker", work)
    settings = nowhere(tmp_path, free_port())
    with pytest.raises(SystemExit):
        asyncio.run(serve.run_api(settings.model_copy(update={"api_port": busy_port}), with_worker=True))
    assert ended


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("odoo_versions", "[19.0, secret", 'must be a JSON list such as ["..."]'),
        ("odoo_versions", '"secret"', 'must be a JSON list such as ["..."]'),
        ("encryption_keys", "secret", 'must be a JSON list such as ["..."]'),
        (
            "encryption_keys",
            f'["{"A" * 43}=", "secret"]',
            "must hold Fernet keys only (`deployerp keys encryption` makes one)",
        ),
        ("api_port", "secret", "Input should be a valid integer, unable to parse string as an integer"),
        ("log_level", "secret", "Input should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
        (
            "allowed_networks",
            '["10.0.0.0/8", "secret"]',
            "1: Input is not a valid IPv4 network; 1: Input is not a valid IPv6 network",
        ),
        *(
            ("database_url", url, "must begin with sqlite+aiosqlite:/// or postgresql+asyncpg://")
            for url in ("", "secret", "postgres://me:secret@db/one", "sqlite+aiosqlite://secret")
        ),
        ("database_url", "postgresql+asyncpg://me:secret@db:x/one", "must be a URL that SQLAlchemy can read"),
        (
            "database_url",
            "postgresql+asyncpg://me:secret@db:70000/one",
            "must have a port between 1 and 65535, or none",
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_setting_that_breaks_its_rule_is_told_in_a_line(
    told, command: str, name: str, value: str, rule: str
) -> None:
    assert told(command, **{name: value}) == [f"error: DEPLOYERP_{name.upper()}: {rule}"]


def test_every_setting_that_breaks_its_rule_has_its_line(told) -> None:
    assert told("serve", "--port", "70000", sweep_seconds="0") == [
        "error: DEPLOYERP_SWEEP_SECONDS: Input should be greater than 0",
        "error: DEPLOYERP_API_PORT: Input should be less than or equal to 65535",
    ]


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_missing_encryption_key_is_told_before_anything_starts(told, command: str) -> None:
    lines = told(command)
    assert len(lines) == 1
    assert lines[0].startswith("error: No encryption key is set: set DEPLOYERP_ENCRYPTION_KEYS")


def test_log_levels_may_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYERP_LOG_LEVEL", "warning")
    assert Settings().log_level == "WARNING"


@pytest.mark.parametrize("command", [KEYS, ["audit", "verify"]], ids=" ".join)
def test_a_database_without_tables_is_told(
    told, tmp_path: Path, postgres_server: str, command: Sequence[str]
) -> None:
    for url in (
        f"sqlite+aiosqlite:///{tmp_path}/empty.db",
        f"postgresql+asyncpg://postgres@{postgres_server}/postgres",
    ):
        assert told(*command, database_url=url) == NO_SCHEMA


# aiosqlite does not wait for the thread of a connection that it could not open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("command", [KEYS, ["migrate"]], ids=" ".join)
def test_a_database_that_cannot_be_used_is_told_without_its_url(
    told, tmp_path: Path, postgres_server: str, command: Sequence[str]
) -> None:
    sqlite, postgres = f"sqlite+aiosqlite:///{tmp_path}", "postgresql+asyncpg://{}:secret@{}/{}"
    for url, reason in (
        (f"{sqlite}/none/secret.db", "Could not open the database (unable to open database file): check "),
        (postgres.format("postgres", f"127.0.0.1:{free_port()}", "one"), "Could not reach the database: "),
        (postgres.format("postgres", "nowhere.invalid", "one"), "Could not reach the database: check "),
        (postgres.format("postgres", postgres_server, "none"), "The database does not exist: check its name"),
        (
            postgres.format("nobody", postgres_server, "postgres"),
            "The database rejected the login: check",
        ),
    ):
        lines = told(*command, database_url=url)
        assert len(lines) == 1
        assert lines[0].startswith(f"error: {reason}")
        assert "DEPLOYERP_DATABASE_URL" in lines[0]
        assert "secret" not in lines[0]


def test_an_unknown_revision_is_told(told, sqlite_url: str) -> None:
    lines = told("migrate", "0099", database_url=sqlite_url)
    assert lines == ["error: Can't locate revision identified by '0099'"]


def test_a_home_that_cannot_be_made_is_told(told, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines = told(*KEYS, "--home", str(tmp_path / "file" / "home"))
    assert lines == [f"error: Not a directory: {tmp_path}/file/home"]


def test_an_error_that_nobody_expects_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(serve, "configuration", fail)
    monkeypatch.setattr("sys.argv", ["deployerp", "migrate"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize("by_option", [False, True])
def test_the_embedded_control_plane_has_one_home(
    told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy_port: int, by_option: bool
) -> None:
    home, used, make = tmp_path / "home", [], control_plane.embedded_settings

    def note(*of: object) -> Settings:
        used.append(make(*of))
        return used[0]

    monkeypatch.setattr(control_plane, "embedded_settings", note)
    option = ["--home", str(home)] if by_option else []
    named = str(tmp_path / "other" if by_option else home)
    told("dev", "--no-images", "--port", str(busy_port), *option, home=named)
    assert used[0].home == home
    assert used[0].database_url == f"sqlite+aiosqlite:///{home}/deployerp.db"
    assert [path.name for path in home.iterdir()] == ["encryption.key"]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_the_hint_names_the_program_as_it_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "env" / "bin" / "deployerp"
    program.parent.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", str(program.with_name("python")))
    assert dev.own_program() == "deployerp"
    program.touch(stat.S_IRWXU)
    assert dev.own_program() == "env/bin/deployerp"
    monkeypatch.chdir("/")
    monkeypatch.chdir(program.parent.parent.parent / "env" / "bin" / "..")
    assert dev.own_program() == "bin/deployerp"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dev.own_program() == str(program)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["deployerp", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"deployerp {__version__}\n"
