"""docker-compose.yml, as the real tool understands it."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths
from typer.main import get_command

from deployerp.cli.app import app
from deployerp.core.settings import Settings

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docker-compose.yml"
PREFIX = "DEPLOYERP_"

ENCRYPTION_KEYS = '["c2VjcmV0LXRoYXQtaXMtMzItYnl0ZXMtbG9uZy4uLi4="]'
ENVIRONMENT = {
    "API_DOMAIN": "erp.example.com",
    "DEPLOYERP_INSTANCE_DOMAIN": "odoo.example.com",
    "DEPLOYERP_ENCRYPTION_KEYS": ENCRYPTION_KEYS,
    "POSTGRES_PASSWORD": "the-superusers-password",
    "APPLICATION_DATABASE_PASSWORD": "the-applications-password",
    "TEMPORAL_DATABASE_PASSWORD": "the-temporal-password",
}
OURS = {"migrate", "api", "worker"}
# Who may see which secret.
SECRETS = {
    ENVIRONMENT["POSTGRES_PASSWORD"]: {"postgres"},
    ENVIRONMENT["APPLICATION_DATABASE_PASSWORD"]: {"postgres"} | OURS,
    ENVIRONMENT["TEMPORAL_DATABASE_PASSWORD"]: {"postgres", "temporal-schema", "temporal"},
    ENCRYPTION_KEYS: OURS,
}
# They mean something only to the embedded control plane, to the command line, and to the `docker` provider.
# Its Temporal is its own, in a network of its own.
TEMPORAL_ELSEWHERE = {"temporal_api_key", *(each for each in Settings.model_fields if "temporal_tls" in each)}
NOT_IN_COMPOSE = {"home", "api_host", "api_port", "worker_port", "node_image", *TEMPORAL_ELSEWHERE}

Services = dict[str, dict[str, Any]]


def compose_command() -> list[str]:
    """The plugin of current engines, or Debian's package; without either these tests fail."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.fail("Neither `docker compose` nor `docker-compose` is here: apt-get install docker-compose")


def run_config(directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # A file, and nothing of this process's environment: a developer's own .env must not decide.
    env_file = directory / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    command = [*compose_command(), "--env-file", str(env_file), "--file", str(FILE), "config"]
    bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(directory)}
    return subprocess.run(command, env=bare, capture_output=True, text=True)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    ended = run_config(tmp_path_factory.mktemp("compose"), ENVIRONMENT)
    assert ended.returncode == 0, ended.stderr
    return yaml.safe_load(ended.stdout)["services"]


@pytest.fixture(scope="module")
def source() -> Services:
    return yaml.safe_load(FILE.read_text())["services"]


def environment_of(service: dict[str, Any]) -> dict[str, Any]:
    return service.get("environment") or {}


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_what_must_be_set_is_asked_for(tmp_path: Path, missing: str) -> None:
    ended = run_config(tmp_path, {name: value for name, value in ENVIRONMENT.items() if name != missing})
    assert ended.returncode != 0
    assert missing in ended.stderr


def test_the_example_names_all_that_must_be_set() -> None:
    named = re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert dict(named) == dict.fromkeys(ENVIRONMENT, "")


@pytest.mark.parametrize("service", sorted(OURS))
def test_settings_are_real_and_complete(services: Services, service: str) -> None:
    set_here = {name.removeprefix(PREFIX).lower() for name in environment_of(services[service])}
    assert set_here == set(Settings.model_fields) - NOT_IN_COMPOSE


def test_settings_are_understood(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(services["worker"]).items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert (
        settings.database_url == "postgresql+asyncpg://deployerp:the-applications-password@postgres/deployerp"
    )
    assert settings.temporal_address == "temporal:7233"
    assert len(settings.encryption_keys) == 1


def test_commands_exist(services: Services) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {services[name]["command"][0] for name in OURS} <= set(commands)


def test_no_secret_is_written_down(source: Services) -> None:
    sensitive = re.compile(r"PASSWORD|PWD|SECRET|KEYS|DATABASE_URL")
    values = [
        value
        for service in source.values()
        for name, value in environment_of(service).items()
        if sensitive.search(name) and value is not None
    ]
    assert len(values) >= len(SECRETS)
    for value in values:
        assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", value), value


@pytest.mark.parametrize("secret", SECRETS)
def test_secrets_go_only_to_those_that_need_them(services: Services, secret: str) -> None:
    holders = {name for name, service in services.items() if secret in str(service)}
    assert holders == SECRETS[secret]


def test_only_caddy_is_reached_from_outside(services: Services) -> None:
    published = {name: list(map(address_of, each.get("ports", ()))) for name, each in services.items()}
    assert published.pop("caddy")
    assert published.pop("temporal-ui") == ["127.0.0.1"]
    assert not any(published.values())


def address_of(port: str | dict[str, Any]) -> str:
    """The address that a port is published on; "" is every one. The two tools write ports differently."""
    if isinstance(port, dict):
        return str(port.get("host_ip", ""))
    return port.rpartition(":")[0].rpartition(":")[0]


def test_caddy_sees_the_api_alone(services: Services) -> None:
    assert {name for name, service in services.items() if "front" in service["networks"]} == {"caddy", "api"}


def test_images_are_pinned(services: Services) -> None:
    for service in services.values():
        assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), service["image"]


def test_our_image_is_this_version(services: Services) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert {services[name]["image"] for name in OURS} == {f"deployerp:{version[1]}"}


def test_what_is_mounted_exists(source: Services) -> None:
    mounts = [volume.split(":")[0] for service in source.values() for volume in service.get("volumes", ())]
    paths = [mount for mount in mounts if mount.startswith("./")]
    assert paths
    for path in paths:
        assert (ROOT / path).is_dir(), path


def test_the_schema_script_sets_both_databases_up(tmp_path: Path) -> None:
    # Its tool is only in Temporal's image: this one writes down how it is called.
    tool = tmp_path / "temporal-sql-tool"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    script = ROOT / "deploy/temporal/schema.sh"
    ended = subprocess.run(
        ["/bin/sh", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    asked = "--plugin postgres12 --ep postgres -p 5432 -u temporal --db"
    schema = "/etc/temporal/schema/postgresql/v12"
    assert ended.stdout.splitlines() == [
        f"{asked} temporal setup-schema -v 0.0",
        f"{asked} temporal update-schema -d {schema}/temporal/versioned",
        f"{asked} temporal_visibility setup-schema -v 0.0",
        f"{asked} temporal_visibility update-schema -d {schema}/visibility/versioned",
    ]


@pytest.mark.fault("25")
def test_the_builder_of_the_image_gets_every_file_that_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    context = exclude_paths(str(ROOT), patterns)  # type: ignore[no-untyped-call]
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()}
    assert "requirements-build.lock" in sources
    assert sources <= context
