"""Odoo's own rules: its configuration, its databases, its passwords, its answers."""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from deployerp.core.errors import NotHealthy

DATABASE = "odoo"
DATABASE_ROLE = "odoo"
POSTGRES_ALIAS = "postgres"
HTTP_PORT = 8069
WEBSOCKET_PORT = 8072
DATA_DIR = "/var/lib/odoo"
CONFIG_FILE = "/etc/odoo/odoo.conf"
MODULES = ("base",)

_ANSWER_SECONDS = 20
# Seconds of a request and of a scheduled job. With Odoo's own limits of 60 and 120 s, installing a few apps
# through the web client is killed half way.
_REQUEST_CPU_SECONDS = 900
_REQUEST_SECONDS = 1_800
_CRON_SECONDS = 3_600
# Odoo's own number of rounds since 17.0; its login refuses nothing weaker but would hash again.
_ROUNDS = 600_000


@dataclass(frozen=True)
class Capacity:
    """What an instance may use: `workers` 0 is Odoo's threaded server; memory in bytes."""

    workers: int
    memory_bytes: int

    @property
    def shared_memory_bytes(self) -> int:
        """PostgreSQL's, for parallel queries: an engine gives a container 64 MB, which real data exceed."""
        return max(256 << 20, self.memory_bytes // 4)


CAPACITIES: Mapping[str, Capacity] = {
    "production": Capacity(workers=2, memory_bytes=3 << 30),
    "staging": Capacity(workers=0, memory_bytes=1 << 30),
    "development": Capacity(workers=0, memory_bytes=1 << 30),
}


@dataclass(frozen=True)
class Configuration:
    """What `odoo.conf` is made from."""

    capacity: Capacity
    database_password: str = field(repr=False)
    master_password: str = field(repr=False)

    def render(self) -> bytes:
        """The text of `odoo.conf` (Odoo's `odoo/tools/config.py` has the options)."""
        capacity = self.capacity
        options: dict[str, object] = {
            "admin_passwd": self.master_password,
            "data_dir": DATA_DIR,
            "db_host": POSTGRES_ALIAS,
            "db_name": DATABASE,
            "db_password": self.database_password,
            "db_user": DATABASE_ROLE,
            "dbfilter": f"^{DATABASE}$",
            "gevent_port": WEBSOCKET_PORT,
            "http_interface": "0.0.0.0",  # noqa: S104  (the network is the instance's own)
            "http_port": HTTP_PORT,
            "limit_time_cpu": _REQUEST_CPU_SECONDS,
            "limit_time_real": _REQUEST_SECONDS,
            "limit_time_real_cron": _CRON_SECONDS,
            "list_db": False,
            "max_cron_threads": 1,
            "proxy_mode": True,
            "without_demo": True,
            "workers": capacity.workers,
        }
        if capacity.workers:
            # Per process, cron and websocket processes among them; the hard limit is the container's.
            options["limit_memory_hard"] = capacity.memory_bytes
            options["limit_memory_soft"] = capacity.memory_bytes * 3 // 4
        lines = [f"{name} = {value}" for name, value in options.items()]
        return ("[options]\n" + "\n".join(lines) + "\n").encode()


ENTRYPOINT = ("odoo",)
"""Instead of the image's own entry point, which would put the database password into the process list."""

SERVE = ("--config", CONFIG_FILE)


def initialise_command() -> tuple[str, ...]:
    """The arguments that fill an empty database with the modules every instance starts from."""
    return (*SERVE, "--init", ",".join(MODULES), "--stop-after-init", "--no-http")


def create_database_sql(database_password: str) -> str:
    """For the superuser of a new cluster: a role that is none, and its database."""
    return (
        f"CREATE ROLE {DATABASE_ROLE} LOGIN NOSUPERUSER PASSWORD {_literal(database_password)};\n"
        f"CREATE DATABASE {DATABASE} OWNER {DATABASE_ROLE} TEMPLATE template0 ENCODING 'UTF8';\n"
    )


def set_passwords_sql(database_password: str) -> str:
    """For the superuser of a copied cluster: passwords that no other copy has."""
    return (
        f"ALTER ROLE {DATABASE_ROLE} PASSWORD {_literal(database_password)};\n"
        f"ALTER ROLE CURRENT_USER PASSWORD {_literal(secrets.token_urlsafe(32))};\n"
    )


def personalise_sql(admin_password: str, url: str) -> str:
    """For a copied database: an identity, secrets and an administrator of its own.

    The parameters are those that Odoo makes for a new database
    (`odoo/addons/base/models/ir_config_parameter.py`).
    """
    parameters = {
        "database.uuid": "gen_random_uuid()::text",
        "database.secret": _literal(secrets.token_hex(32)),
        "database.create_date": "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')",
        "web.base.url": _literal(url),
        "web.base.url.freeze": "'True'",
        # Where wkhtmltopdf fetches style sheets and images: the public address may not lead back in here.
        "report.url": _literal(f"http://127.0.0.1:{HTTP_PORT}"),
    }
    rows = ", ".join(f"({_literal(key)}, {value})" for key, value in parameters.items())
    administrator = "SELECT res_id FROM ir_model_data WHERE module = 'base' AND name = 'user_admin'"
    # Every value is a literal that `_literal` has quoted: psql takes no parameters.
    return (
        f"INSERT INTO ir_config_parameter (key, value) VALUES {rows}"  # noqa: S608
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value;\n"
        f"UPDATE res_users SET password = {_literal(hash_password(admin_password))}"
        f" WHERE id = ({administrator});\n"
    )


def hash_password(password: str) -> str:
    """The password as Odoo keeps it: passlib's modular crypt format of PBKDF2 with SHA-512."""
    salt = secrets.token_bytes(16)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ROUNDS)
    return f"$pbkdf2-sha512${_ROUNDS}${_adapted_base64(salt)}${_adapted_base64(key)}"


def _adapted_base64(data: bytes) -> str:
    return base64.b64encode(data, altchars=b"./").decode().rstrip("=")


def _literal(text: str) -> str:
    # Only our own generated values and checked URLs come here; quoting them all the same costs nothing.
    if "\x00" in text or "\\" in text:
        raise ValueError("not a value that we generate")
    return "'" + text.replace("'", "''") + "'"


async def check_health(connector: aiohttp.BaseConnector) -> None:
    """Asks `/web/health`, with the database server's; raises `NotHealthy`."""
    await _expect_ok(connector, "http://odoo/web/health?db_server_status=1", {})


async def check_login(connector: aiohttp.BaseConnector, url: str, hostname: str) -> None:
    """Asks for the login page under the instance's own host name; raises `NotHealthy`.

    `/web/health` answers even when the instance's own database does not load, and a redirect to the
    database manager means that it was not found.
    """
    await _expect_ok(connector, f"{url}/web/login", {"Host": hostname})


async def _expect_ok(connector: aiohttp.BaseConnector, url: str, headers: Mapping[str, str]) -> None:
    timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
    path = url.partition("://")[2].partition("/")[2]
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise NotHealthy(f"Odoo answers /{path} with status {response.status}, not 200.")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotHealthy(f"Odoo does not answer /{path} yet.") from error
