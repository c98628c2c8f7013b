"""What is broken, and mended again: programs of the control plane, and nodes with their engines."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.chaos import world
from tests.chaos.log import Log
from tests.chaos.programs import Plane, Program
from tests.e2e.world import run

# By turns: where things break all the time, no deploy comes to its end, and little is left to break.
_QUIET_SECONDS, _WAVE_SECONDS = 45.0, 45.0
_PAUSE_SECONDS = (2.0, 12.0)
_AT_ONCE = 3
# Longer than a step's heartbeat may be away, shorter than the bound of any retry.
_FROZEN_SECONDS = (2.0, 20.0)
_DOWN_SECONDS = (0.0, 10.0)
_MEND_SECONDS = 120
# How often each is chosen, beside the others.
_PROGRAMS = {"postgres": 2, "temporal": 2, "api": 1, "worker": 2, "faulty-worker": 2}
_NODE_FAULTS = {"pause": 2, "freeze engine": 2, "kill engine": 2, "freeze sshd": 1, "kill sshd": 1}
_SHARE_OF_NODES = 0.4
# Debian's sshd has names of its own for the processes of sessions.
_SSHD = "^sshd"
_START_SSHD = "pgrep -x sshd >/dev/null || { mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e; }"


class Faults:
    """Breaks something every few seconds, at most three things at once, in waves, until it is ended."""

    def __init__(self, plane: Plane, installation: str, seed: int, log: Log) -> None:
        self._plane = plane
        self._installation = installation
        self._random = random.Random(f"faults {seed}")
        self._log = log
        self._broken: dict[str, asyncio.Task[None]] = {}
        self.done: Counter[str] = Counter()

    async def keep_breaking(self) -> None:
        while True:
            await asyncio.sleep(_QUIET_SECONDS)
            wave_ends = asyncio.get_running_loop().time() + _WAVE_SECONDS
            while asyncio.get_running_loop().time() < wave_ends:
                await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
                await self._start_what_has_died()
                if len(self._broken) < _AT_ONCE:
                    await self._break_something()

    async def mend(self) -> None:
        """Waits for the end of what is broken at the moment, and sees to it that all runs."""
        await asyncio.gather(*self._broken.values())
        async with asyncio.timeout(_MEND_SECONDS):
            await self._plane.revive()
        for node in await world.node_names(self._installation, "status=running"):
            await _mend_node(node)
        self._log.write("mended")

    async def _start_what_has_died(self) -> None:
        """As a supervisor does; that it has died is noted, and is a finding."""
        for name, program in self._plane.programs.items():
            if name not in self._broken:
                await program.revive()

    async def _break_something(self) -> None:
        # The same draws whatever there is, so that what comes later depends less on it.
        on_node, chosen = self._random.random() < _SHARE_OF_NODES, self._random.random()
        frozen, down = self._random.uniform(*_FROZEN_SECONDS), self._random.uniform(*_DOWN_SECONDS)
        kind, name = self._draw(_NODE_FAULTS), self._draw(_PROGRAMS)
        nodes = sorted(await world.node_names(self._installation, "status=running")) if on_node else []
        if nodes:
            node = nodes[int(chosen * len(nodes))]
            seconds = down if kind.startswith("kill") else frozen
            self._begin(node, kind, seconds, lambda: _break_node(node, kind, seconds))
        else:
            program = self._plane.programs[name]
            kind = "kill" if chosen < 0.5 else "freeze"
            seconds = down if kind == "kill" else frozen
            self._begin(name, kind, seconds, lambda: _break_program(program, kind, seconds))

    def _draw(self, weights: dict[str, int]) -> str:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _begin(self, target: str, kind: str, seconds: float, fault: Callable[[], Awaitable[None]]) -> None:
        if target in self._broken:
            return
        self._log.write("fault", target=target, kind=kind, seconds=round(seconds, 1))
        self.done[f"{kind} {'node' if target.startswith('deployerp-node') else target}"] += 1
        self._broken[target] = asyncio.create_task(self._run(target, fault))

    async def _run(self, target: str, fault: Callable[[], Awaitable[None]]) -> None:
        try:
            await fault()
        finally:
            del self._broken[target]
            self._log.write("fault over", target=target)


async def _break_program(program: Program, kind: str, seconds: float) -> None:
    if kind == "kill":
        await program.kill()
        await asyncio.sleep(seconds)
        await program.start()
        return
    program.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        program.thaw()


async def _break_node(node: str, kind: str, seconds: float) -> None:
    """The node may be gone before it is mended, or boot meanwhile: then there is nothing to mend."""
    match kind:
        case "pause":
            await run("docker", "pause", node)
        case "freeze engine":
            await _in_node(node, "pkill -STOP -x dockerd")
        case "kill engine":
            # Its node ends with it and boots again.
            await _in_node(node, "pkill -KILL -x dockerd")
        case "freeze sshd":
            await _in_node(node, f"pkill -STOP '{_SSHD}'")
        case "kill sshd":
            await _in_node(node, f"pkill -KILL '{_SSHD}'")
    try:
        await asyncio.sleep(seconds)
    finally:
        await _mend_node(node)


async def _mend_node(node: str) -> None:
    await run("docker", "unpause", node)
    await _in_node(node, f"pkill -CONT -x dockerd; pkill -CONT '{_SSHD}'")
    # As an init system would: in a node nobody else does.
    await run("docker", "exec", "--detach", node, "sh", "-c", _START_SSHD)


async def _in_node(node: str, script: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(20):
            await run("timeout", "15", "docker", "exec", node, "sh", "-c", script)
