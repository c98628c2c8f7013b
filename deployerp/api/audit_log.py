"""The audit log: who has changed what."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from deployerp.api.contract.lists import Text
from deployerp.api.contract.request_ids import SANE_ID
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route
from deployerp.api.contract.schemas import View
from deployerp.core.fields import ActorId, CreatedAt, Id, OperationId, Pattern, RequestId, ResourceId
from deployerp.domain.audit.log import ActorType, AuditEntry

router = APIRouter(prefix="/v1/audit-log", tags=["audit log"], route_class=Route)


class AuditEntryRead(View):
    id: Id
    sequence: int = Field(description="Number of the entry in the organization, from 1.", examples=[42])
    created_at: CreatedAt
    actor_type: ActorType = Field(description="Type of who made the change.", examples=["api_key"])
    actor_id: ActorId | None = Field(
        description="ID of the user or API key; null for `system`.",
        examples=["01932a7c-1111-7c3a-9b2d-5e6f7a8b9c0d"],
    )
    action: str = Field(description="`operationId` of the request.", examples=["create_instance"])
    resource_type: str = Field(description="Type of the changed resource.", examples=["instance"])
    resource_id: ResourceId | None = Field(
        description="ID of the changed resource; null if there is none.",
        examples=["01932a7c-8f4e-7c3a-9b2d-5e6f7a8b9c0d"],
    )
    operation_id: OperationId | None = Field(
        description="ID of the operation that the change started or ended; null if there is none.",
        examples=["01932a7c-8f4e-7c3a-9b2d-000000000005"],
    )
    address: str | None = Field(
        description="IP address of the client; null if it is not known.", examples=["203.0.113.7"]
    )
    request_id: RequestId
    before: dict[str, Any] | None = Field(
        description="Values before the change, without secrets; null for a new resource.", examples=[None]
    )
    after: dict[str, Any] | None = Field(
        description="Values after the change, without secrets; null for a deleted row.",
        examples=[{"name": "Acme", "status": "pending"}],
    )
    previous_hash: str = Field(
        description="Hash of the previous entry, in hexadecimal.",
        examples=["5feceb66ffc86f38d952786c6d696c79"],
    )
    hash: str = Field(
        description="Hash of the entry and of `previousHash`, in hexadecimal.",
        examples=["6b86b273ff34fce19d6b804eff5a3f57"],
    )


serve(
    router,
    AuditEntry,
    AuditEntryRead,
    filters={
        "actor_id": UUID,
        "action": Text,
        "resource_type": Text,
        "resource_id": UUID,
        "operation_id": UUID,
        "request_id": Annotated[
            str, Pattern(f"^{SANE_ID}$", "must be 8 to 128 letters, digits and . _ -, as X-Request-Id has it")
        ],
    },
)
