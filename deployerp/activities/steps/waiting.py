"""Waiting for a thing that is starting."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import repeat
from typing import TypeVar

from deployerp.core.errors import DeployError

T = TypeVar("T")
_POLL_SECONDS = 0.25
_GROWTH = 1.5


async def until_it_answers(look: Callable[[], Awaitable[T]], *, seconds: float) -> T:
    """What `look` gives once it no longer raises an error that another try may mend; then that error."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await look()
        except DeployError as error:
            if not error.retryable or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_POLL_SECONDS)


def growing_pauses(first: float, longest: float) -> Iterator[float]:
    """Seconds to wait between looks: from `first` by half as much again each time, up to `longest`."""
    pause = first
    while pause < longest:
        yield pause
        pause *= _GROWTH
    yield from repeat(longest)


async def rest(seconds: float) -> None:
    """Waits between two looks; tests put a clock of their own in its place."""
    await asyncio.sleep(seconds)
