"""Pages of other origins: what browsers are told."""

import httpx
import pytest

from deployerp.core.settings import Settings
from tests.conftest import Client, new_client
from tests.serving import listening

APP, OTHER = "https://app.example.com", "https://evil.example"
pytestmark = [
    pytest.mark.fault("23"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


async def preflight(client: Client, origin: str) -> httpx.Response:
    """Asks as a browser does before a change, without credentials."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,if-match",
    }
    return await client.http.options("/v1/servers", headers=headers)


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_without_the_setting_no_page_is_let_in(client: Client) -> None:
    for path, code in (("/v1/servers", 200), ("/v1/nothing", 404)):
        answer = await client.request("GET", path, headers={"Origin": APP})
        assert (answer.status_code, told(answer)) == (code, {})
    assert told(await preflight(client, APP)) == {}


async def test_pages_of_the_named_origins_are_let_in(settings: Settings) -> None:
    named = settings.model_copy(update={"cors_origins": [APP]})
    async with listening(named) as address, httpx.AsyncClient(base_url=address) as http:
        client = await new_client(http, settings)
        allowed = await preflight(client, APP)
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == APP
        assert "PATCH" in allowed.headers["Access-Control-Allow-Methods"]
        refused = await preflight(client, OTHER)
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers

        # Errors are for the page as well, and so is what headers tell.
        for path, code in (("/v1/servers", 200), ("/v1/nothing", 404)):
            answer = await client.request("GET", path, headers={"Origin": APP})
            assert answer.status_code == code
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert {"ETag", "X-Request-Id", "Retry-After", "Location"} <= {
                *answer.headers["Access-Control-Expose-Headers"].split(", ")
            }
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert "Origin" in answer.headers["Vary"]
        other = await client.request("GET", "/v1/servers", headers={"Origin": OTHER})
        assert "Access-Control-Allow-Origin" not in other.headers
