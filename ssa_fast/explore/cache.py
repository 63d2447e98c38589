"""Keep what can be computed again, as long as memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable


class Cache:
    """Values by key, the least recently used dropped first; safe to use from several threads.

    Args:
        limit: Bytes that all values together may take. The newest is kept even if it alone takes more.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of all values."""
        return self._held

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Any:
        """Return the value, None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of ``size`` bytes, in place of one with the same key; drop others until there is room."""
        with self._lock:
            self._held -= self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, size)
            self._held += size
            while self._held > self.limit and len(self._values) > 1:
                self._held -= self._values.popitem(last=False)[1][1]
