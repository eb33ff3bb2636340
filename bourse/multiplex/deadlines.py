"""One timer for the deadlines of many requests."""

import asyncio
import math
from collections.abc import Callable, Collection
from typing import Generic, Protocol, TypeVar


class Expiring(Protocol):
    expires_at: float
    """On the event loop's clock."""


T = TypeVar("T", bound=Expiring)


class Deadlines(Generic[T]):
    """Call `expire` with each item whose time has come; it must move `expires_at` or end the item.

    A timer per request would cost as much as all the rest of a frame. This one stands at the
    earliest deadline it was told of, which is mostly that of a request long finished: it looks at
    all that are open then, and moves on.
    """

    def __init__(self, items: Callable[[], Collection[T]], expire: Callable[[T], None]) -> None:
        self._items = items
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._loop.time()

    def watch(self, at: float) -> None:
        """Look at the items at this time."""
        if at < self._at:
            self.close()
            self._at = at
            self._timer = self._loop.call_at(at, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._at = math.inf

    def _look(self) -> None:
        self._timer = None
        self._at = math.inf
        now = self.now()
        for item in tuple(self._items()):
            if item.expires_at <= now:
                self._expire(item)
        earliest = min((item.expires_at for item in self._items()), default=math.inf)
        if earliest < math.inf:
            self.watch(earliest)
