"""The introduction of the OpenAPI document: what holds for all operations."""

DESCRIPTION = """\
REST API of deployERP. It manages servers, Odoo instances and their operations, events and webhooks.

## Authentication

Send `Authorization: Bearer <token>`. The token is an API key (`dep_live_...`, from `POST /v1/api-keys`)
or the access token of a user (from `POST /v1/auth/token`). Each operation names its permission in
`x-permission`. Resources of another organization return 404.

## Responses

A success is `{"success": true, "data": ..., "meta": {"request_id", "timestamp"}}`. Resource fields are
camelCase; query parameters and the envelope are snake_case. IDs are UUIDs (version 7), times are RFC 3339 in
UTC.

## Errors

A failure is `{"success": false, "error": {"code", "message", "details"}, "meta"}`. `code` is for programs,
`message` for people. Quote `meta.request_id` when you report a problem.

## Pagination

Lists take `page` and `per_page` (20 by default, at most 100), or `cursor` with `meta.next_cursor` of the
previous response. `sort` and `order` set the order; filters match exactly. The header `Link` has the
neighboring pages.

## Idempotency

Send an `Idempotency-Key` with a request that changes something. Repeating it with the same key within 24
hours returns the stored response with `Idempotent-Replayed: true`.

## Concurrency control

A single resource has an `ETag`. `If-Match` rejects a change with 412 if the resource has changed.
`If-None-Match` returns 304 if it has not.

## Long-running operations

Requests that take longer return 202 with an operation, and its path in `Location`. Read the operation or
stream its changes from `/v1/operations/{id}/events`.

## Rate limits

Requests are counted per organization. `X-RateLimit-*` and `RateLimit` describe what is left; a request above
the limit returns 429 with `Retry-After` in seconds.
"""
SERVERS = [{"url": "/", "description": "The control plane that serves this document."}]
TAGS = {
    "instances": "Odoo installations, each with its own database, files, containers and host name.",
    "servers": "Virtual machines that host instances.",
    "operations": "Long-running actions: status, steps, cancel and retry.",
    "providers": "Connected cloud accounts.",
    "events": "Ordered event log.",
    "webhook endpoints": "Subscriptions that send events to a URL.",
    "webhook deliveries": "Deliveries of events to endpoints, with their attempts.",
    "authentication": "Access tokens, passwords and the caller.",
    "api keys": "API keys.",
    "users": "Users of the organization and their roles.",
    "audit log": "Audit log: who changed what, append-only.",
    "health": "Health and version of the API.",
}
