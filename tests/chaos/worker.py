"""`deployerp worker`, but its steps are late, fail or lose their answer now and then: `worker.py SEED`."""

import asyncio
import random
import signal
import sys
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from deployerp.core import logging
from deployerp.core.errors import EngineError, EngineRefused
from deployerp.core.settings import Settings
from deployerp.domain.operations.steps import STEPS
from deployerp.worker import open_worker

_LATE, _LOST, _FAILED, _REFUSED = 0.08, 0.04, 0.04, 0.01
_LATEST_SECONDS = 12.0


class Faults(Interceptor):
    """Innermost of the interceptors: its errors pass through ours, as a driver's do."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"steps {seed}")

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Inbound(next, self._random)


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, chance: random.Random) -> None:
        super().__init__(next)
        self._random = chance

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if activity.info().activity_type not in STEPS:
            return await super().execute_activity(input)
        await self._perhaps_late()
        if self._happens(_FAILED):
            raise EngineError("A fault before the step's work: it is tried again.")
        result = await super().execute_activity(input)
        await self._perhaps_late()
        if self._happens(_LOST):
            raise EngineError("The step's work is done and its answer is lost: it is tried again.")
        if self._happens(_REFUSED):
            raise EngineRefused("The step's work is done and then refused: it is not tried again.")
        return result

    def _happens(self, share: float) -> bool:
        return self._random.random() < share

    async def _perhaps_late(self) -> None:
        if self._happens(_LATE):
            await asyncio.sleep(self._random.uniform(0, _LATEST_SECONDS))


async def main(seed: int) -> None:
    settings = Settings()
    logging.configure(settings.log_level)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_worker(settings, interceptors=[Faults(seed)]):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
