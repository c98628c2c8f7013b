"""The front page says what this is and where to go."""

import httpx
import pytest

from deployerp import __version__

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def test_it_tells_name_version_and_links_to_anybody(http: httpx.AsyncClient) -> None:
    answer = await http.get("/")
    body = answer.json()
    assert (answer.status_code, body["success"]) == (200, True)
    assert (body["data"]["name"], body["data"]["version"]) == ("deployERP", __version__)
    assert body["data"]["links"].keys() >= {"openapi", "playground", "health"}
    assert body["meta"]["request_id"] == answer.headers["X-Request-Id"]


async def test_its_links_lead_somewhere(http: httpx.AsyncClient) -> None:
    for link in (await http.get("/")).json()["data"]["links"].values():
        assert (await http.get(link)).status_code == 200, link


async def test_docs_lead_to_the_playground(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/playground")


async def test_the_document_is_of_this_version(http: httpx.AsyncClient) -> None:
    info = (await http.get("/openapi.json")).json()["info"]
    assert (info["title"], info["version"]) == ("deployERP", __version__)
