"""What is done after an answer: it must not delay it, and must not be lost when the process stops."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

# More than this, and what comes is better left to the sweep than kept in memory.
_MOST = 1000
# So many at once: a burst must not have all of them wait for each other until none is in time, nor keep the
# answers waiting.
_AT_ONCE = 8
_DRAIN_SECONDS = 5
log = structlog.get_logger()


class Background:
    """Runs coroutines beside the requests. Whatever runs here must be something that a sweep makes good."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= _MOST:
            work.close()
            log.warning("left for the sweep", reason="too much is under way")
            return
        task = asyncio.create_task(self._logged(work))
        # The loop holds its tasks only weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Waits a little for what runs, and gives up the rest."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=_DRAIN_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _logged(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with self._places:
                await work
        except Exception as error:
            log.error("unexpected", exc_info=error)
        finally:
            # Of one that was given up before it had its place.
            work.close()
