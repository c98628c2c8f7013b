"""Who changes what another has changed meanwhile is told so, and of many at once one wins."""

import asyncio
import re
from collections import Counter

import pytest
from sqlalchemy import select
from sqlmodel import col

from deployerp.api.contract.envelope import tags_of
from deployerp.core.settings import Settings
from deployerp.database.sessions import SessionFactory
from deployerp.domain.audit.log import AuditEntry
from deployerp.domain.instances import Instance
from deployerp.domain.operations.operation import Operation
from tests.api.calls import GUARDED, PREPARATIONS, Ask, Call
from tests.api.contents import everything
from tests.api.processes import api_processes
from tests.api.rows import RESOURCES, Planted
from tests.conftest import Client, Fleet

SINGLE = [call for call in GUARDED if call.method == "GET" and call.path.endswith("/{id}")]
CHANGING = [call for call in GUARDED if call.method in ("PUT", "PATCH", "DELETE")]
PATCHING = [call for call in CHANGING if call.method == "PATCH"]
SOMETHING_ELSE = '"0123456789abcdef01234567"'
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def tag_of(client: Client, path: str) -> str:
    answer = await client.request("GET", path.partition("?")[0])
    assert answer.status_code == 200, answer.text
    return answer.headers["ETag"]


@pytest.mark.parametrize("call", SINGLE, ids=lambda call: call.name)
async def test_what_one_has_already_is_not_sent_again(
    call: Call, client: Client, sessions: SessionFactory
) -> None:
    model = RESOURCES[call.path.removesuffix("/{id}")]
    one, other = await Planted(sessions, client.organization_id).add(model, 2)
    path = call.path.format(id=one)
    tag = await tag_of(client, path)
    assert re.fullmatch('"[0-9a-f]{24}"', tag)
    assert await tag_of(client, path) == tag
    assert await tag_of(client, call.path.format(id=other)) != tag
    for known in (tag, f"W/{tag}", f"{SOMETHING_ELSE}, {tag}", f"{SOMETHING_ELSE},W/{tag}", "*"):
        answer = await client.request("GET", path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b""), known
        assert answer.headers["ETag"] == tag
        assert answer.headers["X-Request-Id"]
    for unknown in (SOMETHING_ELSE, tag.strip('"'), ""):
        answer = await client.request("GET", path, headers={"If-None-Match": unknown})
        assert answer.status_code == 200, unknown
        assert answer.json()["data"]["id"] == str(one)
        assert answer.headers["ETag"] == tag
    # Nothing that is not there is unchanged.
    missing = await client.request(
        "GET", call.path.format(id=client.organization_id), headers={"If-None-Match": "*"}
    )
    assert missing.status_code == 404


def test_what_can_be_changed_can_be_read_with_its_tag() -> None:
    assert {call.path for call in CHANGING} <= {call.path for call in SINGLE}


async def attempt(client: Client, call: Call, ask: Ask, tag: str) -> tuple[int, str | None]:
    """The status, and the code of an error."""
    answer = await client.request(call.method, ask.path(call), ask.body, {"If-Match": tag})
    return answer.status_code, None if answer.is_success else answer.json()["error"]["code"]


@pytest.mark.parametrize("call", CHANGING, ids=lambda call: call.name)
async def test_a_change_of_what_has_changed_is_refused(
    call: Call, fleet: Fleet, sessions: SessionFactory
) -> None:
    client = fleet.client
    ask, another = [await PREPARATIONS[call.name](fleet) for _ in range(2)]
    tag, other_tag = [await tag_of(client, each.path(call)) for each in (ask, another)]
    before = await everything(sessions)
    for wrong in (SOMETHING_ELSE, other_tag, f"{SOMETHING_ELSE}, {other_tag}", tag.strip('"'), '"*"'):
        refused = (412, "precondition_failed")
        assert await attempt(client, call, ask, wrong) == refused, wrong
        assert await everything(sessions) == before
    status, _ = await attempt(client, call, ask, f"{SOMETHING_ELSE}, {tag}")
    assert status in (200, 202, 204)
    status, _ = await attempt(client, call, another, "*")
    assert status in (200, 202, 204)


@pytest.mark.parametrize("call", CHANGING, ids=lambda call: call.name)
@one_database
async def test_there_is_no_condition_on_what_is_not_there(call: Call, fleet: Fleet) -> None:
    ask = (await PREPARATIONS[call.name](fleet)).with_other_ids()
    for tag in ("*", SOMETHING_ELSE):
        assert await attempt(fleet.client, call, ask, tag) == (404, "not_found")


@pytest.mark.parametrize(
    "call", [each for each in CHANGING if each.method == "PATCH"], ids=lambda call: call.name
)
async def test_a_change_tells_the_tag_of_what_it_made(call: Call, fleet: Fleet) -> None:
    client = fleet.client
    ask = await PREPARATIONS[call.name](fleet)
    path = ask.path(call)
    before = await tag_of(client, path)
    answer = await client.request("PATCH", path, ask.body, {"If-Match": before})
    assert answer.status_code == 200, answer.text
    assert answer.headers["ETag"] == await tag_of(client, path) != before
    # Who read it before the change has lost.
    assert await attempt(client, call, ask, before) == (412, "precondition_failed")
    assert (await attempt(client, call, ask, answer.headers["ETag"]))[0] == 200


@one_database
async def test_the_refusal_tells_what_to_do(fleet: Fleet) -> None:
    provider = await fleet.provider()
    path = f"/v1/providers/{provider['id']}"
    answer = await fleet.client.request("DELETE", path, headers={"If-Match": SOMETHING_ELSE})
    error = answer.json()["error"]
    assert error["details"] == {"etag": await tag_of(fleet.client, path)}
    assert "read it again" in error["message"]


def test_tags_are_read_as_they_are_written() -> None:
    assert tags_of([]) == frozenset()
    assert tags_of(['"a", W/"b" ,"c"']) == {'"a"', '"b"', '"c"'}
    # Lines of one header are one list (RFC 9110, 5.3).
    assert tags_of(['"a"', '"b","c"']) == {'"a"', '"b"', '"c"'}


@pytest.mark.fault("23")
@one_database
@pytest.mark.parametrize("coding", ["-gzip", "-zstd", "-br", ";gzip"])
async def test_a_tag_that_a_compressing_proxy_has_marked_is_the_same_tag(fleet: Fleet, coding: str) -> None:
    client, path = fleet.client, f"/v1/providers/{(await fleet.provider())['id']}"
    marked = (await tag_of(client, path)).removesuffix('"') + coding + '"'
    assert (await client.request("GET", path, headers={"If-None-Match": marked})).status_code == 304
    old = SOMETHING_ELSE.removesuffix('"') + coding + '"'
    assert (await client.request("DELETE", path, headers={"If-Match": old})).status_code == 412
    assert (await client.request("DELETE", path, headers={"If-Match": marked})).is_success


async def test_tags_may_come_in_several_lines(fleet: Fleet) -> None:
    client, path = fleet.client, f"/v1/providers/{(await fleet.provider())['id']}"
    tag = await tag_of(client, path)
    lines = [("Authorization", f"Bearer {client.token}")]
    known = [("If-None-Match", SOMETHING_ELSE), ("If-None-Match", tag)]
    assert (await client.http.get(path, headers=lines + known)).status_code == 304
    meant = [("If-Match", SOMETHING_ELSE), ("If-Match", tag)]
    assert (await client.http.delete(path, headers=lines + meant)).status_code == 204


async def test_of_twenty_writers_with_the_same_tag_one_wins(fleet: Fleet) -> None:
    client = fleet.client
    instance = await fleet.instance((await fleet.server())["id"])
    path = f"/v1/instances/{instance['id']}"
    condition = {"If-Match": await tag_of(client, path)}
    answers = await asyncio.gather(
        *(client.request("PATCH", path, {"name": f"by {n}"}, condition) for n in range(20))
    )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 19}
    (won,) = [answer.json()["data"]["name"] for answer in answers if answer.is_success]
    assert (await client.data("GET", path))["name"] == won


async def test_of_a_hundred_actions_in_two_processes_one_is_begun(
    settings: Settings, fleet: Fleet, sessions: SessionFactory
) -> None:
    instance = await fleet.instance((await fleet.server())["id"])
    path = f"/v1/instances/{instance['id']}/actions"
    async with api_processes(settings) as apis:
        clients = [api.seen_by(fleet.client) for api in apis]
        answers = await asyncio.gather(
            *(
                clients[n % 2].request("POST", path, {"action": ("restart", "stop")[n // 2 % 2]})
                for n in range(100)
            )
        )
    unheard_of = [answer.text for answer in answers if answer.status_code not in (202, 409)]
    assert unheard_of == []
    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: 99}
    (begun,) = [answer.json()["data"] for answer in answers if answer.status_code == 202]
    refusals = [answer.json()["error"] for answer in answers if answer.status_code == 409]
    assert Counter(error["code"] for error in refusals) == {"operation_in_progress": 99}
    # All of them tell which one to wait for.
    assert {error["details"]["operation_id"] for error in refusals} == {begun["operation"]["id"]}
    async with sessions() as session:
        operations = await session.scalars(
            select(Operation).where(col(Operation.action).in_(("restart", "stop")))
        )
        assert [str(each.id) for each in operations] == [begun["operation"]["id"]]
        told = await session.scalars(select(AuditEntry).where(col(AuditEntry.action) == "act_on_instance"))
        assert [str(each.operation_id) for each in told] == [begun["operation"]["id"]]
        (kept,) = await session.scalars(select(Instance))
    assert kept.status == begun["status"]
