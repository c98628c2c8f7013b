"""Compares what the records say with what there is; every difference is a finding."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deployerp.domain.instances import Instance
from deployerp.domain.operations.lifecycles import DELETED, FAILED
from deployerp.domain.operations.operation import Operation
from deployerp.domain.operations.stateful import action_of
from deployerp.domain.servers import Server
from tests.chaos.records import Records
from tests.chaos.world import Node, Thing, World

# What a server's engine holds beside instances and prepared databases.
_OF_SERVER = {
    ("container", "deployerp-caddy"),
    ("network", "deployerp-caddy"),
    ("volume", "deployerp-caddy-data"),
    ("volume", "deployerp-caddy-config"),
}
# What becomes of instances with their server has no operation of its own.
_ALSO_WITH_THE_SERVER = ("instance.stopped", "instance.started")
# What an undo leaves that cannot be done: the operation's message then says so.
_NOT_UNDONE = "failed too"
TARGETS = (
    "open_operations",
    "running_steps",
    "untrue_servers",
    "untrue_instances",
    "unexplained_things",
    "held_locks",
    "unexplained_workflows",
    "event_gaps",
    "untrue_events",
    "undelivered_events",
    "audit_log",
)


@dataclass(frozen=True)
class Finding:
    target: str
    text: str


def audit(records: Records, world: World) -> list[Finding]:
    """After everything was mended and has settled."""
    return [
        *_operations(records),
        *_servers(records, world),
        *_instances(records, world),
        *_things(records, world),
        *_locks(records, world),
        *_events(records),
    ]


def audit_nothing(records: Records, world: World) -> list[Finding]:
    """After everything was deleted."""
    left: list[object] = [
        *(f"node {node.name}" for node in world.nodes),
        *(f"volume {name}" for name in world.volumes),
    ]
    left += [
        f"{named(each)}, which is {each.status}"
        for each in (*records.servers, *records.instances)
        if each.status != DELETED
    ]
    return [Finding("left_after_deletion", str(each)) for each in left]


def named(resource: Server | Instance) -> str:
    return f"{type(resource).__name__.lower()} {resource.name} ({resource.id})"


def told(operation: Operation | None) -> str:
    if operation is None:
        return "no operation"
    return f"{operation.action} {operation.id}, {operation.state}: {(operation.error_message or '')[:200]}"


def _operations(records: Records) -> Iterator[Finding]:
    still_open = {operation.id: operation for operation in records.open_operations}
    for operation in still_open.values():
        yield Finding("open_operations", f"{operation.resource_name}: {told(operation)}")
    for step in records.running_steps:
        if step.operation_id not in still_open:
            yield Finding("running_steps", f"{step.name} of the closed operation {step.operation_id}")
    explained = {operation.order.workflow_id for operation in still_open.values()}
    for workflow_id, kind in records.open_workflows.items():
        if workflow_id not in explained:
            yield Finding("unexplained_workflows", f"{kind} {workflow_id}")


def _servers(records: Records, world: World) -> Iterator[Finding]:
    for server in records.servers:
        last = records.last_operation(server.id)
        nodes = [node for node in world.nodes if node.server_id == str(server.id)]
        for lie in _lies_of_server(server, nodes, last):
            yield Finding("untrue_servers", f"{named(server)} is {server.status}: {lie}; last {told(last)}")


def _lies_of_server(server: Server, nodes: list[Node], last: Operation | None) -> Iterator[str]:
    if server.status in ("running", "stopped") and len(nodes) != 1:
        yield f"it has {len(nodes)} nodes"
    elif server.status == "running":
        yield from _defects(nodes[0])
    elif server.status == "stopped" and nodes[0].state != "exited":
        yield f"its node is {nodes[0].state}"
    elif server.status in (FAILED, "unreachable"):
        if not _explains(last):
            yield "no operation explains it"
        if nodes and not server.has_run and _NOT_UNDONE not in (server.status_message or ""):
            yield "it never ran and has a node"
    elif _is_passing(server):
        yield "no operation is under way"


def _defects(node: Node) -> Iterator[str]:
    if node.state != "running":
        yield f"its node is {node.state}"
    elif not node.answers_ssh:
        yield "its node does not answer over SSH"
    elif not node.has_engine:
        yield "its engine does not answer"
    elif not any(thing.name == "deployerp-caddy" and thing.state == "running" for thing in node.things):
        yield "its proxy does not run"


def _instances(records: Records, world: World) -> Iterator[Finding]:
    servers = {server.id: server for server in records.servers}
    nodes = {node.server_id: node for node in world.nodes}
    for instance in records.instances:
        last, server = records.last_operation(instance.id), servers[instance.server_id]
        node = nodes.get(str(server.id))
        for lie in _lies_of_instance(instance, server, node, last, str(instance.id) in world.healthy):
            yield Finding(
                "untrue_instances", f"{named(instance)} is {instance.status}: {lie}; last {told(last)}"
            )


def _lies_of_instance(
    instance: Instance, server: Server, node: Node | None, last: Operation | None, healthy: bool
) -> Iterator[str]:
    if instance.status == DELETED:
        return
    if server.status == DELETED:
        yield "its server is deleted"
    if _is_passing(instance):
        yield "no operation is under way"
    if instance.status == FAILED and not _explains(last):
        yield "no operation explains it"
    if server.status == "stopped" and instance.status == "running":
        yield "its server is stopped"
    if server.status != "running" or node is None or not node.has_engine:
        # What is in a machine that does not run is not seen.
        return
    own = [thing for thing in node.things if thing.instance == str(instance.id)]
    if instance.status in ("running", "stopped"):
        yield from _defects_of_parts(instance, own, node, healthy)
    elif not instance.has_run and own and _NOT_UNDONE not in (instance.status_message or ""):
        yield f"it was never deployed and has {', '.join(map(str, own))}"


def _defects_of_parts(instance: Instance, own: list[Thing], node: Node, healthy: bool) -> Iterator[str]:
    parts = parts_of(instance)
    # What is more than these is found among the unexplained things.
    own = [thing for thing in own if (thing.kind, thing.name) in parts]
    missing = parts - {(thing.kind, thing.name) for thing in own}
    if missing:
        yield f"it lacks {', '.join(' '.join(each) for each in sorted(missing))}"
    runs = [thing.state == "running" for thing in own if thing.kind == "container"]
    if instance.status == "stopped":
        if any(runs):
            yield "a container of it runs"
        return
    if not all(runs):
        yield f"its containers are {', '.join(thing.state for thing in own if thing.kind == 'container')}"
    elif str(instance.id) not in node.routes:
        yield "the proxy has no route to it"
    elif not healthy:
        yield "it does not answer through the proxy"


def parts_of(instance: Instance) -> set[tuple[str, str]]:
    """Kind and name of all that a deployed instance consists of."""
    prefix = f"deployerp-{instance.id}"
    return {
        ("container", f"{prefix}-postgres"),
        ("container", f"{prefix}-odoo-blue"),
        ("network", prefix),
        ("volume", f"{prefix}-pgdata"),
        ("volume", f"{prefix}-filestore"),
    }


def _things(records: Records, world: World) -> Iterator[Finding]:
    """What belongs to no record that is there, or is more than its record explains."""
    servers = {str(each.id) for each in records.servers if each.status != DELETED}
    instances = {str(each.id): each for each in records.instances if each.status != DELETED}
    for node in world.nodes:
        if node.server_id not in servers:
            yield Finding("unexplained_things", f"node {node.name} of server {node.server_id}")
        for thing in node.things:
            if not _is_explained(thing, node, instances):
                yield Finding("unexplained_things", f"{thing} on {node.name}")
        for route in node.routes - {key for key, each in instances.items() if each.has_run}:
            yield Finding("unexplained_things", f"route {route} on {node.name}")
    for name, server_id in world.volumes.items():
        if server_id not in servers:
            yield Finding("unexplained_things", f"volume {name} of server {server_id}")


def _is_explained(thing: Thing, node: Node, instances: Mapping[str, Instance]) -> bool:
    if not thing.instance:
        prepared = thing.kind == "volume" and bool(thing.prepared)
        return prepared or (thing.kind, thing.name) in _OF_SERVER
    instance = instances.get(thing.instance)
    if instance is None or str(instance.server_id) != node.server_id:
        return False
    # Of one that failed any part may be there; `_instances` looks at those that were never deployed.
    return instance.status == FAILED or (thing.kind, thing.name) in parts_of(instance)


def _locks(records: Records, world: World) -> Iterator[Finding]:
    if records.advisory_locks:
        yield Finding("held_locks", f"{records.advisory_locks} advisory locks of the database")
    if records.stray_holds:
        yield Finding("held_locks", f"{records.stray_holds} holds of operations that are closed")
    if records.stuck_transactions:
        yield Finding("held_locks", f"{records.stuck_transactions} transactions are idle")
    for node in world.nodes:
        for lock in node.held_locks:
            yield Finding("held_locks", f"{lock} on {node.name}")


def _events(records: Records) -> Iterator[Finding]:
    sequence = [event.sequence for event in records.events]
    if sequence != list(range(1, records.event_sequence + 1)):
        yield Finding(
            "event_gaps", f"they are {sequence}, and the last is said to be {records.event_sequence}"
        )
    if records.undelivered:
        yield Finding("undelivered_events", f"{records.undelivered} deliveries did not succeed")
    if records.audit_log:
        yield Finding("audit_log", records.audit_log)
    written = Counter((event.resource_id, event.type) for event in records.events)
    done = Counter(
        (each.resource_id, action_of(each.resource_type, each.action).event)
        for each in records.operations
        if each.state == "succeeded"
    )
    for resource in (*records.servers, *records.instances):
        for action in resource.lifecycle.actions.values():
            count, expected = written[resource.id, action.event], done[resource.id, action.event]
            if action.end == DELETED:
                # Also without an operation of its own, with its server.
                expected = int(resource.status == DELETED)
            if action.event in _ALSO_WITH_THE_SERVER:
                expected = max(count, expected)
            # An operation that ended after its resource was deleted tells of nothing.
            is_right = count == expected or (
                resource.status == DELETED and action.end != DELETED and count < expected
            )
            if not is_right:
                yield Finding(
                    "untrue_events", f"{named(resource)}: {count} times {action.event}, and not {expected}"
                )


def _explains(last: Operation | None) -> bool:
    """Whether a state that nobody wants is what this operation has left."""
    return last is not None and last.state in ("failed", "cancelled")


def _is_passing(resource: Server | Instance) -> bool:
    """Whether its status is one that only an operation under way has."""
    return resource.status not in ("running", "stopped", FAILED, "unreachable", DELETED)


def audit_secrets(secrets: Mapping[str, str], texts: Mapping[str, str]) -> list[Finding]:
    """Names what each text tells; never the secret."""
    return [
        Finding("secrets_told", f"{where} tells {name}")
        for where, text in texts.items()
        for name, secret in secrets.items()
        if secret in text
    ]


def targets(findings: Iterable[Finding], goals: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """No finding of any kind; and of each of the `goals`, which are pairs, at least the first number."""
    counted = Counter(finding.target for finding in findings)
    names = (*TARGETS, "secrets_told", "programs_died", "left_after_deletion")
    none = {name: {"goal": 0, "value": counted[name], "met": counted[name] == 0} for name in names}
    return none | {
        name: {"goal": goal, "value": value, "met": value >= goal} for name, (goal, value) in goals.items()
    }
