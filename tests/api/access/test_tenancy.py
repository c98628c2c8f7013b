"""Another organization's objects do not exist: every operation that names some, from the OpenAPI document."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
import pytest
from pydantic.alias_generators import to_camel
from sqlalchemy import Uuid, bindparam

from deployerp.api import gate
from deployerp.api.contract.lists import Listing
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.database.tenancy import Tenant
from tests.api.calls import GUARDED, PREPARATIONS, Ask, Call
from tests.api.contents import everything
from tests.conftest import Client, Fleet, new_client

NAMING = [call for call in GUARDED if call.takes_ids]
LISTS = [call for call in GUARDED if call.is_list]
# They find their object by a statement of their own, which names the organization.
GUARDED_BESIDES = {"update_user", "remove_user", "reset_password"}


@pytest.fixture
async def asks(fleet: Fleet) -> dict[str, Ask]:
    """What the owner may ask of each operation that names objects; there is something of every kind then."""
    return {call.name: await PREPARATIONS[call.name](fleet) for call in NAMING}


@pytest.fixture
async def stranger(client: Client, settings: Settings) -> Client:
    """An admin of another organization."""
    return await new_client(client.http, settings)


async def send(client: Client, call: Call, ask: Ask) -> httpx.Response:
    # With a key, to see that no answer is kept either.
    headers = {} if call.is_safe else {"Idempotency-Key": f"{call.name}-{ask.id}"}
    return await client.request(call.method, ask.path(call), ask.body, headers)


def test_every_operation_with_ids_has_a_case() -> None:
    assert {call.name for call in GUARDED} == set(PREPARATIONS), "tests/api/calls.py has the requests"


async def test_an_operation_knows_only_its_own_organization_s_objects(
    asks: dict[str, Ask], stranger: Client, sessions: SessionFactory
) -> None:
    before = await everything(sessions)
    for call in NAMING:
        told = set()
        for ask in (asks[call.name], asks[call.name].with_other_ids()):
            answer = await send(stranger, call, ask)
            assert answer.status_code == 404, f"{call.name}: {answer.text}"
            assert "ETag" not in answer.headers
            text = str(answer.json()["error"])
            for known in ask.ids:
                text = text.replace(known, "ID")
            told.add(text)
        assert len(told) == 1, f"{call.name} answers differently for what there is: {told}"
    assert await everything(sessions) == before


async def test_the_owner_may_do_what_the_stranger_may_not(asks: dict[str, Ask], client: Client) -> None:
    for call in NAMING:
        answer = await send(client, call, asks[call.name])
        assert answer.is_success, f"{call.name}: {answer.text}"


def items_of(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def filters_of(call: Call, items: list[dict]) -> Iterator[tuple[str, str]]:
    """Each filter of a list, with a value that some of the items have."""
    for parameter in call.described.get("parameters", []):
        name = parameter.get("name", "")
        found = [item[to_camel(name)] for item in items if item.get(to_camel(name)) is not None]
        if name == "q":
            found = [items[0].get("name") or items[0]["url"]]
        if found:
            yield name, str(found[0])
        else:
            assert parameter["schema"].get("format") != "uuid", f"{call.name}: no item has a {name}"


async def test_lists_and_their_filters_find_only_their_own_organization_s(
    asks: dict[str, Ask], client: Client, stranger: Client
) -> None:
    for call in LISTS:
        answer = await client.request("GET", call.path)
        items = items_of(answer)
        assert items, call.name
        own = items_of(other := await stranger.request("GET", call.path))
        assert {each["id"] for each in own}.isdisjoint(each["id"] for each in items), call.name
        assert other.json()["meta"].get("total", len(own)) == len(own)
        for name, value in filters_of(call, items):
            path = f"{call.path}?{name}={quote(value)}"
            assert items_of(await client.request("GET", path)), path
            found = items_of(answer := await stranger.request("GET", path))
            assert {each["id"] for each in found} <= {each["id"] for each in own}, path
            assert answer.json()["meta"]["total"] == len(found), path


async def test_a_cursor_of_another_organization_s_leads_nowhere(
    client: Client, stranger: Client, fleet: Fleet
) -> None:
    for name in ("a", "b"):
        await fleet.provider(name)
    cursor = (await client.call("GET", "/v1/providers?per_page=1"))["meta"]["next_cursor"]
    assert len(await client.data("GET", f"/v1/providers?cursor={cursor}")) == 1
    assert await stranger.data("GET", f"/v1/providers?cursor={cursor}") == []


async def test_an_answer_that_was_kept_is_not_another_organization_s(
    client: Client, stranger: Client
) -> None:
    body, key = {"name": "here", "kind": "docker"}, {"Idempotency-Key": "the-same"}
    answers = [await each.request("POST", "/v1/providers", body, key) for each in (client, stranger)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len({answer.json()["data"]["id"] for answer in answers}) == 2


async def test_organizations_name_things_as_they_like(client: Client, fleet: Fleet, stranger: Client) -> None:
    theirs = Fleet(stranger, fleet.records)
    assert (await fleet.server("one"))["name"] == (await theirs.server("one"))["name"]
    (event,) = await stranger.data("GET", "/v1/events")
    assert event["sequence"] == 1


# With the first wall down.


class Everybody(UUID):
    """The id of an organization that the code takes for that of any other."""

    __hash__ = UUID.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither statements nor endpoints hold a caller to their organization any more."""
    conditions, admitted = Listing._conditions, gate._admit
    # It asks for the organization, and for nothing of it.
    anything = bindparam("organization_id", type_=Uuid()).is_not(None)

    def without_organization(listing: Listing, filters: tuple[str, ...]) -> list[Any]:
        organization, *others = conditions(listing, filters)
        assert "organization_id" in str(organization)
        return [anything, *others]

    async def as_everybody(*given: Any) -> Any:
        caller, standing = await admitted(*given)
        everybody = Everybody(int=caller.organization_id.int)
        return replace(caller, tenant=Tenant(everybody)), standing

    monkeypatch.setattr(Listing, "_conditions", without_organization)
    # As they are but for what they remember.
    for name in ("_query", "count"):
        monkeypatch.setattr(Listing, name, getattr(Listing, name).__wrapped__)
    monkeypatch.setattr(Listing, "one", property(Listing.one.func))
    monkeypatch.setattr(gate, "_admit", as_everybody)


@pytest.fixture
async def listed(asks: dict[str, Ask], client: Client) -> dict[str, set[str]]:
    """By the list, what the owner sees of theirs."""
    return {
        call.name: {each["id"] for each in items_of(await client.request("GET", call.path))} for call in LISTS
    }


async def test_with_the_filters_gone_the_database_keeps_organizations_apart(
    asks: dict[str, Ask],
    listed: dict[str, set[str]],
    stranger: Client,
    sessions: SessionFactory,
    unguarded: None,
    database_url: str,
) -> None:
    before = await everything(sessions)
    reached = set()
    for call in LISTS:
        if listed[call.name] & {each["id"] for each in items_of(await stranger.request("GET", call.path))}:
            reached.add(call.name)
    for call in NAMING:
        if (await send(stranger, call, asks[call.name])).is_success:
            reached.add(call.name)
    if database_url.startswith("postgresql"):
        assert reached == set()
        assert await everything(sessions) == before
    else:
        # There is no second wall here, which shows that the first one is really down.
        assert {call.name for call in LISTS + NAMING} - reached == GUARDED_BESIDES
