"""The audit finds what is wrong: each test breaks one thing in a world that is right."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployerp.database.base import utc_now
from deployerp.domain.events.event import Event
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation, OperationStep
from deployerp.domain.servers import Server
from tests.chaos.__main__ import together
from tests.chaos.audit import audit, audit_nothing, audit_secrets, parts_of, targets
from tests.chaos.log import Log
from tests.chaos.programs import Program
from tests.chaos.records import Records
from tests.chaos.world import Node, Thing, World

ORGANIZATION = uuid.uuid4()
CADDY = Thing("container", "deployerp-caddy", state="running")


def operation_on(resource: Server | Instance, action: str, state: str = "succeeded") -> Operation:
    kind = "server" if isinstance(resource, Server) else "instance"
    return Operation(
        organization_id=ORGANIZATION,
        resource_type=kind,
        resource_id=resource.id,
        action=action,
        state=state,
        workflow_id=f"{kind}-{action}.{resource.id}",
        resource_name=resource.name,
        resource_slug=resource.workflow_slug,
    )


def event_of(resource: Server | Instance, sequence: int, event_type: str) -> Event:
    return Event(
        organization_id=ORGANIZATION,
        sequence=sequence,
        type=event_type,
        resource_type=event_type.partition(".")[0],
        resource_id=resource.id,
        data={},
    )


def parts(instance: Instance, state: str) -> tuple[Thing, ...]:
    return tuple(
        Thing(kind, name, instance=str(instance.id), state=state if kind == "container" else "")
        for kind, name in sorted(parts_of(instance))
    )


class Right:
    """A running server with one running instance, and records that tell so."""

    def __init__(self) -> None:
        self.server = Server(
            organization_id=ORGANIZATION,
            provider_id=uuid.uuid4(),
            name="one",
            size="small",
            status="running",
            node_id="node-1",
            engine_version="20.10.24",
        )
        self.instance = Instance(
            organization_id=ORGANIZATION,
            server_id=self.server.id,
            name="acme",
            slug="acme",
            odoo_version="19.0",
            odoo_edition="community",
            environment_type="development",
            hostname="acme.localhost",
            status="running",
            sealed_env_vars="",
            sealed_database_password="",
            sealed_master_password="",
            deployed_at=utc_now(),
        )
        self.records = Records(
            servers=(self.server,),
            instances=(self.instance,),
            operations=(operation_on(self.server, "provision"), operation_on(self.instance, "deploy")),
            events=(
                event_of(self.server, 1, "server.created"),
                event_of(self.instance, 2, "instance.deployed"),
            ),
            event_sequence=2,
        )
        self.node = Node(
            "node-1",
            str(self.server.id),
            "running",
            answers_ssh=True,
            has_engine=True,
            things=(CADDY, *parts(self.instance, "running")),
            routes=frozenset({str(self.instance.id)}),
        )
        self.healthy = frozenset({str(self.instance.id)})
        self.volumes = {"node-1-docker": str(self.server.id)}

    @property
    def world(self) -> World:
        return World((self.node,), self.volumes, self.healthy)

    def change_node(self, **changes: Any) -> None:
        self.node = replace(self.node, **changes)

    def change_records(self, **changes: Any) -> None:
        self.records = replace(self.records, **changes)

    def found(self) -> list[str]:
        """The targets that are missed, once for each finding."""
        return [finding.target for finding in audit(self.records, self.world)]


@pytest.fixture
def right() -> Right:
    return Right()


def test_a_world_as_recorded_has_no_findings(right: Right) -> None:
    assert audit(right.records, right.world) == []
    assert all(target["met"] for target in targets([], {"operations": (2, 2)}).values())


@pytest.mark.parametrize(
    "strange",
    [
        Thing("container", "somebody-elses"),
        Thing("container", "deployerp-gone-postgres", instance=str(uuid.uuid4()), state="running"),
        Thing("network", "deployerp-gone", instance=str(uuid.uuid4())),
        Thing("volume", "a1b2c3"),
        Thing("container", "deployerp-prepared-1-odoo-blue", prepared="deployerp-prepared-1", state="exited"),
    ],
    ids=str,
)
def test_a_thing_that_no_record_explains_is_found(right: Right, strange: Thing) -> None:
    right.change_node(things=(*right.node.things, strange))
    (finding,) = audit(right.records, right.world)
    assert finding.target == "unexplained_things"
    assert strange.name in finding.text
    assert not targets([finding], {})["unexplained_things"]["met"]


def test_what_is_left_of_a_preparation_is_found(right: Right) -> None:
    left = Thing(
        "container",
        "deployerp-prepared-1-x",
        instance=str(right.instance.id),
        prepared="deployerp-prepared-1",
    )
    right.change_node(things=(*right.node.things, left))
    assert right.found() == ["unexplained_things"]


def test_a_prepared_database_is_explained(right: Right) -> None:
    prepared = Thing("volume", "deployerp-prepared-1-pgdata", prepared="deployerp-prepared-1")
    right.change_node(things=(*right.node.things, prepared))
    assert right.found() == []


def test_a_node_and_a_volume_of_a_deleted_server_are_found(right: Right) -> None:
    right.server.status = right.instance.status = "deleted"
    right.change_records(operations=(), events=(), event_sequence=0)
    assert right.found().count("unexplained_things") == 2 + len(right.node.things) - 1 + len(
        right.node.routes
    )


def test_a_second_node_of_a_server_is_found(right: Right) -> None:
    found = audit(right.records, World((right.node, right.node), right.volumes, right.healthy))
    assert {each.target for each in found} == {"untrue_servers"}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "exited", "has_engine": False, "answers_ssh": False},
        {"state": "paused", "has_engine": False, "answers_ssh": False},
        {"answers_ssh": False},
        {"has_engine": False},
    ],
    ids=str,
)
def test_a_running_server_that_does_not_run_is_found(right: Right, change: dict[str, Any]) -> None:
    right.change_node(**change)
    assert right.found() == ["untrue_servers"]


def test_a_stopped_server_whose_node_runs_is_found(right: Right) -> None:
    right.server.status = right.instance.status = "stopped"
    right.change_node(things=(CADDY, *parts(right.instance, "exited")))
    assert right.found() == ["untrue_servers"]


@pytest.mark.parametrize(("status", "found"), [("running", ["untrue_instances"]), ("stopped", [])])
def test_an_instance_is_stopped_with_its_server(right: Right, status: str, found: list[str]) -> None:
    right.server.status, right.instance.status = "stopped", status
    right.change_node(state="exited", has_engine=False, answers_ssh=False, things=(), routes=frozenset())
    # The server's operation has stopped it.
    right.change_records(
        events=(*right.records.events, event_of(right.instance, 3, "instance.stopped")), event_sequence=3
    )
    assert right.found() == found


def test_a_failed_server_needs_an_operation_that_failed(right: Right) -> None:
    right.server.status = "failed"
    assert right.found() == ["untrue_servers"]
    right.change_records(
        operations=(*right.records.operations, operation_on(right.server, "restart", "failed"))
    )
    assert right.found() == []


def test_a_failed_provision_that_left_a_node_is_found(right: Right) -> None:
    right.server.status, right.server.engine_version, right.instance.status = "failed", None, "deleted"
    right.change_node(things=(CADDY,), routes=frozenset())
    right.change_records(
        instances=(),
        operations=(operation_on(right.server, "provision", "failed"),),
        events=(),
        event_sequence=0,
    )
    assert right.found() == ["untrue_servers"]


def test_a_status_of_passage_without_an_operation_is_found(right: Right) -> None:
    right.instance.status = "restarting"
    assert right.found() == ["untrue_instances"]


def test_a_running_instance_that_does_not_answer_is_found(right: Right) -> None:
    right.healthy = frozenset()
    assert right.found() == ["untrue_instances"]


def test_a_running_instance_whose_containers_are_stopped_is_found(right: Right) -> None:
    right.change_node(things=(CADDY, *parts(right.instance, "exited")))
    assert right.found() == ["untrue_instances"]


def test_a_stopped_instance_whose_containers_run_is_found(right: Right) -> None:
    right.instance.status = "stopped"
    assert right.found() == ["untrue_instances"]


def test_an_instance_that_lacks_a_part_is_found(right: Right) -> None:
    right.change_node(things=(CADDY, *parts(right.instance, "running")[:-1]))
    assert right.found() == ["untrue_instances"]


def test_a_failed_deploy_that_left_something_is_found(right: Right) -> None:
    right.instance.status, right.instance.deployed_at = "failed", None
    right.change_node(routes=frozenset())
    failed = (right.records.operations[0], operation_on(right.instance, "deploy", "failed"))
    right.change_records(operations=failed, events=right.records.events[:1], event_sequence=1)
    assert right.found() == ["untrue_instances"]


def test_a_route_of_nobody_is_found(right: Right) -> None:
    right.change_node(routes=right.node.routes | {str(uuid.uuid4())})
    assert right.found() == ["unexplained_things"]


def test_an_open_operation_is_found_and_explains_its_workflow(right: Right) -> None:
    operation = operation_on(right.server, "restart", "running")
    right.change_records(
        operations=(*right.records.operations, operation),
        open_workflows={str(operation.workflow_id): "RestartServer", "other": "StopServer"},
    )
    assert sorted(right.found()) == ["open_operations", "unexplained_workflows"]


def test_a_running_step_of_a_closed_operation_is_found(right: Right) -> None:
    step = OperationStep(
        operation_id=right.records.operations[0].id, position=1, name="create_node", started_at=utc_now()
    )
    right.change_records(running_steps=(step,))
    assert right.found() == ["running_steps"]


def test_locks_are_found(right: Right) -> None:
    right.change_node(held_locks=("/run/deployerp-images.lock",))
    right.change_records(advisory_locks=1, stuck_transactions=1, stray_holds=1)
    assert right.found() == ["held_locks"] * 4


def test_a_gap_in_the_events_is_found(right: Right) -> None:
    right.change_records(event_sequence=3)
    assert right.found() == ["event_gaps"]


def test_an_event_that_is_missing_or_untrue_is_found(right: Right) -> None:
    deleted = event_of(right.instance, 2, "instance.deleted")
    right.change_records(events=(right.records.events[0], deleted))
    assert right.found() == ["untrue_events"] * 2


def test_what_was_not_delivered_is_found(right: Right) -> None:
    right.change_records(undelivered=1)
    assert right.found() == ["undelivered_events"]


def test_what_is_left_after_the_deletion_is_found(right: Right) -> None:
    assert len(audit_nothing(right.records, right.world)) == 4
    right.server.status = right.instance.status = "deleted"
    assert audit_nothing(right.records, World()) == []


def test_a_secret_is_found_and_not_told() -> None:
    (finding,) = audit_secrets({"token": "hush-hush"}, {"api.log": "... hush-hush ...", "worker.log": ""})
    assert "token" in finding.text
    assert "hush-hush" not in finding.text


def test_the_result_of_seeds_is_ok_only_where_all_are() -> None:
    good = {"ok": True, "seed": 1, "targets": {"held_locks": {"goal": 0, "value": 0, "met": True}}}
    bad = {"ok": False, "seed": 2, "targets": {"held_locks": {"goal": 0, "value": 2, "met": False}}}
    assert together([good])["ok"]
    assert together([good, bad]) == {
        "chaos": "small",
        "ok": False,
        "seed": [1, 2],
        "targets": {"held_locks": {"goal": 0, "value": 2, "met": False}},
    }
    assert not together([])["ok"]


async def test_a_program_is_killed_frozen_and_revived(tmp_path: Path) -> None:
    program = Program("sleep", ("sleep", "60"), tmp_path / "log")
    await program.start()
    assert program.process is not None
    program.freeze()
    await program.revive()
    await program.kill()
    await program.revive()
    assert program.died == []
    # Somebody else ends it: that is what must be noticed.
    assert program.process is not None
    program.process.terminate()
    await program.process.wait()
    await program.revive()
    assert program.died == [-15]
    await program.stop()


def test_the_log_has_a_line_for_each_entry(tmp_path: Path) -> None:
    log = Log(tmp_path / "chaos.log")
    log.write("fault", target="worker", kind="kill")
    assert '"target": "worker"' in log.path.read_text()
