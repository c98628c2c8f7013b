"""Lists and single resources: one mechanism, which a resource declares in a line."""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from sqlmodel import SQLModel

from deployerp.api.contract import dependencies
from deployerp.api.contract.changes import not_found, snake
from deployerp.api.contract.envelope import mask, respond, respond_single
from deployerp.api.contract.errors import documented
from deployerp.api.contract.lists import TOTAL, Listing, ListQuery, Order
from deployerp.api.contract.routes import needs
from deployerp.api.contract.schemas import Envelope, ListEnvelope, View
from deployerp.core.errors import NotFound
from deployerp.database.statements import Row


def serve(
    router: APIRouter,
    model: type[SQLModel],
    view: type[View],
    *,
    filters: Mapping[str, Any] | None = None,
    search: Sequence[str] = (),
    sorts: Sequence[str] = ("created_at",),
    order: Order = "desc",
    single_view: bool = True,
    searched: Mapping[str, Any] | None = None,
) -> Listing:
    """Adds the list of a resource to its router, and the single one where nothing but its row tells of it.

    The first of `sorts` is the order that a list has by itself. `searched` are expressions in place of
    columns of which not all may be searched.
    """
    listing = Listing(model, view, filters or {}, search, sorts, order, searched or {})
    plural = router.prefix.rpartition("/")[2]
    permission = needs(f"read:{plural}")
    plural_name, name = plural.replace("-", "_"), model.__name__
    title, plural_title = _title(snake(name)), _title(plural_name, article=False)

    @permission
    async def many(request: Request) -> Response:
        return await _respond_list(request, listing)

    @permission
    async def one(id: UUID, request: Request) -> Response:
        return respond_single(request, await find(request, listing, name, id))

    router.add_api_route(
        "",
        many,
        name=f"list_{plural_name}",
        summary=f"List {plural_title}",
        description=f"Returns a page of the {plural_title} of the organization, sorted by `{sorts[0]}`, "
        f"{'newest' if order == 'desc' else 'oldest'} first.",
        response_model=ListEnvelope[view],  # type: ignore[valid-type]
        responses=documented(),
        openapi_extra={"parameters": listing.described},
    )
    if single_view:
        router.add_api_route(
            "/{id}",
            one,
            name=f"get_{snake(name)}",
            summary=f"Get {title}",
            description=f"Returns {title} by ID.",
            response_model=Envelope[view],  # type: ignore[valid-type]
            responses=documented(NotFound),
        )
    return listing


def _title(name: str, *, article: bool = True) -> str:
    """`api_key` is `an API key`."""
    words = name.replace("_", " ").replace("api key", "API key").replace("audit log", "audit log entries")
    if not article:
        return words
    return f"{'an' if words[0] in 'aeiouA' else 'a'} {words.replace('audit entry', 'audit log entry')}"


async def find(request: Request, listing: Listing, name: str, id: UUID) -> Row:
    """The caller's own row. Raises `NotFound`."""
    tenant = dependencies.caller(request).tenant
    found = await dependencies.context(request).reader.rows(tenant, listing.one, {"id": id})
    if not found:
        raise not_found(name, id)
    return mask(listing.view, found[0])


async def _respond_list(request: Request, listing: Listing) -> Response:
    asked = listing.parse(request.scope["query_string"])
    tenant = dependencies.caller(request).tenant
    reader, totals = dependencies.context(request).reader, dependencies.context(request).totals
    # By the list itself, of which there is one.
    counted_as = (id(listing), asked.filters)
    total = totals.of(tenant, counted_as)
    uncounted = asked.position is None and total is None
    values = listing.values(asked)
    query = listing.query(asked, counted=uncounted)
    rows = await reader.rows(tenant, query, values)
    if uncounted:
        total = _total_of(asked, rows)
        if total is None:
            counted = await reader.rows(tenant, listing.count(asked.names), values)
            total = cast("int", counted[0][TOTAL])
        totals.learn(tenant, counted_as, total)
    more = len(rows) > asked.per_page
    rows = rows[: asked.per_page]
    cursor = listing.next_cursor(asked, rows[-1]) if more else None
    meta, links = _pagination(asked, total, cursor)
    path = request.scope["path"]
    same = f"{path}?{urlencode(asked.same)}{'&' if asked.same else ''}"
    told = ", ".join(f'<{same}{name}={value}>; rel="{rel}"' for rel, (name, value) in links.items())
    shown_rows = [mask(listing.view, row) for row in rows]
    return respond(request, shown_rows, meta=meta, headers={"Link": told})


def _total_of(asked: ListQuery, rows: list[Row]) -> int | None:
    """The total as far as a page tells it, from which the count is taken out; None where it does not."""
    counts = [row.pop(TOTAL) for row in rows if TOTAL in row]
    if counts:
        return cast("int", counts[0])
    is_last = len(rows) <= asked.per_page and (rows or asked.page == 1)
    return asked.offset + len(rows) if is_last else None


def _pagination(
    asked: ListQuery, total: int | None, cursor: str | None
) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """What a list adds to `meta`, and the pages around it."""
    meta: dict[str, Any] = {"per_page": asked.per_page, "next_cursor": cursor}
    links = {"first": ("page", "1")}
    if asked.position is not None or total is None:
        if cursor:
            links["next"] = ("cursor", cursor)
        return meta | {"page": None, "total": None, "total_pages": None}, links
    pages = -(-total // asked.per_page)
    if asked.page > 1:
        # From beyond the end it leads back to where there is something.
        links["prev"] = ("page", str(max(1, min(asked.page - 1, pages))))
    if cursor:
        links["next"] = ("page", str(asked.page + 1))
    links["last"] = ("page", str(max(pages, 1)))
    return meta | {"page": asked.page, "total": total, "total_pages": pages}, links
