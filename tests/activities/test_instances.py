"""Steps of instances, as far as they concern the worker that takes them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import pytest

from deployerp.activities import instances
from deployerp.activities.instances import InstanceActivities


@pytest.mark.fault("24")
async def test_hashing_a_password_leaves_the_loop_free_and_comes_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def hash_slowly(*_: str) -> str:
        begun.set()
        may_end.wait(5)
        ended.set()
        return ""

    @asynccontextmanager
    async def site(*_: object) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(instance=MagicMock(), server=None, engine=None, parts=None)

    monkeypatch.setattr(InstanceActivities, "_site", site)
    monkeypatch.setattr(instances, "run_sql", AsyncMock())
    monkeypatch.setattr(instances, "url_of", lambda *_: "https://a.example.com")
    monkeypatch.setattr(instances.odoo, "set_passwords_sql", lambda _: "")
    monkeypatch.setattr(instances.odoo, "personalise_sql", hash_slowly)
    activities = InstanceActivities(AsyncMock(), MagicMock(), MagicMock(), MagicMock())

    step = asyncio.create_task(activities.personalise_database(MagicMock()))
    await asyncio.to_thread(begun.wait, 10)
    assert not ended.is_set()
    step.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert ended.is_set()
