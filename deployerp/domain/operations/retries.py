"""How long, and in which pauses, a step that fails for a reason that may pass is tried again.

It imports nothing of ours, so that workflows can use it inside Temporal's sandbox.
"""

from datetime import timedelta

# From the first failure. A restart of an engine, of sshd or of the network between is over by then.
RETRY_PERIOD = timedelta(minutes=10)
FIRST_PAUSE = timedelta(seconds=1)
LONGEST_PAUSE = timedelta(seconds=30)
# What has failed for this long is told of, although it is tried again.
STALLED_AFTER = timedelta(minutes=1)


def pause_after(attempt: int) -> timedelta:
    """The pause between this attempt, counted from 1, and the next: twice as long each time, up to 30 s."""
    doubled: int = 2 ** min(attempt - 1, 10)
    return min(FIRST_PAUSE * doubled, LONGEST_PAUSE)
