"""Messages for errors that a user can act on: they name what to check, and hold no secret value."""

import sqlite3
from collections.abc import Sequence

import aiohttp
import asyncpg
from alembic.util import CommandError
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from deployerp.core.errors import DeployError
from deployerp.core.settings import Settings
from deployerp.database.sessions import AWAY_STATES, sqlstate_of

_NO_SCHEMA = "The database schema is missing or out of date: run `deployerp migrate`."
_AWAY = "Could not reach the database: check DEPLOYERP_DATABASE_URL and that the server is running."
_BY_STATE = {
    ("42P01", "42703"): _NO_SCHEMA,
    ("3D000",): "The database does not exist: check its name in DEPLOYERP_DATABASE_URL, or create it.",
    ("28",): "The database rejected the login: check the role and password in DEPLOYERP_DATABASE_URL.",
    ("42501",): "The role in DEPLOYERP_DATABASE_URL lacks a privilege: see docs/production.md.",
    ("55P03",): "Another session of the database holds a lock: end it, or run the command again.",
    AWAY_STATES: _AWAY,
}
_LIST = 'must be a JSON list such as ["..."]'


def explain(error: Exception) -> Sequence[str] | None:
    """The lines for an error that a user can act on; None for any other."""
    if isinstance(error, DeployError):
        return [error.message]
    if isinstance(error, CommandError):
        return [str(error)]
    if isinstance(error, SettingsError):
        return [_unreadable(error)]
    if isinstance(error, ValidationError):
        return _broken(error) if error.title == Settings.__name__ else None
    if isinstance(error, OSError) and error.filename is not None:
        return [f"{error.strerror}: {error.filename}"]
    message = _of_database(error)
    return message and [message]


def _variable(setting: object) -> str:
    return f"DEPLOYERP_{str(setting).upper()}"


def _unreadable(error: SettingsError) -> str:
    # The library names the setting in its text alone, and what could not be read is in the error's cause.
    setting = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "...")
    return f"{_variable(setting)}: {_LIST}"


def _broken(error: ValidationError) -> Sequence[str]:
    rules: dict[str, list[str]] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        setting, *rest = each["loc"]
        rule = _LIST if each["type"] == "list_type" and not rest else each["msg"]
        # Of a place in a list, and not the library's own names for what it tried there.
        where = ".".join(str(part) for part in rest if isinstance(part, int) or part.isidentifier())
        rule = rule.removeprefix("Value error, ")
        rules.setdefault(_variable(setting), []).append(f"{where}: {rule}" if where else rule)
    return [f"{variable}: {'; '.join(broken)}" for variable, broken in rules.items()]


def _of_database(error: Exception) -> str | None:
    of_driver = error.orig if isinstance(error, DBAPIError) else error
    # Their kinds, such as `IntegrityError`, tell of the statement and not of the database.
    if type(of_driver) in (sqlite3.OperationalError, sqlite3.DatabaseError):
        return _of_sqlite(str(of_driver))
    state = sqlstate_of(error)
    for states, message in _BY_STATE.items():
        if state.startswith(states):
            return message
    away = (OperationalError, InterfaceError, PoolTimeout, asyncpg.InterfaceError, OSError)
    # Engines are spoken to through aiohttp.
    return _AWAY if isinstance(error, away) and not isinstance(error, aiohttp.ClientError) else None


def _of_sqlite(reason: str) -> str:
    if reason.startswith(("no such table", "no such column")):
        return _NO_SCHEMA
    return f"Could not open the database ({reason}): check DEPLOYERP_DATABASE_URL."
