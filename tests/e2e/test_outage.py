"""Temporal is away when work comes in: it is accepted, and begins when Temporal is back."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

from deployerp.embedded import control_plane
from tests.conftest import Client, new_client, open_api, settings_for
from tests.e2e.faults import MESSAGE
from tests.e2e.plane import Workplace

AWAY_SECONDS = 6


async def test_work_is_accepted_while_temporal_is_away(postgres_url: str, tmp_path: Path) -> None:
    ports = control_plane.Ports.free()
    settings = settings_for(postgres_url, f"127.0.0.1:{ports.temporal}", tmp_path)
    # That a step begins is all that counts here, so the first one is the last.
    worker = Workplace(settings, tmp_path / "worker.log")
    worker.faults.fail("prepare_keys", when="before")
    async with open_api(settings) as http:
        client = await new_client(http, settings)
        provider = await client.data("POST", "/v1/providers", {"name": "here", "kind": "docker"})
        async with control_plane.services(settings, ports):
            await worker.start()
        try:
            asked = time.monotonic()
            body = {"name": "patient", "providerId": provider["id"], "size": "small"}
            begun = await client.data("POST", "/v1/servers", body, status=202)
            assert time.monotonic() - asked < 5, "the answer waits for Temporal"
            assert begun["operation"]["state"] == "pending"
            assert (await client.call("GET", "/readyz", status=503))["error"]["code"] == "unavailable"
            await asyncio.sleep(AWAY_SECONDS)

            # The same worker and API, not started again, and the same file and port.
            async with control_plane.services(settings, ports):
                back = datetime.now(UTC)
                operation = await ended(client, begun["operation"]["id"])
                waited = (datetime.fromisoformat(operation["startedAt"]) - back).total_seconds()
                print(f"started {waited:.1f} s after Temporal's return")  # noqa: T201
                assert 0 < waited < 30
                assert operation["errorMessage"] == MESSAGE
                deleting = await client.data("DELETE", f"/v1/servers/{begun['id']}", status=202)
                assert (await ended(client, deleting["operation"]["id"]))["state"] == "succeeded"
                await worker.stop()
        finally:
            await worker.stop()


async def ended(client: Client, operation_id: str) -> dict:
    async with asyncio.timeout(60):
        while True:
            operation = await client.data("GET", f"/v1/operations/{operation_id}")
            if operation["finishedAt"]:
                return operation
            await asyncio.sleep(0.1)
