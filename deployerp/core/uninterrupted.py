"""Work that must come to its end once it has begun, whoever stops waiting for it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def uninterrupted(work: Awaitable[T]) -> T:
    """Awaits `work` to its end; a cancellation meanwhile is raised only then.

    A thread cannot be stopped: whoever left a blocking call behind would look at the world before the call
    has changed it.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except BaseException:  # noqa: S110 - `task.result()` below raises it
            pass
    if cancelled and not task.cancelled():
        # Retrieved, so that asyncio does not log it as lost.
        task.exception()
        raise asyncio.CancelledError
    return task.result()
