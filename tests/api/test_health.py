"""Whether the API says that it can do its work."""

import time

import pytest

from deployerp.domain.settings import Settings
from tests.conftest import free_port, open_api


async def test_it_is_ready_with_its_database_and_temporal(http) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_it_is_alive_and_not_ready_without_temporal(settings: Settings) -> None:
    without = settings.model_copy(update={"temporal_address": f"127.0.0.1:{free_port()}"})
    async with open_api(without) as http:
        started = time.monotonic()
        answer = await http.get("/readyz")
        assert time.monotonic() - started < 4
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert (await http.get("/healthz")).status_code == 200
