"""How deliveries reach the workflow that carries them out: one workflow per endpoint, awake or asleep.

An awake one looks for due deliveries by itself; one that sleeps must be woken. No delivery is overlooked in
between: to wake takes a share of the endpoint's row until the deliveries are committed, and to fall asleep
takes that row for itself and then looks a last time. What a crash loses between commit and wake-up, the
sweep makes good.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.domain.operations.messages import EndpointOrder
from deployerp.domain.webhooks.deliveries import WebhookDelivery
from deployerp.domain.webhooks.endpoints import WebhookEndpoint


async def wake(session: AsyncSession, endpoint_ids: Sequence[UUID]) -> list[EndpointOrder]:
    """Marks endpoints as awake, after their deliveries were flushed; returns those that slept.

    Their workflows are to be woken once the transaction is committed.
    """
    # A statement of its own: only the next one sees what somebody who had the row has made of it.
    await session.execute(
        select(col(WebhookEndpoint.id))
        .where(col(WebhookEndpoint.id).in_(endpoint_ids))
        .order_by(col(WebhookEndpoint.id))
        .with_for_update(read=True, key_share=True)
    )
    slept = await session.execute(
        update(WebhookEndpoint)
        .where(col(WebhookEndpoint.id).in_(endpoint_ids), col(WebhookEndpoint.awake).is_(False))
        # To be woken is no change that anybody who reads the endpoint would see.
        .values(awake=True, updated_at=col(WebhookEndpoint.updated_at))
        .returning(
            col(WebhookEndpoint.id), col(WebhookEndpoint.organization_id), col(WebhookEndpoint.failing_since)
        )
        .execution_options(synchronize_session=False)
    )
    return [
        EndpointOrder(str(endpoint), str(organization), failing=failing_since is not None)
        for endpoint, organization, failing_since in slept
    ]


async def fall_asleep(session: AsyncSession, endpoint_id: UUID, now: datetime) -> timedelta | None:
    """Marks an endpoint as asleep, unless something is due; returns how long until something is.

    Zero says that it is still awake, None that nothing waits.
    """
    await session.execute(
        select(col(WebhookEndpoint.id)).where(col(WebhookEndpoint.id) == endpoint_id).with_for_update()
    )
    next_due: datetime | None = await session.scalar(
        select(func.min(col(WebhookDelivery.next_attempt_at))).where(
            col(WebhookDelivery.endpoint_id) == endpoint_id, col(WebhookDelivery.state) == "pending"
        )
    )
    if next_due is not None and next_due <= now:
        return timedelta(0)
    await session.execute(
        update(WebhookEndpoint)
        .where(col(WebhookEndpoint.id) == endpoint_id)
        .values(awake=False, updated_at=col(WebhookEndpoint.updated_at))
        .execution_options(synchronize_session=False)
    )
    return next_due - now if next_due is not None else None
