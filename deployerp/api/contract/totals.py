"""How many rows large lists have, as they were counted a moment ago.

Counting many rows takes longer than reading a page of them.
"""

import time
from collections import OrderedDict
from collections.abc import Hashable

from deployerp.database.tenancy import Tenant

# Smaller ones are counted with their page.
_LARGE = 100
_SECONDS = 5.0
_MOST_TENANTS = 1_000
_MOST_OF_ONE = 100


class Totals:
    """Totals of tenants; what this process changes is counted anew, what others do a little later."""

    def __init__(self) -> None:
        # The tenant that was asked for least recently comes first.
        self._known: OrderedDict[Tenant, dict[Hashable, tuple[int, float]]] = OrderedDict()

    def of(self, tenant: Tenant, listed: Hashable) -> int | None:
        total, until = self._known.get(tenant, {}).get(listed, (None, 0.0))
        return total if time.monotonic() < until else None

    def learn(self, tenant: Tenant, listed: Hashable, total: int) -> None:
        if total < _LARGE:
            return
        known = self._known.setdefault(tenant, {})
        if len(known) >= _MOST_OF_ONE:
            known.clear()
        known[listed] = (total, time.monotonic() + _SECONDS)
        self._known.move_to_end(tenant)
        if len(self._known) > _MOST_TENANTS:
            self._known.popitem(last=False)

    def forget(self, tenant: Tenant) -> None:
        """Something of the tenant has changed."""
        self._known.pop(tenant, None)
