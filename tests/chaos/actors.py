"""What a customer orders: every kind of operation, whatever is broken at the moment."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from deployerp.domain.operations.lifecycles import OPEN_OPERATION_STATES, RETRYABLE_OPERATION_STATES
from tests.chaos.log import Log
from tests.conftest import Client

SECRET_VARIABLE = "not-for-anybody-else-5b20c7"
_FEWEST_SERVERS, _MOST_SERVERS, _MOST_INSTANCES = 2, 4, 6
_PAUSE_SECONDS = (2.0, 12.0)
# Of orders that do not suit the resource's state: they must be refused.
_SHARE_OF_MISTAKES = 0.05
# Odoo takes half a minute of a core to fill the first database of a server.
_DEPLOYS_AT_ONCE = 2
_DRAWS = 20
_ACTIONS = ("start", "stop", "restart")

Resource = dict[str, Any]


@dataclass
class Seen:
    """What the API has shown last."""

    servers: list[Resource] = field(default_factory=list)
    instances: list[Resource] = field(default_factory=list)
    operations: list[Resource] = field(default_factory=list)

    def open_operations(self) -> list[Resource]:
        return [each for each in self.operations if each["state"] in OPEN_OPERATION_STATES]

    def in_state(self, resources: Sequence[Resource], *states: str) -> list[Resource]:
        return [each for each in resources if each["status"] in states]


@dataclass(frozen=True)
class Order:
    """A request that begins an operation, or cancels one."""

    kind: str
    method: str
    path: str
    body: object = None


class Customer:
    """Orders one thing after the other, by chance among what there is to order."""

    def __init__(self, client: Client, seed: int, log: Log) -> None:
        self._client = client
        self._random = random.Random(f"orders {seed}")
        self._log = log
        self._made = 0
        self.provider_id = ""
        self.seen = Seen()
        self.done: Counter[str] = Counter()
        """Operations that were accepted, by kind."""
        self.cancelled: Counter[str] = Counter()
        """Operations whose cancellation was accepted, by their action."""
        self.refused: Counter[str] = Counter()
        """Orders that were not, by why."""

    async def order(self, operations: int) -> None:
        """Until so many operations were accepted."""
        while sum(self.done.values()) < operations:
            await asyncio.sleep(self._random.uniform(*_PAUSE_SECONDS))
            await self._look()
            # What nothing suits at the moment is drawn again.
            drawn = (self._choose() for _ in range(_DRAWS))
            order = next(filter(None, drawn), None)
            if order is not None:
                await self.place(order)

    async def place(self, order: Order) -> str | None:
        """The id of the operation; None where the order was refused or its answer was lost."""
        try:
            answer = await self._client.request(order.method, order.path, order.body)
        except httpx.TransportError as error:
            # It may have been carried out: what is listed next tells.
            self.refused[type(error).__name__] += 1
            self._log.write("lost", order=order.kind, path=order.path, why=type(error).__name__)
            return None
        body = answer.json()
        if answer.status_code != 202:
            code = body["error"]["code"]
            self.refused[code] += 1
            self._log.write(
                "refused", order=order.kind, path=order.path, code=code, message=body["error"]["message"]
            )
            if answer.status_code not in (404, 409, 503):
                self._log.say(f"{order.kind} was answered with {answer.status_code} {code}")
            return None
        operation = body["data"].get("operation") or body["data"]
        self._log.write(
            "ordered",
            order=order.kind,
            path=order.path,
            operation=operation["id"],
            resource=operation["resourceId"],
        )
        if order.kind == "cancel":
            self.cancelled[operation["action"]] += 1
        else:
            self.done[order.kind] += 1
        return str(operation["id"])

    async def _look(self) -> None:
        try:
            self.seen = Seen(
                await self._list("/v1/servers?per_page=100"),
                await self._list("/v1/instances?per_page=100"),
                await self._list("/v1/operations?per_page=100&sort=created_at&order=desc"),
            )
        except (httpx.TransportError, AssertionError) as error:
            # The API is away: people go on with what they saw last.
            self._log.write("not seen", why=f"{type(error).__name__} {error}"[:300])

    async def _list(self, path: str) -> list[Resource]:
        found: Any = await self._client.data("GET", path)
        return list(found)

    def _choose(self) -> Order | None:
        kinds: dict[Callable[[], Order | None], float] = {
            self._provision: 8.0 if len(self.seen.servers) < _FEWEST_SERVERS else 1.5,
            self._deploy: 7.0,
            self._act_on_instance: 7.0,
            self._act_on_server: 1.5,
            self._delete_instance: 1.0,
            self._delete_server: 0.4,
            self._cancel: 0.4,
            self._retry: 4.0,
        }
        return self._random.choices(list(kinds), list(kinds.values()))[0]()

    def _provision(self) -> Order | None:
        if len(self.seen.servers) >= _MOST_SERVERS:
            return None
        self._made += 1
        body = {"name": f"chaos-{self._made}", "providerId": self.provider_id, "size": "large"}
        return Order("provision server", "POST", "/v1/servers", body)

    def _deploy(self) -> Order | None:
        server = self._one_of(self.seen.in_state(self.seen.servers, "running"))
        under_way = [each for each in self.seen.open_operations() if each["action"] == "deploy"]
        if (
            server is None
            or len(self.seen.instances) >= _MOST_INSTANCES
            or len(under_way) >= _DEPLOYS_AT_ONCE
        ):
            return None
        self._made += 1
        slug = f"chaos-{self._made}"
        body = {
            "name": slug,
            "slug": slug,
            "serverId": server["id"],
            "odooVersion": "19.0",
            "environmentType": "development",
            "envVars": {"CHAOS_SECRET": {"value": SECRET_VARIABLE, "secret": True}},
        }
        return Order("deploy instance", "POST", "/v1/instances", body)

    def _act_on_instance(self) -> Order | None:
        return self._act("instance", self._one_of(self.seen.instances))

    def _act_on_server(self) -> Order | None:
        return self._act("server", self._one_of(self.seen.servers))

    def _act(self, kind: str, resource: Resource | None) -> Order | None:
        action = self._random.choice(_ACTIONS)
        is_mistake = self._random.random() < _SHARE_OF_MISTAKES
        if resource is None:
            return None
        fitting = {"running": ("stop", "restart"), "stopped": ("start",), "failed": ("restart",)}.get(
            resource["status"], ()
        )
        if action not in fitting and not is_mistake:
            if not fitting:
                return None
            action = fitting[0]
        return Order(f"{action} {kind}", "POST", f"/v1/{kind}s/{resource['id']}/actions", {"action": action})

    def _delete_instance(self) -> Order | None:
        return self._delete("instance", self._one_of(self.seen.instances))

    def _delete_server(self) -> Order | None:
        return self._delete("server", self._one_of(self.seen.servers))

    def _delete(self, kind: str, resource: Resource | None) -> Order | None:
        force = self._random.random() < 0.5
        if resource is None:
            return None
        order, query = (f"delete {kind} by force", "?force=true") if force else (f"delete {kind}", "")
        return Order(order, "DELETE", f"/v1/{kind}s/{resource['id']}{query}")

    def _cancel(self) -> Order | None:
        operation = self._one_of(self.seen.open_operations())
        return Order("cancel", "POST", f"/v1/operations/{operation['id']}/cancel") if operation else None

    def _retry(self) -> Order | None:
        there = {each["id"] for each in (*self.seen.servers, *self.seen.instances)}
        ended: dict[str, Resource] = {}
        for operation in sorted(self.seen.operations, key=lambda each: each["createdAt"]):
            ended[operation["resourceId"]] = operation
        can = [
            each
            for key, each in ended.items()
            if key in there and each["state"] in RETRYABLE_OPERATION_STATES
        ]
        operation = self._one_of(can)
        return Order("retry", "POST", f"/v1/operations/{operation['id']}/retry") if operation else None

    def _one_of(self, resources: Sequence[Resource]) -> Resource | None:
        # One draw in any case.
        chosen = self._random.random()
        return resources[int(chosen * len(resources))] if resources else None
