"""How many rows large lists have, as they were counted a moment ago.

Counting many rows takes longer than reading a page of them.
"""

import time
from collections import OrderedDict
from collections.abc import Hashable
from uuid import UUID

# Smaller ones are counted with their page.
_LARGE = 100
_SECONDS = 5.0
_MOST_ORGANIZATIONS = 1_000
_MOST_OF_ONE = 100


class Totals:
    """Totals of organizations; what this process changes is counted anew, what others do a little later."""

    def __init__(self) -> None:
        # The organization that was asked for least recently comes first.
        self._known: OrderedDict[UUID, dict[Hashable, tuple[int, float]]] = OrderedDict()

    def of(self, organization_id: UUID, listed: Hashable) -> int | None:
        total, until = self._known.get(organization_id, {}).get(listed, (None, 0.0))
        return total if time.monotonic() < until else None

    def learn(self, organization_id: UUID, listed: Hashable, total: int) -> None:
        if total < _LARGE:
            return
        known = self._known.setdefault(organization_id, {})
        if len(known) >= _MOST_OF_ONE:
            known.clear()
        known[listed] = (total, time.monotonic() + _SECONDS)
        self._known.move_to_end(organization_id)
        if len(self._known) > _MOST_ORGANIZATIONS:
            self._known.popitem(last=False)

    def forget(self, organization_id: UUID) -> None:
        """Something of the organization has changed."""
        self._known.pop(organization_id, None)
