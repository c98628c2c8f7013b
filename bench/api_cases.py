"""What the API is asked in its bench, and what the bare endpoints are asked beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
from api_fleet import Crowd, Fleet, Tenant
from api_load import CONNECTIONS, UNIQUE, once

from deployerp.core.errors import Unavailable

Side = Literal["deployerp", "bare"]
Query = dict[str, Any]
_PER_PAGE = 20
# So much of the list lies before the deep page.
_DEEP = 0.9


@dataclass(frozen=True)
class Asked:
    """The same requests for both sides; there is no bare one where there is nothing to compare with."""

    deployerp: Sequence[bytes]
    bare: Sequence[bytes] = ()

    @property
    def by_side(self) -> dict[Side, Sequence[bytes]]:
        sides: dict[Side, Sequence[bytes]] = {"deployerp": self.deployerp, "bare": self.bare}
        return {side: requests for side, requests in sides.items() if requests}


@dataclass(frozen=True)
class Case:
    """`requests` are made for each round from the fleet and the port of the API, which runs."""

    name: str
    title: str
    requests: Callable[[Fleet, int], Asked]
    status: int = 200
    # Of a turn's time.
    share: float = 1


def _http(method: str, path: str, query: Query, headers: dict[str, str], body: bytes = b"") -> bytes:
    target = f"{path}?{urlencode(query)}" if query else path
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ours(token: str, path: str = "", query: Query | None = None, body: bytes = b"", key: str = "") -> bytes:
    headers = {"Authorization": f"Bearer {token}"} | ({"Idempotency-Key": key} if key else {})
    return _http("POST" if body else "GET", f"/v1/instances{path}", query or {}, headers, body)


def bare(tenant: Tenant, path: str = "", query: Query | None = None, body: bytes = b"") -> bytes:
    query = {"organization_id": tenant.organization_id} | (query or {})
    return _http("POST" if body else "GET", f"/instances{path}", query, {}, body)


def _page(tenant: Tenant) -> Asked:
    return Asked([ours(tenant.token)], [bare(tenant)])


def _crowd(crowd: Crowd) -> Asked:
    requests = {token: ours(token) for token in crowd.tokens}
    return Asked([requests[token] for token in crowd.turn()])


def _deep(fleet: Fleet, port: int) -> Asked:
    listed = _answer(port, ours(fleet.big.token, query={"per_page": 1}))
    page = int(listed["meta"]["total"] * _DEEP) // _PER_PAGE
    before = _answer(port, ours(fleet.big.token, query={"page": page, "per_page": _PER_PAGE}))
    last = before["data"][-1]
    after = {"created_at": datetime.fromisoformat(last["createdAt"]).isoformat(), "id": last["id"]}
    return Asked(
        [ours(fleet.big.token, query={"cursor": before["meta"]["next_cursor"]})],
        [bare(fleet.big, "/after", after)],
    )


def _answer(port: int, request: bytes) -> Any:
    status, body = once(port, request)
    if status != 200:
        raise Unavailable(f"Not answered with 200: {body[:1000].decode()}")
    return orjson.loads(body)


def _filtered(fleet: Fleet, _: int) -> Asked:
    query = {"status": "running", "server_id": fleet.big.server_id}
    return Asked([ours(fleet.big.token, query=query)], [bare(fleet.big, "/filtered", query)])


def _search(tenant: Tenant) -> Asked:
    return Asked([ours(tenant.token, query={"q": word}) for word in tenant.words])


def _get(fleet: Fleet, _: int) -> Asked:
    ids = fleet.big.instance_ids
    return Asked(
        [ours(fleet.big.token, f"/{each}") for each in ids], [bare(fleet.big, f"/{each}") for each in ids]
    )


def _create(tenants: Sequence[Tenant], *, start: bool = False) -> Asked:
    """Each connection creates in an organization of its own, as many as there are."""
    query = {"start": "true"} if start else {}
    return Asked(
        [ours(each.token, body=_instance(each)) for each in tenants],
        [bare(each, query=query, body=_instance(each)) for each in tenants],
    )


def _create_with_key(fleet: Fleet, _: int) -> Asked:
    return Asked([ours(each.token, body=_instance(each), key=UNIQUE.decode()) for each in fleet.creators])


def _instance(tenant: Tenant) -> bytes:
    name = UNIQUE.decode()
    return orjson.dumps(
        {"name": name, "slug": name, "server_id": str(tenant.server_id), "odoo_version": "19.0"}
    )


CREATORS = CONNECTIONS
CASES = (
    Case("list_small", "list, page 1, small organization", lambda fleet, _: _page(fleet.small)),
    # Of the same length, so that faster machines have enough organizations.
    Case(
        "list_unlimited", "the same of many, no limits", lambda fleet, _: _crowd(fleet.unlimited), share=0.5
    ),
    Case("list_limited", "the same of many, plan starter", lambda fleet, _: _crowd(fleet.limited), share=0.5),
    Case("list_big", "list, page 1, big organization", lambda fleet, _: _page(fleet.big)),
    Case("list_deep", "list, deep page by cursor", _deep),
    Case("list_filtered", "list by status and server", _filtered),
    Case("search_small", "search by q, small organization", lambda fleet, _: _search(fleet.small)),
    Case("search_big", "search by q, big organization", lambda fleet, _: _search(fleet.big)),
    Case("get", "get", _get),
    Case("create", "create (202)", lambda fleet, _: _create(fleet.creators), 202),
    Case(
        "create_and_start",
        "create, the bare one starts the workflow too",
        lambda fleet, _: _create(fleet.creators, start=True),
        202,
    ),
    Case(
        "create_in_one", "create, all in one organization", lambda fleet, _: _create(fleet.creators[:1]), 202
    ),
    Case("create_with_key", "create, with an Idempotency-Key", _create_with_key, 202),
)


def check(case: Case, asked: Asked, ports: dict[Side, int]) -> None:
    """Both sides must answer a first request alike. Raises `Unavailable`."""
    told = []
    for side, requests in asked.by_side.items():
        status, body = once(ports[side], requests[0])
        if status != case.status:
            raise Unavailable(f"Not answered with {case.status}: {body[:1000].decode()}")
        told.append(_told(orjson.loads(body)["data"], created=case.status == 202))
    if any(each != told[0] for each in told[1:]):
        raise Unavailable(f"The answers differ: {told}"[:1000])


def _told(data: Any, *, created: bool) -> list[tuple[Any, ...]]:
    """What both sides must agree on; of what each has made itself, that is less."""
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise Unavailable("The answer has no rows.")
    names = ("serverId", "status") if created else ("id", "slug", "status", "hostname")
    return [tuple(row[name] for name in names) for row in rows]
