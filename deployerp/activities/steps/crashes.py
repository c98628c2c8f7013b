"""PostgreSQL and Odoo that end as often as the engine starts them: noticed, and told with their log."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime

from deployerp.activities.steps import disks
from deployerp.activities.steps.instance_parts import ROLE_LABEL, Parts
from deployerp.core.errors import ContainerFailed, DeployError, DiskFull, EngineError, NotHealthy
from deployerp.drivers.engine.containers import ContainerState, masked
from deployerp.drivers.engine.engine import Engine
from deployerp.drivers.server.host import Host

_PROGRAMS = {"postgres": "PostgreSQL", "odoo": "Odoo"}
# With the same status, while what the program needs is there: then another start will not help either.
_EXITS = 3
# More is read than shown, so that a secret of many lines is found whole.
_LINES_READ = 200
_LINES_SHOWN = 20
_LONGEST_LOG = 4_000


class Watch:
    """Watches the containers of an instance while they start; `secrets` are masked in what it tells."""

    def __init__(self, host: Host, engine: Engine, parts: Parts, secrets: Collection[str]) -> None:
        self._host = host
        self._engine = engine
        self._parts = parts
        self._secrets = secrets
        # Per container: the exit status of each run, by the time at which that began.
        self._exits: defaultdict[str, dict[datetime | None, int]] = defaultdict(dict)

    async def look(self, *names: str) -> Mapping[str, ContainerState]:
        """Those of the containers that are there, by name.

        Raises `ContainerFailed`, or `DiskFull`, for one that ends each time it is started.
        """
        found = {state.name: state for state in await self._engine.find_containers(self._parts.labels)}
        states = {name: found[name] for name in names if name in found}
        for state in states.values():
            if state.exit_code is not None and await self._counts(state):
                await self._note(state, state.exit_code)
        return states

    async def _counts(self, state: ContainerState) -> bool:
        # Odoo ends without its PostgreSQL, and runs again when that is back.
        if state.name == self._parts.postgres or await postgres_answers(self._engine, self._parts):
            return True
        self._exits[state.name].clear()
        return False

    async def _note(self, state: ContainerState, status: int) -> None:
        exits = self._exits[state.name]
        exits[state.started_at] = status
        last = list(exits.values())[-_EXITS:]
        if last == [status] * _EXITS:
            raise await self._failure(state)

    async def _failure(self, state: ContainerState) -> DeployError:
        log = ""
        with suppress(EngineError):
            log = await self._engine.logs(state.name, tail=_LINES_READ)
        lines = mask_log(log, self._secrets)
        ended = f"{program(state)} ended {_EXITS} times with exit status {state.exit_code}"
        if disk := await disks.full_disk(self._host, lines):
            return DiskFull(f"{ended}. {disks.in_words(disk)}", log=lines)
        return ContainerFailed(
            f"{ended}: the last lines of its log tell why. Put that right, then retry the operation.",
            log=lines,
        )


def program(state: ContainerState) -> str:
    """What runs in a container, in words."""
    return _PROGRAMS[state.labels[ROLE_LABEL]]


async def check_postgres(engine: Engine, parts: Parts) -> None:
    """Raises `NotHealthy` while PostgreSQL takes no connections over the network."""
    # By address: while the image makes a new cluster, a server answers on the socket alone.
    asked = await engine.execute(parts.postgres, ["pg_isready", "--quiet", "--host", "127.0.0.1"], timeout=10)
    if asked.exit_code != 0:
        raise NotHealthy("PostgreSQL does not take connections yet.")


async def postgres_answers(engine: Engine, parts: Parts) -> bool:
    try:
        await check_postgres(engine, parts)
    except (NotHealthy, EngineError):
        return False
    return True


def mask_log(log: str, secrets: Collection[str]) -> str:
    """The last lines of a log, fit to be shown."""
    return "\n".join(_readable(masked(log, secrets)).splitlines()[-_LINES_SHOWN:])[-_LONGEST_LOG:]


def _readable(log: str) -> str:
    # Databases refuse some control characters, and terminals obey them.
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in log
    )
