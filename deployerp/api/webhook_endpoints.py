"""Webhook endpoints: where events are sent."""

from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field, StrictBool
from sqlalchemy import and_, case, func, literal_column, select
from sqlmodel import col
from yarl import URL

from deployerp.api.contract.changes import Change, ChangeDep
from deployerp.api.contract.errors import documented, invalid_field
from deployerp.api.contract.resources import serve
from deployerp.api.contract.routes import Route, needs
from deployerp.api.contract.schemas import Body, Disclose, Envelope, Integer, ShownOnce, View
from deployerp.api.webhook_queue import DeliverySummary, respond_delivery, wake_afterwards
from deployerp.core.errors import InvalidState, NotFound, PreconditionFailed, QuotaExceeded
from deployerp.core.fields import EXAMPLE_TIME, CreatedAt, Description, Id, Instant, UpdatedAt
from deployerp.core.secrets import Vault
from deployerp.database.base import utc_now
from deployerp.domain.events.log import write_ping
from deployerp.domain.events.types import (
    DisabledReason,
    EndpointDescription,
    EndpointEnabled,
    EventPattern,
    FailingSince,
)
from deployerp.domain.organizations import Organization
from deployerp.domain.webhooks.endpoints import (
    CHAT_HOSTS,
    MASKED_PATH,
    WebhookEndpoint,
    WebhookFormat,
    is_secret_url,
    new_webhook_secret,
)
from deployerp.domain.webhooks.headers import Headers
from deployerp.domain.webhooks.queue import wake
from deployerp.domain.webhooks.replays import find_missed, replay
from deployerp.drivers.web.urls import check_destination, check_url

router = APIRouter(prefix="/v1/webhook-endpoints", tags=["webhook endpoints"], route_class=Route)
# What one request may replay: it holds its transaction for some seconds.
_MOST_REPLAYED = 50_000


def _check_not_masked(url: str) -> str:
    if url.endswith(MASKED_PATH):
        raise ValueError("is masked: leave it out to keep the URL, or give the whole one")
    return url


Url = Annotated[
    str,
    Field(
        max_length=2000,
        description="URL that events are sent to, at most 2,000 characters. The URL of a chat is a secret:"
        " responses contain only its host, such as `https://hooks.slack.com/***`.",
        examples=["https://example.com/hooks"],
    ),
    AfterValidator(check_url),
    AfterValidator(_check_not_masked),
]
Types = Annotated[
    list[EventPattern],
    Field(
        min_length=1,
        max_length=50,
        description="Event types to send, 1 to 50; `*` matches any part.",
        examples=[["instance.*"]],
    ),
]
Format = Annotated[
    WebhookFormat,
    Field(
        description="Format of the body. `raw` is the event; `slack`, `teams` and `discord` are messages for"
        " the incoming webhooks of these chats (for Teams: workflows).",
        examples=["raw"],
    ),
]
AddedHeaders = Annotated[
    Headers,
    Field(
        description="Headers to send with every delivery, such as `Authorization`, at most 20. Values are"
        " stored encrypted and never shown. An update replaces all headers.",
        examples=[{"Authorization": "Bearer of-your-receiver"}],
    ),
]


# Whoever may search in a secret can find it out, letter by letter. The texts are ours, and stand in the
# statement itself: its parameters are what the request gives.
_SEARCHED_URL = case(
    (
        and_(
            col(WebhookEndpoint.format) == literal_column("'raw'"),
            *(
                func.lower(col(WebhookEndpoint.url)).not_like(literal_column(f"'%{host}%'"))
                for host in CHAT_HOSTS
            ),
        ),
        col(WebhookEndpoint.url),
    ),
    else_=None,
)


_DESCRIPTION: Any = Field(
    None, description="Note about the endpoint, at most 500 characters.", examples=["Tells our chat"]
)


class WebhookEndpointCreate(Body):
    url: Url
    types: Types = Field(["*"])
    description: Description | None = _DESCRIPTION
    headers: AddedHeaders = Field(default_factory=dict)
    format: Format = "raw"
    enabled: StrictBool = Field(True, description="Whether to send events to the endpoint.", examples=[True])


class WebhookEndpointUpdate(Body):
    """Fields that are missing or null keep their value."""

    url: Url | None = Field(
        None,
        description="New URL that events are sent to, at most 2,000 characters.",
        examples=["https://example.com/hooks"],
    )
    types: Types | None = Field(
        None,
        description="New list of event types to send, 1 to 50; `*` matches any part.",
        examples=[["instance.*"]],
    )
    description: Description | None = _DESCRIPTION
    headers: AddedHeaders | None = Field(
        None,
        description="Headers that replace all previous ones, at most 20.",
        examples=[{"Authorization": "Bearer of-your-receiver"}],
    )
    format: Format | None = Field(None, description="New format of the body.", examples=["raw"])
    enabled: StrictBool | None = Field(
        None,
        description="Whether to send events to the endpoint. `true` also clears `disabledReason` and"
        " `failingSince`; replay the events that were missed.",
        examples=[True],
    )


class RotateSecretRequest(Body):
    overlap_hours: Integer = Field(
        24,
        ge=0,
        le=168,
        description="Hours during which the previous secret also signs; with 0 it is invalid at once.",
        examples=[24],
    )


# Of a request without a body.
_BY_DEFAULT = RotateSecretRequest()


class ReplayRequest(Body):
    since: Instant = Field(description="Time of the first event to send (RFC 3339).", examples=[EXAMPLE_TIME])
    until: Instant | None = Field(
        None,
        description="Time of the last event to send (RFC 3339); the default is now.",
        examples=["2026-11-21T13:00:00Z"],
    )
    scope: Literal["all", "undelivered"] = Field(
        "all",
        description="`undelivered` excludes events that the endpoint has accepted.",
        examples=["undelivered"],
    )


class WebhookEndpointRead(View):
    id: Id
    url: str = Field(
        description="URL that events are sent to; of a secret URL only the host.",
        examples=["https://example.com/hooks"],
    )
    types: list[str] = Field(
        description="Event types that are sent; `*` matches any part.", examples=[["instance.*"]]
    )
    description: EndpointDescription
    header_names: list[str] = Field(
        description="Names of the headers that are sent with every delivery.", examples=[["Authorization"]]
    )
    format: Format
    enabled: EndpointEnabled
    disabled_reason: DisabledReason
    failing_since: FailingSince
    old_secret_until: datetime | None = Field(
        description="Time until which the previous secret also signs (RFC 3339, UTC); null if it does not.",
        examples=[None],
    )
    created_at: CreatedAt
    updated_at: UpdatedAt

    disclose: ClassVar[Disclose | None] = WebhookEndpoint.disclose


class WebhookEndpointWithSecret(WebhookEndpointRead):
    secret: ShownOnce = Field(
        description="Secret that verifies signatures (Standard Webhooks). It is shown once.",
        examples=["whsec_..."],
    )


class Replayed(View):
    deliveries: int = Field(
        description="Number of deliveries that the request started; pending ones are not counted.",
        examples=[3],
    )


@router.post(
    "",
    status_code=201,
    responses=documented(QuotaExceeded),
    response_model=Envelope[WebhookEndpointWithSecret],
    summary="Create a webhook endpoint",
)
@needs("manage:webhook-endpoints")
async def create_webhook_endpoint(body: WebhookEndpointCreate, change: ChangeDep) -> Response:
    """Creates an endpoint. Its signing secret is shown only in this response."""
    _check_destination(change, body.url)
    await _check_quota(change)
    secret, vault = new_webhook_secret(), change.shared.vault
    endpoint = WebhookEndpoint(
        organization_id=change.caller.organization_id,
        sealed_secret=vault.seal(secret),
        **_sealed(vault, body.model_dump()),
    )
    await change.add(endpoint)
    return await change.respond(WebhookEndpointRead, endpoint, 201, secret=secret)


serve(
    router,
    WebhookEndpoint,
    WebhookEndpointRead,
    filters={"enabled": bool, "format": WebhookFormat},
    search=("url", "description"),
    searched={"url": _SEARCHED_URL},
)


@router.patch(
    "/{id}",
    responses=documented(NotFound, PreconditionFailed),
    response_model=Envelope[WebhookEndpointRead],
    summary="Update a webhook endpoint",
)
@needs("manage:webhook-endpoints")
async def update_webhook_endpoint(id: UUID, body: WebhookEndpointUpdate, change: ChangeDep) -> Response:
    """Changes an endpoint, for events that are sent from now on. The secret stays the same.

    An endpoint that was paused after failures is tried again at once.
    """
    endpoint = await change.subject(WebhookEndpoint, WebhookEndpointRead, id)
    if body.url is not None:
        _check_destination(change, body.url)
    _keep_headers_where_they_belong(body, endpoint)
    _keep_url_secret(body, endpoint)
    if _concerns_sending(body, endpoint):
        _tell_of_change(change, endpoint)
    if body.enabled and not endpoint.enabled:
        endpoint.disabled_reason = endpoint.failing_since = None
    for name, value in _sealed(change.shared.vault, body.model_dump(exclude_none=True)).items():
        setattr(endpoint, name, value)
    if not endpoint.enabled:
        await _end_deliveries(change, endpoint)
    return await change.respond(WebhookEndpointRead, endpoint)


@router.delete(
    "/{id}",
    status_code=204,
    responses=documented(NotFound, PreconditionFailed),
    summary="Delete a webhook endpoint",
)
@needs("delete:webhook-endpoints")
async def delete_webhook_endpoint(id: UUID, change: ChangeDep) -> Response:
    """Deletes an endpoint. Its pending deliveries end."""
    endpoint = await change.subject(WebhookEndpoint, WebhookEndpointRead, id)
    if endpoint.failing_since is not None:
        _tell_of_change(change, endpoint)
    endpoint.deleted_at, endpoint.enabled = utc_now(), False
    await _end_deliveries(change, endpoint)
    return Response(status_code=204)


@router.post(
    "/{id}/rotate-secret",
    responses=documented(NotFound),
    response_model=Envelope[WebhookEndpointWithSecret],
    summary="Rotate a webhook secret",
)
@needs("manage:webhook-endpoints")
async def rotate_webhook_secret(
    id: UUID, change: ChangeDep, body: RotateSecretRequest = _BY_DEFAULT
) -> Response:
    """Creates a new signing secret, which is shown only in this response.

    The previous secret also signs for `overlapHours`; older ones are invalid at once.
    """
    endpoint = await change.subject(WebhookEndpoint, WebhookEndpointRead, id)
    secret = new_webhook_secret()
    overlaps = body.overlap_hours > 0
    endpoint.sealed_old_secret = endpoint.sealed_secret if overlaps else None
    endpoint.old_secret_until = utc_now() + timedelta(hours=body.overlap_hours) if overlaps else None
    endpoint.sealed_secret = change.shared.vault.seal(secret)
    if endpoint.failing_since is not None:
        _tell_of_change(change, endpoint)
    return await change.respond(WebhookEndpointRead, endpoint, secret=secret)


@router.post(
    "/{id}/ping",
    status_code=202,
    responses=documented(NotFound, InvalidState),
    response_model=Envelope[DeliverySummary],
    summary="Ping a webhook endpoint",
)
@needs("manage:webhook-endpoints")
async def ping_webhook_endpoint(id: UUID, change: ChangeDep) -> Response:
    """Sends a test event to an endpoint, whatever its event types are, and returns the delivery."""
    # Not locked: whoever writes an event has the organization's sequence first and its endpoints after it.
    endpoint = await change.get_owned(WebhookEndpoint, id)
    change.about = endpoint
    endpoint.need_open()
    delivery, woken = await write_ping(change.session, endpoint)
    wake_afterwards(change, woken)
    return respond_delivery(change, delivery)


@router.post(
    "/{id}/replay",
    status_code=202,
    responses=documented(NotFound, InvalidState),
    response_model=Envelope[Replayed],
    summary="Replay events",
)
@needs("manage:webhook-endpoints")
async def replay_events(id: UUID, body: ReplayRequest, change: ChangeDep) -> Response:
    """Sends the events of a period again, also those from before the endpoint subscribed to them.

    Events that the endpoint has accepted have the same `webhook-id` as before. At most 50,000 events.
    """
    now = utc_now()
    until = body.until or now
    _check_time(body.since, until, now, change.shared.settings.event_retention_days)
    endpoint = await change.get_owned(WebhookEndpoint, id)
    change.about = endpoint
    endpoint.need_open()
    missed = await find_missed(
        change.session,
        endpoint,
        body.since,
        until,
        undelivered=body.scope == "undelivered",
        limit=_MOST_REPLAYED + 1,
    )
    if len(missed) > _MOST_REPLAYED:
        rule = f"leaves more than {_MOST_REPLAYED:,} events: choose a later one, or an earlier `until`"
        raise invalid_field("since", rule)
    sent = await replay(change.session, endpoint, missed, now)
    wake_afterwards(change, await wake(change.session, [endpoint.id]))
    headers = {"Location": f"/v1/webhook-deliveries?endpoint_id={endpoint.id}"}
    return change.answer({"deliveries": sent}, status=202, headers=headers)


def _check_destination(change: Change, url: str) -> None:
    try:
        check_destination(url, change.shared.settings.allowed_networks)
    except ValueError as error:
        raise invalid_field("url", str(error)) from None


async def _check_quota(change: Change) -> None:
    """Raises `QuotaExceeded` when the organization has all the endpoints that it may have."""
    organization_id, limit = change.caller.organization_id, change.shared.settings.webhook_endpoints
    # Two requests at the same time must not both take the last place.
    await change.session.execute(
        select(col(Organization.id))
        .where(col(Organization.id) == organization_id)
        .with_for_update(key_share=True)
    )
    present = select(func.count()).where(
        col(WebhookEndpoint.organization_id) == organization_id, col(WebhookEndpoint.deleted_at).is_(None)
    )
    if (await change.session.scalar(present) or 0) >= limit:
        raise QuotaExceeded(
            f"An organization may have {limit} webhook endpoints, and yours has them: delete one that is not"
            " needed, or have one endpoint take more event types. The operator sets the limit with"
            " DEPLOYERP_WEBHOOK_ENDPOINTS.",
            details={"limit": limit},
        )


def _sealed(vault: Vault, given: dict[str, Any]) -> dict[str, Any]:
    """What was given as the table has it: of headers the names, and the rest for nobody to read."""
    headers = given.pop("headers", None)
    if headers is None:
        return given
    return given | {
        "header_names": list(headers),
        "sealed_headers": vault.seal_mapping(headers) if headers else None,
    }


def _keep_headers_where_they_belong(body: WebhookEndpointUpdate, endpoint: WebhookEndpoint) -> None:
    """Their values are shown to nobody: neither to who has the endpoint send them somewhere else."""
    moved = body.url is not None and URL(body.url).origin() != URL(endpoint.url).origin()
    if moved and endpoint.header_names and body.headers is None:
        rule = "must be given again with a URL of another host: their values are known to you alone"
        raise invalid_field("headers", rule)


def _keep_url_secret(body: WebhookEndpointUpdate, endpoint: WebhookEndpoint) -> None:
    """With another format the URL of a chat would be shown."""
    shown = body.format is not None and not is_secret_url(endpoint.url, body.format)
    if shown and body.url is None and is_secret_url(endpoint.url, endpoint.format):
        raise invalid_field("url", "must be given again with `format` raw: it is known to you alone")


def _check_time(since: datetime, until: datetime, now: datetime, days: float) -> None:
    if since < now - timedelta(days=days):
        raise invalid_field("since", f"must lie in the last {days:g} days: older events are not kept")
    if since > until:
        raise invalid_field("since", "must not be later than `until`, which without a word is now")


def _concerns_sending(body: WebhookEndpointUpdate, endpoint: WebhookEndpoint) -> bool:
    """Whether a receiver that has failed may answer otherwise after it, or is to be sent nothing."""
    failing = endpoint.failing_since is not None
    return failing and any(each is not None for each in (body.url, body.headers, body.format, body.enabled))


def _tell_of_change(change: Change, endpoint: WebhookEndpoint) -> None:
    """Has the endpoint's workflow read it anew, also while that leaves the receiver alone."""
    endpoint.unseen_change = True
    change.afterwards.append(partial(change.shared.temporal.offer_change, endpoint.order))


async def _end_deliveries(change: Change, endpoint: WebhookEndpoint) -> None:
    """Has the endpoint's workflow end what waits now, rather than when it would have been tried."""
    await change.session.flush()
    wake_afterwards(change, await wake(change.session, [endpoint.id]))
