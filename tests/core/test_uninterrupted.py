"""Blocking calls to clouds, cancelled while they run."""

import asyncio
import threading
from typing import Any

import pytest
from libcloud.compute import base

from deployerp.core.uninterrupted import uninterrupted
from deployerp.drivers.clouds.libcloud import LibcloudClouds

pytestmark = pytest.mark.fault("2")


async def test_a_cancelled_call_to_a_cloud_is_over_when_the_cancellation_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, may_return, ended = threading.Event(), threading.Event(), threading.Event()

    def connect(*_: Any, **__: Any) -> base.NodeDriver:
        began.set()
        may_return.wait(10)
        ended.set()
        raise OSError

    monkeypatch.setattr("deployerp.drivers.clouds.libcloud.DockerNodeDriver", connect)
    cloud = LibcloudClouds().open("docker", {})
    call = asyncio.create_task(cloud.get_node("n"))
    await asyncio.to_thread(began.wait, 10)
    call.cancel()
    await asyncio.sleep(0.1)
    assert not call.done()
    may_return.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_a_result_and_an_error_come_through() -> None:
    async def fail() -> None:
        raise ValueError("no")

    assert await uninterrupted(asyncio.sleep(0, "result")) == "result"
    with pytest.raises(ValueError, match="no"):
        await uninterrupted(fail())


async def test_work_that_cancels_itself_is_cancelled() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await uninterrupted(give_up())
