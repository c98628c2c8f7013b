"""Temporal as the rest of the control plane sees it: start, look at, cancel, and what an operator finds.

Workflows are named, not imported, so that the API can start them without loading what they do.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import structlog
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
)
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from deployerp.core.errors import Unavailable
from deployerp.core.settings import Settings
from deployerp.domain.operations.messages import EndpointOrder, OperationOrder, queue_for
from deployerp.domain.operations.stateful import action_of
from deployerp.domain.periodic import shards

ORGANIZATION = SearchAttributeKey.for_keyword("DeployerpOrganization")
RESOURCE = SearchAttributeKey.for_keyword("DeployerpResource")
KIND = SearchAttributeKey.for_keyword("DeployerpKind")
NAME = SearchAttributeKey.for_keyword("DeployerpName")
SLUG = SearchAttributeKey.for_keyword("DeployerpSlug")
SEARCH_ATTRIBUTES = (ORGANIZATION, RESOURCE, KIND, NAME, SLUG)

# Long enough for a busy server, short enough that a request does not hang when there is none.
_CALL = timedelta(seconds=3)
# A call's own limit does not count the first connection, and a server that hangs accepts one.
_CONNECT_AND_CALL = _CALL.total_seconds() + 0.5

RunState = Literal["running", "ended", "absent"]
T = TypeVar("T")
log = structlog.get_logger()


class Temporal:
    """A connection that is made when it is first needed and survives the server's absence."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self.client = client
        self._task_queue = task_queue

    @classmethod
    async def open(cls, settings: Settings, *, lazy: bool = True) -> "Temporal":
        key = settings.temporal_api_key
        client = await Client.connect(
            settings.temporal_address,
            namespace=settings.temporal_namespace,
            api_key=key.get_secret_value() if key else None,
            tls=_tls_of(settings),
            lazy=lazy,
        )
        return cls(client, settings.temporal_task_queue)

    async def start_operation(self, order: OperationOrder) -> None:
        """Starts the workflow of an operation; one that has been started before is left alone.

        Raises `Unavailable` when Temporal does not answer.
        """
        kind = f"{order.resource_type}.{order.action}"
        called = order.resource_slug or order.resource_id
        names = {"name": order.resource_name, "slug": order.resource_slug}
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await self._call(
                lambda: self.client.start_workflow(
                    action_of(order.resource_type, order.action).workflow,
                    order,
                    id=order.workflow_id,
                    task_queue=self._task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    search_attributes=_found_by(order.organization_id, order.resource_id, kind, **names),
                    memo=names,
                    static_summary=f"{order.action.capitalize()} {order.resource_type} {called}",
                    rpc_timeout=_CALL,
                )
            )

    async def offer_operation(self, order: OperationOrder) -> None:
        """Starts an operation if Temporal is there; if it is not, the next sweep does."""
        await self._offer(order.workflow_id, self.start_operation(order))

    async def wake_endpoints(self, orders: Sequence[EndpointOrder]) -> None:
        """Lets endpoints send what is due, if Temporal is there; if it is not, the next sweep does."""
        for order in orders:
            await self._offer(order.workflow_id, self.wake_endpoint(order))

    async def offer_change(self, order: EndpointOrder) -> None:
        """Tells an endpoint that it was changed, if Temporal is there; if it is not, the next sweep does."""
        await self._offer(order.workflow_id, self.wake_endpoint(order, changed=True))

    async def wake_endpoint(self, order: EndpointOrder, *, changed: bool = False) -> None:
        """Starts the endpoint's workflow, or tells the one that runs to look again.

        One that leaves its receiver alone looks only if the endpoint was `changed`. Raises `Unavailable` when
        Temporal does not answer.
        """
        # What it failed before the change says nothing of it as it is now.
        order = replace(order, failing=order.failing and not changed)
        await self._call(
            lambda: self.client.start_workflow(
                "DeliverWebhooks",
                args=(order, 0, None),
                id=order.workflow_id,
                task_queue=webhook_task_queue(self._task_queue, failing=order.failing),
                start_signal="changed" if changed else "wake",
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                search_attributes=_found_by(order.organization_id, order.endpoint_id, "webhook.deliver"),
                static_summary=f"Deliver to endpoint {order.endpoint_id}",
                rpc_timeout=_CALL,
            )
        )

    async def _offer(self, workflow_id: str, start: Awaitable[None]) -> None:
        try:
            await start
        except Unavailable as error:
            log.warning("left for the sweep", workflow_id=workflow_id, reason=error.message)

    async def run_state(self, workflow_id: str) -> RunState:
        """Whether a workflow runs, has ended in whatever way, or is unknown to Temporal."""
        try:
            description = await self._call(
                lambda: self.client.get_workflow_handle(workflow_id).describe(rpc_timeout=_CALL)
            )
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return "absent"
            raise
        return "running" if description.status == WorkflowExecutionStatus.RUNNING else "ended"

    async def cancel(self, workflow_id: str) -> None:
        """Asks a workflow to stop and undo; one that has ended or never started is left alone."""
        await self._quietly(lambda: self.client.get_workflow_handle(workflow_id).cancel(rpc_timeout=_CALL))

    async def terminate(self, workflow_id: str, reason: str) -> None:
        """Stops a workflow at once, without its undoing."""
        await self._quietly(
            lambda: self.client.get_workflow_handle(workflow_id).terminate(reason=reason, rpc_timeout=_CALL)
        )

    async def _quietly(self, call: Callable[[], Awaitable[T]]) -> None:
        try:
            await self._call(call)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(_CONNECT_AND_CALL):
                return await call()
        except RPCError as error:
            if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.ALREADY_EXISTS):
                raise
            raise Unavailable(
                "Temporal does not answer: work that was accepted starts when it is back.",
                details={"status": error.status.name},
            ) from error
        except TimeoutError as error:
            raise Unavailable(
                "Temporal accepts connections and says nothing: work that was accepted starts when it does."
            ) from error
        except RuntimeError as error:
            # A lazy client's first connection fails with this, not with an RPCError.
            raise Unavailable("Temporal cannot be reached: check DEPLOYERP_TEMPORAL_ADDRESS.") from error

    async def is_ready(self) -> bool:
        try:
            return await self._call(lambda: self.client.service_client.check_health(timeout=_CALL))
        except (Unavailable, RPCError):
            return False

    async def ensure_search_attributes(self) -> None:
        """Registers what operators filter by; needed once per namespace."""
        operator = self.client.operator_service
        known = await operator.list_search_attributes(
            ListSearchAttributesRequest(namespace=self.client.namespace)
        )
        missing = {
            key.name: IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
            for key in SEARCH_ATTRIBUTES
            if key.name not in known.custom_attributes
        }
        if missing:
            await operator.add_search_attributes(
                AddSearchAttributesRequest(namespace=self.client.namespace, search_attributes=missing)
            )

    async def ensure_periodic_work(self) -> None:
        """Starts the workflow of each shard of the periodic work, unless it runs."""
        for shard in shards():
            await self.client.start_workflow(
                "KeepWorking",
                shard,
                id=f"{self._task_queue}-{shard}",
                task_queue=self._task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary=f"Periodic work: {shard.work}",
            )


def _tls_of(settings: Settings) -> TLSConfig | bool:
    """How the connection is encrypted. Raises OSError for a file that cannot be read."""
    config = TLSConfig(
        server_root_ca_cert=_read(settings.temporal_tls_ca_file),
        client_cert=_read(settings.temporal_tls_certificate_file),
        client_private_key=_read(settings.temporal_tls_key_file),
        domain=settings.temporal_tls_server_name,
    )
    return config if config != TLSConfig() else settings.temporal_tls or bool(settings.temporal_api_key)


def _read(file: Path | None) -> bytes | None:
    return file.read_bytes() if file else None


def webhook_task_queue(task_queue: str, *, failing: bool = False) -> str:
    """Where deliveries run: receivers that are slow must not keep the steps of operations waiting."""
    return queue_for(f"{task_queue}-webhooks", failing=failing)


def _found_by(
    organization: str, resource: str, kind: str, *, name: str = "", slug: str = ""
) -> TypedSearchAttributes:
    """What an operator finds a workflow by."""
    values = {ORGANIZATION: organization, RESOURCE: resource, KIND: kind, NAME: name, SLUG: slug}
    return TypedSearchAttributes([SearchAttributePair(key, value) for key, value in values.items() if value])
