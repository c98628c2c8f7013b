"""Leaves a receiver alone that fails again and again, until one try after a pause is accepted."""

from collections.abc import Sequence

from deployerp.activities.steps.jitter import jittered
from deployerp.activities.webhooks.messages import Try

# So many failures in a row open it.
_FAILURES = 10
# Seconds that it stays open at first and after each probe that fails; the last for ever.
_PAUSES = (5, 10, 20, 40, 80, 160, 300)


class Breaker:
    """Failures in a row, of which `failures` came before; it closes with the next try that is accepted.

    Open, it takes one more failure: the one of the probe after a pause.
    """

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self._most = max(_FAILURES, failures + 1)

    @property
    def is_open(self) -> bool:
        """Whether nothing may be sent before a pause is over."""
        return self.failures >= self._most

    @property
    def is_probing(self) -> bool:
        """Whether only one may be sent at a time."""
        return self.failures >= _FAILURES

    def count(self, tries: Sequence[Try]) -> None:
        """Counts tries that ended together: a single one that was accepted is a sign of life."""
        if any(each.accepted for each in tries):
            self.failures, self._most = 0, _FAILURES
        else:
            self.failures = min(self.failures + sum(each.failed for each in tries), self._most)

    def pause(self) -> float:
        """Seconds to leave the receiver alone."""
        before = self.failures - _FAILURES
        return jittered(_PAUSES[min(before, len(_PAUSES) - 1)])
