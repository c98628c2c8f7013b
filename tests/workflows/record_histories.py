"""Records `histories/`: what the workflows do today, which tomorrow's must still be able to replay.

Run it by `make histories` after a workflow has changed on purpose, and look at the difference.
"""

import asyncio
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from deployerp.core.errors import EngineError, ImageUnavailable, ProviderRefused
from deployerp.domain.operations.messages import EndpointOrder, TurnResult, queue_for
from deployerp.domain.operations.stateful import action_of
from deployerp.domain.periodic import Shard
from deployerp.domain.tables import lifecycles
from deployerp.embedded import control_plane
from tests.skipping import skipping_environment
from tests.workflows.stand_ins import (
    Play,
    StandIns,
    fails,
    gives,
    order_for,
    time_skipping_server,
    until_cancelled,
    working,
)

FOLDER = Path(__file__).with_name("histories")
_QUEUE = "histories"
_ENDPOINT = EndpointOrder(
    endpoint_id="00000000-0000-7000-8000-00000000000d",
    organization_id="00000000-0000-7000-8000-00000000000a",
)


@dataclass(frozen=True)
class Scenario:
    """One run of a workflow: how its activities behave, and what comes to it from outside and when."""

    name: str
    workflow: str
    arguments: tuple[Any, ...] = ()
    plays: Mapping[str, Play] = field(default_factory=dict)
    cancel_during: str | None = None
    # Signals: with its start, and when it rests.
    begin_with: str | None = None
    rouse_with: str | None = None

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.workflow}.{self.name}.json"


def _operation(
    name: str, resource_type: str, action: str, *, force: bool = False, **options: Any
) -> Scenario:
    order = order_for(resource_type, action, force=force)
    return Scenario(name, action_of(resource_type, action).workflow, (order,), **options)


def _undone(resource_type: str, action: str, step: str, undo: str) -> list[Scenario]:
    failure = fails(ImageUnavailable("No registry has the image: name another."))
    refusal = fails(ProviderRefused("The provider knows the key no more: give another."))
    busy = fails(EngineError("The engine is busy."), times=1)
    return [
        _operation("failed_and_undone", resource_type, action, plays={step: failure}),
        _operation(
            "cancelled_and_undone", resource_type, action, plays={step: until_cancelled}, cancel_during=step
        ),
        _operation("undone_at_the_second_try", resource_type, action, plays={step: failure, undo: busy}),
        _operation("failed_and_not_undone", resource_type, action, plays={step: failure, undo: refusal}),
        _operation(
            "cancelled_before_its_claim", resource_type, action, plays={"claim_operation": gives(False)}
        ),
    ]


def _deletions(resource_type: str, step: str) -> list[Scenario]:
    refusal = {step: fails(ProviderRefused("The provider knows the key no more: give another."))}
    return [
        _operation("failed", resource_type, "delete", plays=refusal),
        _operation("forced", resource_type, "delete", force=True, plays=refusal),
    ]


def _deliveries(name: str, *turns: TurnResult, failing: bool = False, **options: Any) -> Scenario:
    """The first run: where it goes on among endpoints of the other kind is its end."""
    arguments = (replace(_ENDPOINT, failing=failing), 0, None)
    return Scenario(
        name, "DeliverWebhooks", arguments, plays={"send_due": gives(*turns)}, begin_with="wake", **options
    )


# On the development server.
ON_TIME = [
    *(
        _operation("succeeded", each.resource_type, action)
        for each in lifecycles().values()
        for action in each.actions
    ),
    *_undone("server", "provision", "check_engine", "destroy_node"),
    *_undone("instance", "deploy", "start_odoo", "remove_instance"),
    *_deletions("server", "destroy_node"),
    *_deletions("instance", "remove_instance"),
    _operation(
        "cancelled", "instance", "restart", plays={"start_odoo": until_cancelled}, cancel_during="start_odoo"
    ),
    Scenario(
        "cancelled", "KeepWorking", (Shard("sweep"),),
        plays={"keep_working": until_cancelled}, cancel_during="keep_working",
    ),
    # A rest there ends by a signal and not by itself.
    _deliveries("woken", TurnResult(0, 3600), TurnResult(0, None), rouse_with="wake"),
    _deliveries(
        "changed_while_left_alone",
        TurnResult(10, 3600, paused=True), TurnResult(0, None), failing=True, rouse_with="changed",
    ),
]  # fmt: skip
# On the one that skips time.
SKIPPING = [
    _deliveries("succeeded", TurnResult(0, None)),
    _deliveries("several_turns", TurnResult(0, 0), TurnResult(1, 0), TurnResult(0, None)),
    _deliveries("rested", TurnResult(0, 7200), TurnResult(0, 36_000), TurnResult(0, None)),
    _deliveries("began_to_fail", TurnResult(1, 7200), TurnResult(0, None)),
    _deliveries("works_again", TurnResult(1, 7200), TurnResult(0, 60), TurnResult(0, None), failing=True),
    _deliveries(
        "left_alone",
        TurnResult(10, 5, paused=True), TurnResult(11, 10, paused=True), TurnResult(0, None), failing=True,
    ),
]  # fmt: skip


async def record(client: Client, scenario: Scenario) -> str:
    """The history of a run of the scenario, as JSON without what tells of this machine."""
    stand_ins = StandIns(scenario.plays)
    queue = f"{_QUEUE}-{scenario.workflow}-{scenario.name}"
    begins_at = queue_for(queue, failing=scenario.arguments[0].failing) if scenario.begin_with else queue
    async with working(client, stand_ins, queue):
        handle: WorkflowHandle[Any, Any] = await client.start_workflow(
            scenario.workflow,
            args=scenario.arguments,
            id=f"{scenario.workflow}-{scenario.name}",
            task_queue=begins_at,
            start_signal=scenario.begin_with,
        )
        first = client.get_workflow_handle(handle.id, run_id=(await handle.describe()).run_id)
        if scenario.rouse_with:
            await _until_it_rests(handle)
            await handle.signal(scenario.rouse_with)
        if scenario.cancel_during:
            await stand_ins.reached(scenario.cancel_during)
            await handle.cancel()
        with suppress(WorkflowFailureError):
            await handle.result()
    history = json.loads((await first.fetch_history()).to_json())
    return json.dumps(_anonymous(history), indent=1, ensure_ascii=False) + "\n"


async def _until_it_rests(handle: WorkflowHandle[Any, Any]) -> None:
    while all(
        event.event_type != EventType.EVENT_TYPE_TIMER_STARTED
        for event in (await handle.fetch_history()).events
    ):
        await asyncio.sleep(0.05)


def _anonymous(value: Any) -> Any:
    """Without the names of processes and machines and the paths of this checkout; replaying needs none."""
    if isinstance(value, list):
        return [_anonymous(each) for each in value]
    if not isinstance(value, dict):
        return value
    # The sticky queue is named by the machine; the queue it stands for is what a replay knows.
    kept = {
        key: each for key, each in value.items() if key not in ("identity", "stackTrace", "stickyAttributes")
    }
    if kept.get("kind") == "TASK_QUEUE_KIND_STICKY":
        kept["name"] = "sticky"
    return {key: _anonymous(each) for key, each in kept.items()}


async def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    recorded = {}
    with tempfile.TemporaryDirectory() as home:
        ports = control_plane.Ports.free()
        settings = control_plane.embedded_settings(Path(home), ports)
        async with control_plane.services(settings, ports):
            client = await Client.connect(f"127.0.0.1:{ports.temporal}", identity="recorder")
            for scenario in ON_TIME:
                recorded[scenario.path] = await record(client, scenario)
    async with await skipping_environment(time_skipping_server()) as skipping:
        for scenario in SKIPPING:
            recorded[scenario.path] = await record(skipping.client, scenario)
    for path in set(FOLDER.glob("*.json")) - recorded.keys():
        path.unlink()
    for path, history in recorded.items():
        path.write_text(history)


if __name__ == "__main__":
    asyncio.run(main())
