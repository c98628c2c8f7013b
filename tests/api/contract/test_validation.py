"""A name, slug, env var or version that is not what it should be: 422 that names the field."""

import json
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deployerp.core.settings import Settings
from tests.api.calls import CALLS, DOCUMENT, PREPARATIONS, Ask, Call
from tests.conftest import Client, Fleet, new_client, open_api

HOOKS = "https://example.com/hooks"
BAD_NAMES = [
    None,
    1,
    "",
    "   ",
    "a\nb",
    "a\x00",
    "a\x7fb",
    "a\x9bb",
    "a\u202eb",
    "a\u2028b",
    "x" * 101,
    "\ud800",
    *("\u200b", "\u2800", "\u3164\u3164", "\u00ad \ufeff", "\ufe0f", "\u2060"),
]
BAD_TOKENS = [None, 1, "", "a b", "-a", "a;b", "$(a)", "a\n", "é", "x" * 101]
BAD_SLUGS = [
    *(None, 1, "", "-a", "a-", "A", "a_b", "a.b", "a b", "a/b", "é", "xn--é", "a\n", "\na", "a" * 64),
    *("../a", "a\x00", "a'", '"', "$a", "`a`"),
]
BAD_ENV_NAMES = [
    *("", "1A", "A-B", "A B", "A=B", "A\n", "\nA", "A\x00", "Ä", "A" * 129, "$A", "A;B"),
    *("PATH", "HOME", "HOST", "PORT", "USER", "PASSWORD", "ODOO_RC", "PGHOST", "PYTHONPATH"),
    *("LD_PRELOAD", "DEPLOYERP_HOME"),
]
BAD_ENV_VALUES = [None, 1, True, [], "a\x00b", "x" * 32769, "\ud800"]
BAD_URLS = [
    *(None, 1, "", "example.com", "ftp://example.com/", "file:///etc/passwd", "https://", "javascript:x"),
    *("https://user:password@example.com/", "https://exämple.com/", "https://a b/", "https://a/\x00"),
    *("https://example.com:0/", "https://example.com/#part", "https://" + "a" * 2000 + ".com/"),
]
one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
quickly = hypothesis_settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    # The fixtures hold no state that an example could leave to the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
any_text = st.text(st.characters(), max_size=140)


async def post(client: Client, path: str, body: object, method: str = "POST") -> httpx.Response:
    """As ASCII, in which also half of a surrogate pair can be written."""
    headers = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}
    return await client.http.request(method, path, content=json.dumps(body), headers=headers)


async def wrong_answers(
    client: Client, path: str, good: dict, table: list[tuple[str, list]], method: str = "POST"
) -> list:
    """The cases that are not refused with a 422 that names their field, and nothing but it."""
    wrong = []
    for field, values in table:
        for value in values:
            answer = await post(client, path, good | {field: value}, method)
            body = answer.json()
            named = [each["field"] for each in body.get("error", {}).get("details", {}).get("fields", [])]
            if (answer.status_code, named) != (422, [field]) or not body["error"]["message"].startswith(
                field
            ):
                wrong.append((field, value, answer.status_code, answer.text))
    return wrong


@pytest.mark.fault("23")
@one_database
async def test_rules_are_told_in_words(client: Client, fleet: Fleet) -> None:
    told = set()
    for call in CALLS:
        patterns = list(patterns_of(call))
        prepare = PREPARATIONS.get(call.name)
        ask = await prepare(fleet) if patterns and prepare else Ask()
        for where, pattern in patterns:
            # Breaks each of them, and has a length that none forbids.
            bad = "\x00 \x01 \x02"
            assert not re.search(pattern, bad)
            query = f"?{where[1]}={quote(bad)}" if where[0] == "query" else ""
            body = with_bad(ask.body or {}, where[1:], bad) if where[0] == "body" else ask.body
            answer = await post(client, ask.path(call) + query, body, call.method)
            assert answer.status_code == 422, (call.name, where, answer.text)
            fields = answer.json()["error"]["details"]["fields"]
            # Others may be missing.
            rules = [each["message"] for each in fields if each["field"].partition(".")[0] == where[1]]
            assert rules, (call.name, where, fields)
            assert all(rule.startswith("must ") for rule in rules), (call.name, where, rules)
            assert not [rule for rule in rules if pattern in rule], (call.name, where, rules)
            told.add((call.name, *where))
    assert ("create_instance", "body", "slug") in told
    assert ("list_servers", "query", "q") in told
    assert ("create_webhook_endpoint", "body", "headers", "*") in told


def patterns_of(call: Call) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where a request has text that keeps to a regular expression, and to which."""
    for parameter in call.described.get("parameters", ()):
        for schema in parts_of(parameter.get("schema", {})):
            if "pattern" in schema and parameter["in"] == "query":
                yield ("query", parameter["name"]), schema["pattern"]
    content = call.described.get("requestBody", {}).get("content", {})
    for schema in content.values():
        yield from patterns_in(schema["schema"], ("body",))


def patterns_in(schema: dict, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for part in parts_of(schema):
        if "pattern" in part:
            yield where, part["pattern"]
        for name, field in part.get("properties", {}).items():
            yield from patterns_in(field, (*where, name))
        for name in ("items", "additionalProperties"):
            if isinstance(part.get(name), dict):
                yield from patterns_in(part[name], (*where, "*" if name[0] == "a" else "0"))


def parts_of(schema: dict) -> list[dict]:
    """What a schema says itself, in each of its choices."""
    if "$ref" in schema:
        return parts_of(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    return [schema, *(part for each in schema.get("anyOf", ()) for part in parts_of(each))]


def with_bad(body: dict, where: tuple[str, ...], bad: str) -> dict:
    """The body with another value at this place."""
    for name in reversed(where[1:]):
        bad = [bad] if name == "0" else {"X-Some": bad} if name == "*" else {name: bad}  # type: ignore[assignment]
    return body | {where[0]: bad}


@one_database
async def test_a_server_that_is_not_what_it_should_be(client: Client, fleet: Fleet) -> None:
    good = {"name": "one", "providerId": (await fleet.provider())["id"], "size": "small"}
    table = [
        ("name", BAD_NAMES),
        ("providerId", [None, 1, "", "x", "../x"]),
        ("size", BAD_TOKENS),
        ("location", BAD_TOKENS[1:]),
        ("image", BAD_TOKENS[1:]),
        ("unknown", ["x"]),
        ("status", ["running"]),
    ]
    assert await wrong_answers(client, "/v1/servers", good, table) == []
    assert await client.data("GET", "/v1/servers") == []
    server = await client.data("POST", "/v1/servers", good, 202)
    actions = [("action", [None, 1, "", "delete", "provision", "START", "stop "])]
    assert await wrong_answers(client, f"/v1/servers/{server['id']}/actions", {}, actions) == []


@one_database
async def test_an_instance_that_is_not_what_it_should_be(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    good = {"name": "A", "slug": "a", "serverId": server["id"], "odooVersion": "19.0"}
    table = [
        ("name", BAD_NAMES),
        ("slug", BAD_SLUGS),
        ("serverId", [None, 1, "", "x"]),
        ("odooVersion", [None, 1, 19.0, "", "18.0", "19", "19.0 ", "latest", "19.0@sha256:0", "\ud800"]),
        ("odooEdition", [None, 1, "", "enterprise", "Community", "\ud800"]),
        ("environmentType", [None, 1, "", "test", "Production"]),
        ("envVars", [None, 1, "", [], ["A=1"], {f"A{n}": "" for n in range(101)}]),
        ("unknown", ["x"]),
        ("hostname", ["other.example.com"]),
    ]
    assert await wrong_answers(client, "/v1/instances", good, table) == []
    assert await client.data("GET", "/v1/instances") == []
    instance = await client.data("POST", "/v1/instances", good, 202)
    path = f"/v1/instances/{instance['id']}"
    for tail in ("actions", "control"):
        actions = [("action", [None, 1, "", "delete", "deploy", "START"])]
        assert await wrong_answers(client, f"{path}/{tail}", {}, actions) == []
    assert (
        await wrong_answers(client, path, {"name": "B"}, [("name", BAD_NAMES), ("slug", ["b"])], "PATCH")
        == []
    )


@one_database
async def test_an_env_var_that_is_not_what_it_should_be_is_named(client: Client, fleet: Fleet) -> None:
    server = await fleet.server()
    good = {"name": "A", "slug": "a", "serverId": server["id"], "odooVersion": "19.0"}
    wrong = []
    cases = [
        *(({name: "x"}, f"envVars.{name}") for name in BAD_ENV_NAMES),
        *(({"A": value}, "envVars.A") for value in BAD_ENV_VALUES),
        *(({"A": {"value": value}}, "envVars.A.value") for value in BAD_ENV_VALUES),
        ({"\ud800": "x"}, "envVars."),
        ({"A": {"secret": True}}, "envVars.A.value"),
        ({"A": {"value": "x", "secret": "perhaps"}}, "envVars.A.secret"),
        ({"A": {"value": "x", "other": 1}}, "envVars.A.other"),
    ]
    for variables, field in cases:
        answer = await post(client, "/v1/instances", good | {"envVars": variables})
        named = [each["field"] for each in answer.json()["error"].get("details", {}).get("fields", [])]
        if answer.status_code != 422 or len(named) != 1 or not named[0].startswith(field):
            wrong.append((variables, field, answer.status_code, answer.text[:500]))
    assert wrong == []
    assert await client.data("GET", "/v1/instances") == []


@one_database
async def test_a_provider_that_is_not_what_it_should_be(client: Client) -> None:
    good = {"name": "here", "kind": "docker"}
    table = [
        ("name", BAD_NAMES),
        ("kind", [None, 1, "", "Docker", "nothing", "\ud800"]),
        ("credentials", [None, 1, "", []]),
        ("unknown", ["x"]),
    ]
    assert await wrong_answers(client, "/v1/providers", good, table) == []
    for kind, credentials, field in (
        ("docker", {"token": "x"}, "credentials.token"),
        ("digitalocean", {}, "credentials.token"),
        ("digitalocean", {"token": ""}, "credentials.token"),
        ("digitalocean", {"token": "hunter2hunter2", "region": "x"}, "credentials.region"),
        ("digitalocean", {"token": ["hunter2hunter2"]}, "credentials.token"),
    ):
        answer = await post(client, "/v1/providers", good | {"kind": kind, "credentials": credentials})
        assert answer.status_code == 422
        assert [each["field"] for each in answer.json()["error"]["details"]["fields"]] == [field]
        assert "hunter2" not in answer.text
    assert await client.data("GET", "/v1/providers") == []


async def test_a_webhook_endpoint_that_is_not_what_it_should_be(client: Client) -> None:
    good = {"url": HOOKS}
    table = [
        ("url", BAD_URLS),
        ("description", [1, "x" * 501, "a\x00", "a\x1b[31m", "\ud800"]),
        ("types", [None, 1, "", [], ["*"] * 51]),
        ("unknown", ["x"]),
        ("secret", ["whsec_mine"]),
    ]
    assert await wrong_answers(client, "/v1/webhook-endpoints", good, table) == []
    for pattern in (None, 1, "", "nothing", "instance", "instance.*\n", "[!\x00]*", "Instance.*", "x" * 101):
        answer = await post(client, "/v1/webhook-endpoints", good | {"types": ["*", pattern]})
        assert answer.status_code == 422, pattern
        assert [each["field"] for each in answer.json()["error"]["details"]["fields"]] == ["types.1"]
    assert await client.data("GET", "/v1/webhook-endpoints") == []


@one_database
async def test_every_wrong_field_is_named_at_once(client: Client) -> None:
    body = {"name": "", "slug": "A B", "serverId": "x"}
    error = await client.error("POST", "/v1/instances", body, code="validation_error")
    named = [each["field"] for each in error["details"]["fields"]]
    assert named == ["name", "slug", "serverId", "odooVersion"]
    assert all(each["message"] for each in error["details"]["fields"])


@one_database
async def test_versions_and_editions_are_those_of_the_settings(settings: Settings) -> None:
    more = {"odoo_versions": ["18.0", "19.0"], "odoo_editions": ["enterprise"]}
    async with open_api(settings.model_copy(update=more)) as http:
        client = await new_client(http, settings)
        body = {"name": "A", "slug": "a", "serverId": str(uuid4()), "odooVersion": "18.0"}
        await client.error("POST", "/v1/instances", body | {"odooEdition": "enterprise"}, code="not_found")
        error = await client.error("POST", "/v1/instances", body, code="validation_error")
        assert error["details"] == {
            "fields": [{"field": "odooEdition", "message": "must be one of enterprise"}]
        }


@one_database
@quickly
@given(slug=any_text | st.from_regex(r"[a-z0-9-]{1,65}", fullmatch=True))
@example(slug="a" * 63)
async def test_a_slug_is_a_dns_label_or_it_is_refused(client: Client, slug: str) -> None:
    body = {"name": "A", "slug": slug, "serverId": str(uuid4()), "odooVersion": "19.0"}
    answer = await post(client, "/v1/instances", body)
    # Whatever passes the rules gets as far as the server, which does not exist.
    label = re.fullmatch("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", slug)
    assert answer.status_code == (404 if label else 422), answer.text


@one_database
@quickly
@given(name=any_text | st.from_regex(r"[A-Za-z0-9_]{1,130}", fullmatch=True), value=any_text)
@example(name="LANG", value="a\nb")
async def test_an_env_var_keeps_to_its_rule_or_is_refused(client: Client, name: str, value: str) -> None:
    variables = {"envVars": {name: value}}
    body = {"name": "A", "slug": "a", "serverId": str(uuid4()), "odooVersion": "19.0"} | variables
    answer = await post(client, "/v1/instances", body)
    reserved = (
        r"(PG|ODOO_).+|HOST|PORT|USER|PASSWORD|PASSWORD_FILE|PATH|HOME|PYTHON.*|LD_.*"
        r"|GLIBC_TUNABLES|OPENERP_SERVER|DEPLOYERP_.*"
    )
    right_name = re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,127}", name) and not re.fullmatch(reserved, name)
    right_value = not re.search("[\x00\ud800-\udfff]", value)
    assert answer.status_code == (404 if right_name and right_value else 422), answer.text


@quickly
@given(name=any_text)
@example(name="x" * 100)
@example(name="\u3000Größe ✓ 🏭 \u00a0")
async def test_a_name_comes_back_as_it_was_given_or_is_refused(
    client: Client, name: str, renamed: dict
) -> None:
    answer = await post(client, f"/v1/instances/{renamed['id']}", {"name": name}, "PATCH")
    if answer.status_code == 200:
        assert answer.json()["data"]["name"] == name.strip()
        assert 1 <= len(name.strip()) <= 100
        assert {unicodedata.category(each) for each in name.strip()}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    else:
        assert answer.status_code == 422, answer.text
        assert [each["field"] for each in answer.json()["error"]["details"]["fields"]] == ["name"]
        assert not re.fullmatch(r"[\w .,&'()-]*\w[\w .,&'()-]*", name) or len(name) > 100


@pytest.fixture
async def renamed(fleet: Fleet) -> dict:
    return await fleet.instance((await fleet.server())["id"])
