"""What the API costs beside the bare endpoints of the same rows: a million instances on PostgreSQL.

The API and a bare FastAPI + asyncpg + orjson application run in processes of their own, on one database, and
are asked in turns, so that what else the machine does hits both.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import api_fleet
from api_cases import CASES, Case, Side, check
from api_load import CONNECTIONS
from api_parts import Parts, Turn, parts
from control_plane import spread
from rich.console import Console
from rich.table import Table

from deployerp.core import logging
from deployerp.core.errors import DeployError

_SECONDS = 1800
# When others keep more cores busy than this, it is not the API that is measured.
_NOISE = 0.2
_CONSOLE = Console(stderr=True, highlight=False)
# Of each case, its turns by side; or the reason why there are none.
Measured = dict[str, dict[Side, list[Turn]]]


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    size: api_fleet.Size
    rounds: int
    seconds: float


FULL = Extent(api_fleet.FULL, rounds=7, seconds=2)
QUICK = Extent(api_fleet.QUICK, rounds=3, seconds=1)


@dataclass(frozen=True)
class Target:
    """A figure of one case and side by that of another, round by round, and what it is to be."""

    name: str
    over: tuple[str, Side]
    under: tuple[str, Side]
    at_least: float | None = None
    at_most: float | None = None
    figure: str = "requests_per_second"
    minus: float = 0

    @property
    def cases(self) -> set[str]:
        return {self.over[0], self.under[0]}

    def reached(self, measured: Measured) -> dict[str, Any]:
        """What was reached; None where one of the two could not be measured."""
        over, under = (measured.get(case, {}).get(side) for case, side in (self.over, self.under))
        wanted = {"at_least": self.at_least, "at_most": self.at_most}
        told = {name: value for name, value in wanted.items() if value is not None}
        if not over or not under:
            return {"reached": None, **told, "met": False}
        value = ratios(over, under, self.figure)["median"] - self.minus
        met = (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )
        return {"reached": round(value, 3), **told, "met": met}


def _beside_bare(case: str, at_least: float) -> Target:
    return Target(f"{case}_by_bare", (case, "deployerp"), (case, "bare"), at_least)


_SMALL: tuple[str, Side] = ("list_small", "deployerp")
_BIG: tuple[str, Side] = ("list_big", "deployerp")
TARGETS = (
    *(_beside_bare(name, 0.7) for name in ("list_small", "list_big", "list_deep", "list_filtered")),
    _beside_bare("get", 0.6),
    _beside_bare("create", 0.5),
    _beside_bare("create_and_start", 0.5),
    Target("big_by_small", _BIG, _SMALL, at_least=0.9),
    Target("deep_by_first_page", ("list_deep", "deployerp"), _BIG, at_most=2, figure="p50_ms"),
    # What a limit adds to the CPU of a request, by the request's own without one.
    Target(
        "rate_limit_share",
        ("list_limited", "deployerp"),
        ("list_unlimited", "deployerp"),
        at_most=0.15,
        figure="cpu_ms",
        minus=1,
    ),
)


def ratios(over: Sequence[Turn], under: Sequence[Turn], figure: str) -> dict[str, float]:
    """Of the turns of each round: what else the machine does changes more slowly than they take turns."""
    return spread(
        [getattr(one, figure) / getattr(other, figure) for one, other in zip(over, under, strict=True)], 3
    )


async def measure(running: Parts, cases: Sequence[Case], extent: Extent) -> tuple[Measured, dict[str, str]]:
    """Rounds of turns; and by case, the reason why it could not be measured."""
    measured: Measured = {}
    failed: dict[str, str] = {}
    for number in range(extent.rounds):
        _CONSOLE.print(f"Round {number + 1} of {extent.rounds}")
        for case in cases:
            if case.name not in failed:
                try:
                    await _turns(running, case, extent, measured)
                except (DeployError, LookupError) as error:
                    failed[case.name] = _reason(error)
                    measured.pop(case.name, None)
    return measured, failed


async def _turns(running: Parts, case: Case, extent: Extent, measured: Measured) -> None:
    asked = case.requests(running.fleet, running.ports["deployerp"])
    check(case, asked, running.ports)
    for side, requests in asked.by_side.items():
        turn = await running.turn(side, requests, case.status, extent.seconds * case.share)
        measured.setdefault(case.name, {}).setdefault(side, []).append(turn)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, DeployError) else f"The answer has no {error}."


def summary(running: Parts, measured: Measured, failed: dict[str, str], extent: Extent) -> dict[str, Any]:
    asked = measured.keys() | failed.keys()
    others = [turn.others_busy for sides in measured.values() for turns in sides.values() for turn in turns]
    return {
        "bench": "api",
        "instances": extent.size.instances,
        "organizations": extent.size.organizations,
        "big_organization": extent.size.big_instances,
        "seed_seconds": round(running.seed_seconds, 1),
        "cores": os.cpu_count(),
        "connections": CONNECTIONS,
        "rounds": extent.rounds,
        "turn_seconds": extent.seconds,
        "others_busy": round(statistics.mean(others), 2) if others else None,
        "cases": {name: _case(sides) for name, sides in measured.items()},
        "failed": failed,
        "targets": {target.name: target.reached(measured) for target in TARGETS if target.cases <= asked},
    }


def _case(sides: dict[Side, list[Turn]]) -> dict[str, Any]:
    told: dict[str, Any] = {side: _medians(turns) for side, turns in sides.items()}
    if "bare" in sides:
        both = sides["deployerp"], sides["bare"]
        told["ratio_requests"] = ratios(*both, "requests_per_second")
        told["ratio_cpu"] = ratios(*both, "cpu_ms")
    return told


def _medians(turns: Sequence[Turn]) -> dict[str, float]:
    return {
        each.name: round(statistics.median(getattr(turn, each.name) for turn in turns), 3)
        for each in fields(Turn)
    }


def show(figures: dict[str, Any]) -> None:
    # Milliseconds; the last three are of CPU, for each request.
    columns = ("per s", "p50", "p99", "API", "PostgreSQL", "Temporal")
    table = Table("case", "", *columns, "by bare")
    for column in table.columns[2:]:
        column.justify = "right"
    for case in CASES:
        told = figures["cases"].get(case.name, {})
        for side in ("deployerp", "bare"):
            if side in told:
                ratio = told.get("ratio_requests", {}).get("median") if side == "deployerp" else None
                cells = [f"{value:.2f}" for value in list(told[side].values())[: len(columns)]]
                title = case.title if side == "deployerp" else ""
                table.add_row(title, side, *cells, "" if ratio is None else f"{ratio:.2f}")
    _CONSOLE.print(table)
    for name, target in figures["targets"].items():
        wanted = "at least" if "at_least" in target else "at most"
        limit = target.get("at_least", target.get("at_most"))
        verdict = "met" if target["met"] else "NOT MET"
        _CONSOLE.print(f"{name}: {target['reached']} ({wanted} {limit}): {verdict}")
    if (figures["others_busy"] or 0) > _NOISE:
        _CONSOLE.print(f"Others kept {figures['others_busy']} of {os.cpu_count()} cores busy: run it again.")
    for name, reason in figures["failed"].items():
        _CONSOLE.print(f"{name} was not measured: {reason}", markup=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small fleet and short turns, to try it out")
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"some of {names}")
    return parser.parse_args()


async def figures_of(home: Path, cases: Sequence[Case], extent: Extent) -> dict[str, Any]:
    """Raises `Unavailable` where what is measured does not start."""
    async with asyncio.timeout(_SECONDS), parts(home, extent.size) as running:
        figures = summary(running, *await measure(running, cases, extent), extent)
        return figures | {"started_share": await running.started_share()}


def main() -> int:
    given = _arguments()
    logging.configure("WARNING")
    extent = QUICK if given.quick else FULL
    cases = [case for case in CASES if given.only is None or case.name in given.only]
    with tempfile.TemporaryDirectory(prefix="deployerp-bench-") as folder:
        home = Path(folder)
        # PostgreSQL's user walks through it.
        home.chmod(0o711)
        try:
            figures = asyncio.run(figures_of(home, cases, extent))
        except (DeployError, TimeoutError) as error:
            reason = error.message if isinstance(error, DeployError) else f"not done within {_SECONDS} s"
            _CONSOLE.print(reason, markup=False)
            sys.stdout.write(json.dumps({"bench": "api", "error": reason}) + "\n")
            return 1
    show(figures)
    sys.stdout.write(json.dumps(figures) + "\n")
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
