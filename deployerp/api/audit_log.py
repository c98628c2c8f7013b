"""The audit log: who has changed what."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter

from deployerp.api.contract.lists import Text
from deployerp.api.contract.request_ids import SANE_ID
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route
from deployerp.api.contract.schemas import View
from deployerp.core.fields import Pattern
from deployerp.domain.audit.log import ActorType, AuditEntry

router = APIRouter(prefix="/v1/audit-log", tags=["audit log"], route_class=Route)


class AuditEntryRead(View):
    id: UUID
    sequence: int
    created_at: datetime
    actor_type: ActorType
    actor_id: UUID | None
    action: str
    resource_type: str
    resource_id: UUID | None
    operation_id: UUID | None
    address: str | None
    request_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    previous_hash: str
    hash: str


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
