"""What began yesterday must go on today: recorded histories of every workflow, replayed."""

import base64
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from deployerp.domain import periodic
from deployerp.domain.operations import messages
from deployerp.worker import WORKFLOWS
from tests.workflows.record_histories import FOLDER, ON_TIME, SKIPPING

HISTORIES = sorted(FOLDER.glob("*.json"))
every_history = pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
# What may travel through Temporal: the fields of messages, and a failure's own.
_FIELDS = {
    field.name
    for message in (*vars(messages).values(), *vars(periodic).values())
    if dataclasses.is_dataclass(message)
    for field in dataclasses.fields(message)
} | {"name", "code", "type"}
_SCHEDULED = "activityTaskScheduledEventAttributes"
_PROCESS = re.compile(r"\d+@")
_PATH = re.compile(r"(?<![\w/])/\w[\w.-]*/\w|[A-Z]:\\|File \"")


def recorded(path: Path) -> dict[str, Any]:
    history: dict[str, Any] = json.loads(path.read_text())
    return history


async def replay(history: dict[str, Any]) -> None:
    await Replayer(workflows=WORKFLOWS).replay_workflow(WorkflowHistory.from_json("recorded", history))


@every_history
async def test_what_was_recorded_replays(path: Path) -> None:
    await replay(recorded(path))


@every_history
async def test_a_replay_of_other_activities_fails(path: Path) -> None:
    history = recorded(path)
    # The last one, so that the replay has to get that far to find out.
    *_, scheduled = (event for event in history["events"] if _SCHEDULED in event)
    scheduled[_SCHEDULED]["activityType"]["name"] = "another_one"
    with pytest.raises(NondeterminismError, match="another_one"):
        await replay(history)


def test_every_workflow_has_the_histories_that_are_recorded() -> None:
    assert {path.stem.partition(".")[0] for path in HISTORIES} == {each.__name__ for each in WORKFLOWS}
    assert set(HISTORIES) == {scenario.path for scenario in (*ON_TIME, *SKIPPING)}


@every_history
def test_a_history_tells_nothing_of_where_it_was_recorded(path: Path) -> None:
    for text in texts(recorded(path)):
        assert not _PROCESS.search(text)
        assert not _PATH.search(text)


@every_history
def test_a_history_holds_ids_and_scalars_only(path: Path) -> None:
    for value in payloads(recorded(path)):
        assert keys(value) <= _FIELDS


def texts(value: Any) -> Iterator[str]:
    """Every text of a history, also the ones within payloads."""
    if isinstance(value, dict) and "metadata" in value and "data" in value:
        yield base64.b64decode(value["data"]).decode()
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


def payloads(value: Any) -> Iterator[Any]:
    if isinstance(value, dict) and "metadata" in value and "data" in value:
        yield json.loads(base64.b64decode(value["data"]))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from payloads(each)


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()
