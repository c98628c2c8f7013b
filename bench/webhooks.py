"""What it costs to deliver an event, from its row to the receiver, beside bare POSTs of the same bodies.

PostgreSQL, Temporal, `deployerp worker` and the receiver are processes of their own. In turns: events that
are there all at once, for one endpoint and for ten; the same number of POSTs with one aiohttp session; and
events that come one by one, for the time from the commit to the first try: alone, and while the worker is
busy with endpoints that fail.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from control_plane import percentile, spread
from rich.console import Console
from webhook_parts import House, house_of

from deployerp.core import logging
from deployerp.core.errors import DeployError, Unavailable

_SECONDS = 900
_CONCURRENCY = 10
# At least so many a second, through workflows.
_WANTED = 200
# Endpoints that fail, what is due for each of them, and what a good one gets meanwhile, one by one.
_FAILING, _DUE, _AMONG, _AMONG_PER_SECOND = 200, 20, 100, 5.0
# No event of it waits longer.
_MOST_SECONDS = 1.0
_BODY = json.dumps(
    {"type": "instance.deployed", "timestamp": "2026-01-01T00:00:00Z", "data": {"x": "x" * 300}}
)
_CONSOLE = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Extent:
    """How much is sent: at once in each turn, and one by one at a rate."""

    at_once: int
    rounds: int
    one_by_one: int
    per_second: float


FULL = Extent(at_once=3_000, rounds=3, one_by_one=1_000, per_second=50)
QUICK = Extent(at_once=500, rounds=1, one_by_one=100, per_second=50)


@dataclass(frozen=True)
class Turn:
    """Deliveries of one turn; CPU is in milliseconds for each."""

    per_second: float
    cpu_ms: dict[str, float]

    @property
    def per_core_second(self) -> float:
        return 1000 / sum(self.cpu_ms.values())


async def at_once(house: House, deliveries: int, endpoints: int) -> Turn:
    """Events that are there all at once, until the last has been taken."""
    await house.listen(endpoints)
    await house.receiver.forget()
    asleep, committed = await house.write(deliveries // endpoints)
    before = house.spent()
    await house.temporal.wake_endpoints(asleep)
    await house.receiver.until(deliveries)
    came = await house.receiver.came()
    if len({(each.endpoint, each.id) for each in came}) != len(came):
        raise Unavailable("Deliveries came twice: nothing was killed, so there is no reason to.")
    # What is recorded of the last ones belongs to them too.
    await asyncio.sleep(0.5)
    spent = {name: now - before[name] for name, now in house.spent().items()}
    return Turn(
        deliveries / (max(each.at for each in came) - committed),
        {name: 1000 * seconds / deliveries for name, seconds in spent.items()},
    )


async def one_by_one(house: House, extent: Extent) -> list[float]:
    """Events that come at a rate, each in a transaction; sorted seconds from commit to arrival."""
    await house.listen(1)
    return await _come(house, extent.one_by_one, extent.per_second)


async def among_failing(house: House) -> list[float]:
    """The same for one endpoint, while a worker is busy with many that begin to fail."""
    await house.listen(1)
    await house.listen_to_nobody(_FAILING)
    await house.receiver.forget()
    asleep, _ = await house.write(_DUE)
    await house.want_nothing_more()
    good = [each for each in asleep if each.endpoint_id == str(house.endpoints[0].id)]
    await house.temporal.wake_endpoints(good)
    await house.receiver.until(_DUE)
    await house.temporal.wake_endpoints([each for each in asleep if each not in good])
    return await _come(house, _AMONG, _AMONG_PER_SECOND)


async def _come(house: House, events: int, per_second: float) -> list[float]:
    await house.receiver.forget()
    committed = []
    begun = time.monotonic()
    for number in range(events):
        await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
        asleep, at = await house.write(1)
        committed.append(at)
        await house.temporal.wake_endpoints(asleep)
    await house.receiver.until(events)
    return await _waited(house, committed)


def bare(url: str, posts: int, per_second: float | None = None) -> tuple[float, float, list[float]]:
    """Bare POSTs from this process: seconds, CPU seconds, and when each began."""
    return asyncio.run(_bare(url, posts, per_second))


async def _bare(url: str, posts: int, per_second: float | None) -> tuple[float, float, list[float]]:
    numbers, began_at = iter(range(posts)), [0.0] * posts

    async def post_in_turn(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            if per_second is not None:
                await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            began_at[number] = time.monotonic()
            headers = {"webhook-id": f"{number:08}", "content-type": "application/json"}
            async with session.post(url, data=_BODY, headers=headers) as answer:
                await answer.read()

    async with aiohttp.ClientSession() as session:
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(post_in_turn(session) for _ in range(1 if per_second else _CONCURRENCY)))
        return time.monotonic() - began, time.process_time() - cpu, began_at


async def bare_turn(house: House, client: ProcessPoolExecutor, posts: int) -> Turn:
    seconds, cpu, _ = await _elsewhere(client, house.receiver.url(0), posts)
    return Turn(posts / seconds, {"client": 1000 * cpu / posts})


async def bare_one_by_one(house: House, client: ProcessPoolExecutor, extent: Extent) -> list[float]:
    await house.receiver.forget()
    _, _, began_at = await _elsewhere(client, house.receiver.url(0), extent.one_by_one, extent.per_second)
    return await _waited(house, began_at)


async def _waited(house: House, since: Sequence[float]) -> list[float]:
    """Sorted seconds from each time until what was sent then has come: ids sort by when they were given."""
    came = sorted(await house.receiver.came())
    return sorted(each.at - then for each, then in zip(came, since, strict=True))


async def _elsewhere(
    client: ProcessPoolExecutor, url: str, posts: int, per_second: float | None = None
) -> tuple[float, float, list[float]]:
    return await asyncio.get_running_loop().run_in_executor(client, bare, url, posts, per_second)


async def measure(house: House, client: ProcessPoolExecutor, extent: Extent) -> dict[str, Any]:
    turns: dict[str, list[Turn]] = {"one_endpoint": [], "ten_endpoints": [], "bare": []}
    # What is loaded and connected with the first delivery is no part of the others.
    await at_once(house, 100, 1)
    for number in range(extent.rounds):
        _CONSOLE.print(f"Round {number + 1} of {extent.rounds}: {extent.at_once} deliveries each")
        turns["one_endpoint"].append(await at_once(house, extent.at_once, 1))
        turns["bare"].append(await bare_turn(house, client, extent.at_once))
        turns["ten_endpoints"].append(await at_once(house, extent.at_once, 10))
    _CONSOLE.print(f"{extent.one_by_one} events, {extent.per_second:g} a second")
    ours, theirs = await one_by_one(house, extent), await bare_one_by_one(house, client, extent)
    _CONSOLE.print(f"{_AMONG} events, {_AMONG_PER_SECOND:g} a second, among {_FAILING} endpoints that fail")
    hindered = await among_failing(house)
    told = _told(turns)
    told["targets"]["worst_seconds_among_failing"] = {
        "reached": round(hindered[-1], 3), "at_most": _MOST_SECONDS, "met": hindered[-1] <= _MOST_SECONDS
    }  # fmt: skip
    return told | {
        "from_commit_to_first_try": _latency(ours),
        "bare_post": _latency(theirs),
        "among_failing": {
            "endpoints": _FAILING,
            "p50_ms": round(1000 * statistics.median(hindered), 1),
            "worst_ms": round(1000 * hindered[-1], 1),
        },
    }


def _told(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: {
            "per_second": spread([turn.per_second for turn in each], 0),
            "per_core_second": spread([turn.per_core_second for turn in each], 0),
            "cpu_ms": {
                part: round(statistics.median(turn.cpu_ms[part] for turn in each), 2)
                for part in each[0].cpu_ms
            },
        }
        for name, each in turns.items()
    }
    reached = statistics.median(turn.per_second for turn in turns["one_endpoint"])
    return {
        **told,
        "ratio_per_core": round(
            statistics.median(turn.per_core_second for turn in turns["one_endpoint"])
            / statistics.median(turn.per_core_second for turn in turns["bare"]),
            3,
        ),
        "targets": {
            "deliveries_per_second": {
                "reached": round(reached), "at_least": _WANTED, "met": reached >= _WANTED
            }
        },
    }  # fmt: skip


def _latency(sorted_seconds: Sequence[float]) -> dict[str, float]:
    return {
        f"p{share:.0%}_ms".replace("%", ""): round(1000 * percentile(sorted_seconds, share), 1)
        for share in (0.5, 0.99)
    }


async def bench(home: Path, extent: Extent) -> dict[str, Any]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
        async with asyncio.timeout(_SECONDS), house_of(home) as house:
            return {"bench": "webhooks", **asdict(extent), **await measure(house, client, extent)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try it out; the figures mean little")
    extent = QUICK if parser.parse_args().quick else FULL
    logging.configure("WARNING")
    with tempfile.TemporaryDirectory(prefix="deployerp-bench-") as folder:
        home = Path(folder)
        # PostgreSQL's user walks through it.
        home.chmod(0o711)
        try:
            figures = asyncio.run(bench(home, extent))
        except (DeployError, TimeoutError) as error:
            reason = error.message if isinstance(error, DeployError) else f"not done within {_SECONDS} s"
            _CONSOLE.print(reason, markup=False)
            sys.stdout.write(json.dumps({"bench": "webhooks", "error": reason}) + "\n")
            return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
