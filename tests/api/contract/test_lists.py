"""Lists: one mechanism, and one set of tests over every list that the contract has."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic.alias_generators import to_camel

from deployerp.api.app import create_app
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.providers import Provider
from tests.api.calls import referred
from tests.api.rows import AT_ONCE, KINDS, RESOURCES, START, Planted, time_of
from tests.conftest import Client, new_client

DOCUMENT = create_app(Settings.model_construct()).openapi()
PATHS = DOCUMENT["paths"]
LISTS = [path for path, every in PATHS.items() if every.get("get", {}).get("operationId", "")[:5] == "list_"]
# It is read on from a sequence, by whoever wants to miss nothing: the oldest come first.
LOG = "/v1/events"
# Nothing is ever deleted from these.
KEPT = {"/v1/audit-log", LOG}
COMMON = {"page", "per_page", "sort", "order", "cursor", "created_after", "created_before", "q", "after"}
# Before and after all rows, the client's own key included.
EARLY, LATE = START - timedelta(days=1), START + timedelta(days=10_000)
every_list = pytest.mark.parametrize("path", LISTS)
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@dataclass
class Listed:
    """One list, as a client sees it and as the database has it."""

    path: str
    client: Client
    planted: Planted

    @property
    def model(self) -> Any:
        return RESOURCES[self.path]

    @property
    def parameters(self) -> dict[str, dict]:
        """The schemas of the query parameters."""
        told = map(referred, PATHS[self.path]["get"]["parameters"])
        return {each["name"]: each["schema"] for each in told if each.get("in") == "query"}

    @property
    def sorts(self) -> list[str]:
        schema = self.parameters["sort"]
        return schema.get("enum") or [schema["const"]]

    @property
    def by_default(self) -> dict[str, str]:
        return {name: self.parameters[name]["default"] for name in ("sort", "order")}

    @property
    def filters(self) -> set[str]:
        return self.parameters.keys() - COMMON

    async def plant(self, count: int, **options: Any) -> list[str]:
        return [str(each) for each in await self.planted.add(self.model, count, **options)]

    async def ids(
        self,
        sort: str | None = None,
        order: str | None = None,
        fits: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> list[str]:
        """What there is to be listed, in its order."""
        sort, order = sort or self.by_default["sort"], order or self.by_default["order"]
        rows = [row for row in await self.planted.all(self.model) if fits(row)]
        rows.sort(key=lambda row: (row[sort], row["id"]), reverse=order == "desc")
        return [str(row["id"]) for row in rows]

    async def get(self, **query: Any) -> httpx.Response:
        return await self.follow(f"{self.path}?{httpx.QueryParams(query)}")

    async def follow(self, url: str) -> httpx.Response:
        answer = await self.client.request("GET", url)
        assert answer.status_code == 200, f"{url} answers {answer.text}"
        return answer

    async def found(self, **query: Any) -> list[str]:
        return ids_of(await self.get(per_page=100, **query))

    async def refused(self, query: str) -> list[str]:
        """The fields that a 422 names."""
        error = await self.client.error("GET", f"{self.path}?{query}", code="validation_error")
        return [each["field"] for each in error["details"]["fields"]]


@pytest.fixture
def listed(path: str, client: Client, sessions: SessionFactory) -> Listed:
    return Listed(path, client, Planted(sessions, client.organization_id))


def ids_of(answer: httpx.Response) -> list[str]:
    body = answer.json()
    assert body.keys() == {"success", "data", "meta"}
    assert body["success"] is True
    return [each["id"] for each in body["data"]]


def meta_of(answer: httpx.Response) -> dict[str, Any]:
    """What only lists tell."""
    told: dict[str, Any] = answer.json()["meta"]
    assert told.pop("request_id") == answer.headers["X-Request-Id"]
    assert told.pop("timestamp").endswith("Z")
    return told


def cursor_of(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()


def test_every_list_is_of_the_one_mechanism() -> None:
    answers_of = {
        path: every["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        for path, every in PATHS.items()
        if path in LISTS
    }
    assert {path for path, schema in answers_of.items() if "/ListEnvelope_" not in schema} == set()
    assert set(LISTS) == set(RESOURCES), "say in rows.py what rows of a new list are"


def holds_many(schema: dict[str, Any]) -> bool:
    data: dict[str, Any] = schema.get("properties", {}).get("data", {})
    return data.get("type") == "array"


def test_nothing_but_a_list_answers_with_many() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    of_lists = {name for name in schemas if name.startswith("ListEnvelope_")}
    told = {
        path: every["get"]["responses"]["200"]["content"].get("application/json", {}).get("schema", {})
        for path, every in PATHS.items()
        if "get" in every
    }
    names = {path: schema.get("$ref", "").rpartition("/")[2] for path, schema in told.items()}
    many = {
        path
        for path, name in names.items()
        if name in of_lists
        or schemas.get(name, {}).get("properties", {}).get("data", {}).get("type") == "array"
    }
    assert many == set(LISTS)


@every_list
async def test_pages_lead_to_each_other(listed: Listed) -> None:
    await listed.plant(8)
    query = {"per_page": 3, "order": "asc", "created_after": EARLY.isoformat()}
    expected = await listed.ids(order="asc")
    pages = {n: expected[3 * (n - 1) : 3 * n] for n in range(1, -(-len(expected) // 3) + 1)}
    last = max(pages)
    for page, ids in pages.items():
        answer = await listed.get(page=page, **query)
        assert ids_of(answer) == ids
        meta = meta_of(answer)
        assert (meta.pop("next_cursor") is None) is (page == last)
        assert meta == {"page": page, "per_page": 3, "total": len(expected), "total_pages": last}
        leads = {"first": 1, "last": last}
        leads |= {"prev": page - 1} if page > 1 else {}
        leads |= {"next": page + 1} if page < last else {}
        assert answer.links.keys() == leads.keys()
        for relation, to in leads.items():
            there = await listed.follow(answer.links[relation]["url"])
            assert (ids_of(there), meta_of(there)["page"]) == (pages[to], to), relation


@every_list
@one_database
async def test_without_a_word_the_newest_twenty_come_first_and_of_the_log_the_oldest(listed: Listed) -> None:
    await listed.plant(21)
    oldest_first = {"sort": "sequence", "order": "asc"}
    newest_first = {"sort": "created_at", "order": "desc"}
    assert listed.by_default == (oldest_first if listed.path == LOG else newest_first)
    assert ids_of(await listed.get()) == (await listed.ids())[:20]
    assert meta_of(await listed.get())["per_page"] == 20


@every_list
@one_database
async def test_a_page_beyond_the_end_is_empty_and_leads_back(listed: Listed) -> None:
    await listed.plant(5)
    there = await listed.ids()
    for page in (4, 1_000_000):
        answer = await listed.get(page=page, per_page=len(there))
        assert ids_of(answer) == []
        meta = {"page": page, "per_page": len(there), "total": len(there), "total_pages": 1}
        assert meta_of(answer) == meta | {"next_cursor": None}
        assert answer.links.keys() == {"first", "prev", "last"}
        assert ids_of(await listed.follow(answer.links["prev"]["url"])) == there


@every_list
@one_database
async def test_a_list_of_nothing(listed: Listed) -> None:
    answer = await listed.get(created_before=EARLY.isoformat())
    assert ids_of(answer) == []
    nothing = {"page": 1, "per_page": 20, "total": 0, "total_pages": 0, "next_cursor": None}
    assert meta_of(answer) == nothing
    assert answer.links.keys() == {"first", "last"}
    for link in answer.links.values():
        assert meta_of(await listed.follow(link["url"])) == nothing


@every_list
async def test_a_walk_by_cursor_meets_every_row_once(listed: Listed) -> None:
    await listed.plant(2 * AT_ONCE + 3)
    for sort in listed.sorts:
        for order in ("asc", "desc"):
            expected = await listed.ids(sort, order)
            for per_page in (AT_ONCE - 1, len(expected)):
                query = {"per_page": per_page, "sort": sort, "order": order}
                assert await walked(listed, query) == expected, query


async def walked(listed: Listed, query: dict[str, Any]) -> list[str]:
    answer = await listed.get(**query)
    found = ids_of(answer)
    while (cursor := meta_of(answer)["next_cursor"]) is not None:
        answer = await listed.get(cursor=cursor, **query)
        # The cursor knows its order by itself.
        assert ids_of(answer) == ids_of(await listed.get(cursor=cursor, per_page=query["per_page"]))
        found += ids_of(answer)
        meta = meta_of(answer)
        more = meta.pop("next_cursor") is not None
        assert meta == {"page": None, "per_page": query["per_page"], "total": None, "total_pages": None}
        assert answer.links.keys() == ({"first", "next"} if more else {"first"})
    return found


@every_list
@one_database
async def test_links_of_a_walk_go_on_with_it(listed: Listed) -> None:
    await listed.plant(8)
    expected = await listed.ids()
    answer = await listed.get(per_page=3)
    answer = await listed.get(per_page=3, cursor=meta_of(answer)["next_cursor"])
    walked = expected[:3] + ids_of(answer)
    while "next" in answer.links:
        assert ids_of(await listed.follow(answer.links["first"]["url"])) == expected[:3]
        answer = await listed.follow(answer.links["next"]["url"])
        walked += ids_of(answer)
    assert walked == expected


@every_list
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_what_comes_and_goes_between_pages_hides_nothing(listed: Listed, order: str) -> None:
    await listed.plant(12)
    answer = await listed.get(per_page=5, sort="created_at", order=order)
    seen = ids_of(answer)
    kept = await listed.ids("created_at", order)
    assert seen == kept[:5]
    if listed.path not in KEPT:
        # One that has been seen, the very last of them, and one that was to come.
        for each in (seen[1], seen[-1], kept[7]):
            await listed.planted.take(listed.model, UUID(each))
    for number, moment in ((20, EARLY), (21, LATE)):
        await listed.plant(1, first=number, created_at=moment)
    now = await listed.ids("created_at", order)
    assert len(now) == len(kept) + (2 if listed.path in KEPT else -1)
    # Of the two that came, one lies ahead of the walk, whatever its order.
    ahead = [each for each in now if each in kept[5:]] + [now[-1]]
    walked = []
    while (cursor := meta_of(answer)["next_cursor"]) is not None:
        answer = await listed.get(per_page=5, cursor=cursor)
        walked += ids_of(answer)
    assert walked == ahead


@every_list
async def test_a_filter_finds_exactly_what_fits(listed: Listed) -> None:
    await listed.plant(12)
    rows = await listed.planted.all(listed.model)
    for name in listed.filters:
        values = {row[name] for row in rows}
        assert len(values) > 1, f"rows.py: all rows have the same {name}, so its filter proves nothing"
        for value in values:
            fitting = await listed.ids(fits=lambda row, name=name, value=value: row[name] == value)
            answer = await listed.get(per_page=100, **{name: told(value)})
            assert ids_of(answer) == fitting, f"{name}={value}"
            assert meta_of(answer)["total"] == len(fitting)
            assert {told(each[to_camel(name)]) for each in answer.json()["data"]} == {told(value)}
    # All at once, with what one row has, in a window that holds it.
    for row in rows[:3]:
        query = {name: told(row[name]) for name in listed.filters}
        fitting = await listed.ids(
            fits=lambda each, row=row: all(
                each[name] == row[name] for name in (*listed.filters, "created_at")
            )
        )
        window = {
            "created_after": (row["created_at"] - timedelta(microseconds=1)).isoformat(),
            "created_before": (row["created_at"] + timedelta(microseconds=1)).isoformat(),
        }
        assert await listed.found(**query, **window) == fitting


def told(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@every_list
async def test_times_of_creation_bound_a_list_and_are_not_in_it(listed: Listed) -> None:
    await listed.plant(3 * AT_ONCE)
    middle = time_of(AT_ONCE)
    for moment in (
        middle,
        middle.astimezone(timezone(timedelta(hours=14))),
        middle.astimezone(timezone(timedelta(hours=-9.5))),
    ):
        later = await listed.ids(fits=lambda row: row["created_at"] > middle)
        earlier = await listed.ids(fits=lambda row: row["created_at"] < middle)
        assert await listed.found(created_after=moment.isoformat()) == later
        assert await listed.found(created_before=moment.isoformat()) == earlier
        assert len(earlier) >= AT_ONCE
        assert len(later) >= AT_ONCE
    assert await listed.found(created_after=middle.isoformat(), created_before=middle.isoformat()) == []


@pytest.mark.fault("23")
@pytest.mark.fault("27")
@pytest.mark.parametrize("path", ["/v1/providers"])
async def test_a_bare_plus_before_the_offset_of_a_time_is_understood(listed: Listed) -> None:
    """Case B07: in a query a bare plus is a space."""
    await listed.plant(3)
    everything = await listed.ids()
    for query, found in (
        ("created_after=2000-01-01T00:00:00+02:00", everything),
        ("created_before=2000-01-01T00:00:00+02:00", []),
    ):
        answer = await listed.client.request("GET", f"{listed.path}?{query}&per_page=100")
        assert answer.status_code == 200, answer.text
        assert [each["id"] for each in answer.json()["data"]] == found
    assert await listed.refused("created_after=2000-01-01+00:00:00Z") == ["created_after"]


# However long ago or far ahead, a time is a time.
@pytest.mark.parametrize("path", ["/v1/providers"])
async def test_the_ends_of_time_bound_a_list_too(listed: Listed) -> None:
    await listed.plant(3)
    everything = await listed.ids()
    assert await listed.found(created_after="0001-01-01T00:00:00Z") == everything
    assert await listed.found(created_before="9999-12-31T23:59:59.999999Z") == everything
    assert await listed.found(created_before="0001-01-01T00:00:00Z") == []
    assert await listed.found(created_after="9999-12-31T23:59:59.999999Z") == []
    # In UTC these lie beyond what there is.
    assert await listed.refused("created_after=0001-01-01T00:00:00%2B14:00") == ["created_after"]
    assert await listed.refused("created_before=9999-12-31T23:59:59-14:00") == ["created_before"]
    for time in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        cursor = cursor_of("created_at", "desc", time, str(uuid4()))
        assert await listed.refused(f"cursor={cursor}") == ["cursor"]


TEXTS = (
    "Acme Inc",
    "the ACME of old",
    "100% Odoo",
    "100 percent",
    "snake_case",
    "snakeXcase",
    "back\\slash",
    "it's; DROP TABLE providers --",
    "ÉCLAIR",
    "Größe ✓",
    "Ἀθῆναι",
)
ASKED = (
    "acme",
    "ACME",
    "mE",
    "%",
    "0%",
    "_",
    "e_c",
    "\\",
    "\\s",
    "'",
    "it's;",
    "--",
    "CASE",
    "ÉCL",
    "öße ✓",
    "θῆν",
)


def is_searched(row: Any, column: str) -> bool:
    """All but the URLs of chats, which are secrets."""
    return column != "url" or row["format"] == "raw"


def is_found(text: str, searched: str) -> bool:
    """One or two characters are found at the beginning only."""
    return text in searched if len(text) > 2 else searched.startswith(text)


@pytest.mark.parametrize("path", ["/v1/instances"])
async def test_one_or_two_characters_are_found_at_the_beginning_of_a_field(listed: Listed) -> None:
    names = ("Qx first", "then qx", "qy")
    await listed.plant(3, make=lambda n: {"name": names[n]})
    for text, found in {"qx": {"Qx first"}, "Q": {"Qx first", "qy"}, "n qx": {"then qx"}}.items():
        told = (await listed.get(q=text)).json()["data"]
        assert {each["name"] for each in told} == found


@pytest.mark.parametrize("path", [path for path, model in RESOURCES.items() if KINDS[model].search])
async def test_a_search_finds_the_text_itself_in_any_case(listed: Listed) -> None:
    columns = KINDS[listed.model].search
    for column in columns:
        await listed.plant(len(TEXTS), make=lambda n, column=column: {column: TEXTS[n]})
    for text in ASKED:
        fitting = await listed.ids(
            fits=lambda row, text=text: any(
                is_found(text.lower(), (row[column] or "").lower())
                for column in columns
                if is_searched(row, column)
            )
        )
        assert fitting or len(text) < 3, text
        assert len(fitting) < len(columns) * len(TEXTS), text
        answer = await listed.get(q=text, per_page=100)
        assert ids_of(answer) == fitting, text
        assert meta_of(answer)["total"] == len(fitting)


@pytest.mark.parametrize("path", ["/v1/instances"])
async def test_every_page_of_a_search_tells_how_much_it_finds(listed: Listed) -> None:
    await listed.plant(7, make=lambda n: {"name": f"wanted {n}"})
    await listed.plant(3, make=lambda n: {"name": f"other {n}"})
    expected = await listed.ids(fits=lambda row: "wanted" in row["name"])
    for page, found in {1: expected[:3], 2: expected[3:6], 3: expected[6:], 4: []}.items():
        answer = await listed.get(q="WANTED", page=page, per_page=3)
        assert ids_of(answer) == found
        meta = meta_of(answer)
        assert (meta["total"], meta["total_pages"]) == (7, 3), page
        assert (meta["next_cursor"] is None) is (page >= 3)
    for per_page, pages in ((7, 1), (6, 2)):
        meta = meta_of(await listed.get(q="wanted", per_page=per_page))
        assert (meta["total"], meta["total_pages"]) == (7, pages)
    assert meta_of(await listed.get(q="nobody"))["total"] == 0


@every_list
@one_database
async def test_what_can_be_searched_is_told(listed: Listed) -> None:
    parameters = map(referred, PATHS[listed.path]["get"]["parameters"])
    descriptions = {each["name"]: each["description"] for each in parameters if "name" in each}
    search = KINDS[listed.model].search
    assert ("q" in descriptions) is bool(search)
    assert f"in {' or '.join(search)}," in descriptions.get("q", "in ,")
    if not search:
        assert await listed.refused("q=x") == ["q"]


@every_list
@one_database
async def test_what_cannot_be_asked_is_refused_by_its_name(listed: Listed) -> None:
    for query, field in (
        ("page=0", "page"),
        ("page=-1", "page"),
        ("page=1000001", "page"),
        ("page=x", "page"),
        ("page=", "page"),
        ("page", "page"),
        (f"page={'9' * 5000}", "page"),
        ("per_page=0", "per_page"),
        ("per_page=101", "per_page"),
        ("per_page=1.5", "per_page"),
        ("sort=", "sort"),
        ("sort=organization_id", "sort"),
        ("sort=created_at,name", "sort"),
        ("sort=-created_at", "sort"),
        ("order=up", "order"),
        ("order=DESC", "order"),
        ("perpage=5", "perpage"),
        ("organization_id=" + str(uuid4()), "organization_id"),
        ("createdAfter=2026-01-01T00:00:00Z", "createdAfter"),
        ("created_after=2026-01-01T00:00:00", "created_after"),
        ("created_after=yesterday", "created_after"),
        ("created_before=2026-02-30T00:00:00Z", "created_before"),
        ("page=1&page=2", "page"),
        ("created_after=2026-01-01T00:00:00Z&created_after=2026-01-01T00:00:00Z", "created_after"),
        ("%00=1", "\x00"),
        ("=1", "query"),
        ("&".join(f"x{n}=1" for n in range(51)), "query"),
    ):
        assert await listed.refused(query) == [field], query[:100]
    assert await listed.refused("page=0&per_page=0&order=up") == ["page", "per_page", "order"]


@every_list
@one_database
async def test_a_filter_that_nothing_can_fit_is_refused(listed: Listed) -> None:
    bad = {"format": "no-id", "enum": "unheard-of", "boolean": "maybe", "const": "unheard-of"}
    for name in listed.filters:
        schema = listed.parameters[name]
        kinds = [kind for kind in bad if kind in schema or schema.get("type") == kind]
        values = [bad[kind] for kind in kinds] or ["x\x00y", "x\ny", "x\x7f"]
        for value in (*values, ""):
            assert await listed.refused(str(httpx.QueryParams({name: value}))) == [name], (name, value)
        twice = httpx.QueryParams([(name, "x"), (name, "y")])
        assert await listed.refused(str(twice)) == [name]


@pytest.mark.parametrize("path", [path for path, model in RESOURCES.items() if KINDS[model].search])
@one_database
async def test_a_search_that_nothing_can_fit_is_refused(listed: Listed) -> None:
    for text in ("", "\x00", "a\x00", "\n", "tab\there", "\x1b[31m", "\x7f", "x" * 101):
        assert await listed.refused(str(httpx.QueryParams({"q": text}))) == ["q"], repr(text)
    # What is no UTF-8 at all is text that nothing has.
    assert ids_of(await listed.follow(f"{listed.path}?q=%ff%fe")) == []


@every_list
async def test_a_cursor_that_was_not_given_is_refused(listed: Listed) -> None:
    await listed.plant(3)
    given = meta_of(await listed.get(per_page=1))["next_cursor"]
    row, moment = str(uuid4()), START.isoformat()
    for cursor in (
        "",
        "x",
        "é",
        "%00",
        given[:-2],
        given[1:],
        "x" * 1001,
        cursor_of(),
        cursor_of("created_at", "desc", moment),
        cursor_of("created_at", "desc", moment, row, "more"),
        cursor_of("organization_id", "desc", row, row),
        cursor_of("size", "desc", "x", row),
        cursor_of(["created_at"], "desc", moment, row),
        cursor_of({}, "desc", moment, row),
        cursor_of("created_at", "up", moment, row),
        cursor_of("created_at", ["desc"], moment, row),
        cursor_of("created_at", "desc", None, row),
        cursor_of("created_at", "desc", "yesterday", row),
        cursor_of("created_at", "desc", START.replace(tzinfo=None).isoformat(), row),
        cursor_of("created_at", "desc", {"a": 1}, row),
        cursor_of("created_at", "desc", moment, "no-row"),
        cursor_of("created_at", "desc", moment, 1),
        cursor_of("created_at", "desc", moment, None),
        cursor_of("created_at", "desc", moment, [row]),
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"[" * 700).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        *(
            cursor_of(sort, "desc", value, row)
            for sort in listed.sorts
            if sort != "created_at"
            for value in (None, -1, ["x"], "a\x00b", "\ud800")
        ),
    ):
        assert await listed.refused(str(httpx.QueryParams({"cursor": cursor}))) == ["cursor"], cursor


@every_list
@one_database
async def test_a_cursor_belongs_to_its_order(listed: Listed) -> None:
    await listed.plant(3)
    cursor = meta_of(await listed.get(per_page=1, order="asc"))["next_cursor"]
    assert await listed.refused(f"cursor={cursor}&order=desc") == ["cursor"]
    assert await listed.refused(f"cursor={cursor}&page=2") == ["cursor"]
    assert await listed.refused(f"cursor={cursor}&cursor={cursor}") == ["cursor"]
    for sort in listed.sorts:
        if sort != listed.by_default["sort"]:
            assert await listed.refused(f"cursor={cursor}&sort={sort}") == ["cursor"]


@pytest.mark.parametrize("path", ["/v1/providers"])
async def test_only_large_totals_may_be_a_little_old(
    listed: Listed, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("deployerp.api.contract.totals.time", SimpleNamespace(monotonic=lambda: clock.now))

    async def total(**query: Any) -> int:
        return meta_of(await listed.get(per_page=1, **query))["total"]

    first, *_ = await listed.plant(99)
    assert await total() == 99
    await listed.plant(1, first=99)
    assert await total() == 100
    await listed.plant(1, first=100)
    clock.now = 5.0
    assert await total() == 101
    await listed.planted.take(Provider, UUID(first))
    assert await total() in (100, 101)
    # What is asked otherwise, or by others, is counted for itself.
    kinds = [await total(kind=kind) for kind in ("docker", "aws")]
    assert sum(kinds) == 100
    stranger = await new_client(listed.client.http, settings)
    assert (await stranger.call("GET", "/v1/providers"))["meta"]["total"] == 0
    clock.now = 10.0
    assert await total() == 100
    # What this process does itself is counted at once.
    await listed.client.data("POST", "/v1/providers", {"name": "own", "kind": "docker"})
    assert await total() == 101


@one_database
async def test_ids_tell_the_age_and_times_are_utc(client: Client) -> None:
    first, second = [
        await client.data("POST", "/v1/providers", {"name": name, "kind": "docker"}) for name in "ab"
    ]
    assert UUID(first["id"]).version == 7
    assert first["id"] < second["id"]
    for each in (first, second):
        assert each["createdAt"].endswith("Z")
        assert datetime.fromisoformat(each["createdAt"]).tzinfo == UTC
