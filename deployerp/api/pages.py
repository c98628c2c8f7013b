"""Lists, page by page."""

from typing import Annotated, Literal, TypeVar

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from deployerp.api.requests import meta_of
from deployerp.api.schemas import ListEnvelope, ListMeta, View
from deployerp.domain.base import Record

R = TypeVar("R", bound=Record)
V = TypeVar("V", bound=View)


class PageQuery(BaseModel):
    """Which part of a list, in which order."""

    model_config = ConfigDict(extra="forbid")

    page: int = Query(1, ge=1, le=1_000_000)
    per_page: int = Query(20, ge=1, le=100)
    sort: Literal["created_at"] = "created_at"
    order: Literal["asc", "desc"] = "desc"


PageDep = Annotated[PageQuery, Query()]


async def page_of(
    request: Request,
    session: AsyncSession,
    query: Select[R],
    model: type[R],
    view: type[V],
    page: PageQuery,
) -> ListEnvelope[V]:
    """The rows of `query` on one page, and how many there are in all."""
    total = await session.scalar(select(func.count()).select_from(query.subquery())) or 0
    columns = [col(model.created_at), col(model.id)]
    ordered = query.order_by(*[c.desc() if page.order == "desc" else c.asc() for c in columns])
    rows = await session.scalars(ordered.offset((page.page - 1) * page.per_page).limit(page.per_page))
    meta = ListMeta(
        request_id=meta_of(request).request_id,
        page=page.page,
        per_page=page.per_page,
        total=total,
        total_pages=-(-total // page.per_page),
    )
    return ListEnvelope[view](data=[view.model_validate(row) for row in rows], meta=meta)  # type: ignore[valid-type]
