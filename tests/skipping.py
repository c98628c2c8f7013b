"""Temporal's server that waits for no timer."""

from temporalio.testing import WorkflowEnvironment

_TRIES = 4


async def skipping_environment(path: str) -> WorkflowEnvironment:
    """The SDK gives the server five seconds to start, which a busy machine may not have at once."""
    for _ in range(_TRIES - 1):
        try:
            return await WorkflowEnvironment.start_time_skipping(test_server_existing_path=path)
        except RuntimeError:
            continue
    return await WorkflowEnvironment.start_time_skipping(test_server_existing_path=path)
