"""HEAD is answered as GET, without the body."""

import httpx
import pytest

from deployerp.core.settings import Settings
from tests.api.calls import CALLS, PREPARATIONS
from tests.conftest import Client, Fleet
from tests.serving import listening

STREAMS = {"stream_operation", "stream_events"}
READS = [call for call in CALLS if call.method == "GET" and call.name not in STREAMS]
# What each answer has of its own.
OWN = {"date", "x-request-id"}
pytestmark = [
    pytest.mark.fault("23"),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


async def test_it_has_the_headers_of_get_and_no_body(
    client: Client, fleet: Fleet, settings: Settings
) -> None:
    paths = ["/openapi.json", "/playground", "/playground/files/swagger-ui.css"]
    for call in READS:
        prepare = PREPARATIONS.get(call.name)
        paths.append((await prepare(fleet)).path(call) if prepare else call.path)
    assert {"/", "/healthz", "/readyz", "/v1/me", "/v1/servers"} <= {*paths}
    headers = {"Authorization": f"Bearer {client.token}"}
    async with listening(settings) as address, httpx.AsyncClient(base_url=address, headers=headers) as http:
        for path in paths:
            got, head = await http.get(path), await http.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert {n: v for n, v in head.headers.items() if n not in OWN} == {
                n: v for n, v in got.headers.items() if n not in OWN
            }, path
            # The connection is in order for what comes next.
            assert (await http.get("/healthz")).json() == {"status": "ok"}


async def test_it_answers_what_get_would_refuse(client: Client) -> None:
    path = "/v1/servers/01932a7c-8f4e-7c3a-9b2d-5e6f7a8b9c0d"
    assert (await client.request("HEAD", path)).status_code == 404
    assert (await client.http.head("/v1/servers")).status_code == 401
