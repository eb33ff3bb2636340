"""The two views in memory, and the loops that keep them: everything routing knows."""

import asyncio
import logging
import time
from collections.abc import Callable

from bourse.event_log import CATALOG, GENERATIONS, CaughtUp, EventLog, LogUnavailable
from services.routing.catalogue import Catalogue
from services.routing.health import Health

log = logging.getLogger(__name__)

RETRY_S = 1.0


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Views:
    """The catalogue and health that plans are made from, once both have caught up.

    When the log breaks off, what is known goes on serving while a fresh view is read from the
    start and takes the old one's place: a record met twice is never counted twice.
    """

    def __init__(
        self, event_log: EventLog, replay_ms: int, clock: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._log = event_log
        self._replay_ms = replay_ms
        self._clock = clock
        self.catalogue: Catalogue | None = None
        self.health: Health | None = None

    @property
    def caught_up(self) -> bool:
        return self.catalogue is not None and self.health is not None

    async def follow_catalogue(self) -> None:
        """Keep the catalogue up to date for as long as the process lives."""
        while True:
            fresh = Catalogue()
            try:
                async for item in self._log.follow(CATALOG):
                    if isinstance(item, CaughtUp):
                        self.catalogue = fresh
                    else:
                        fresh.apply(item)
                        await asyncio.sleep(0)  # a long replay lets others run
            except LogUnavailable as error:
                log.warning("catalog broke off, read again in %s s: %s", RETRY_S, error)
            await asyncio.sleep(RETRY_S)

    async def follow_health(self) -> None:
        """Keep health up to date for as long as the process lives."""
        while True:
            fresh = Health()
            try:
                since_ms = self._clock() - self._replay_ms
                async for item in self._log.follow(GENERATIONS, since_ms):
                    if isinstance(item, CaughtUp):
                        self.health = fresh
                    else:
                        fresh.apply(item, self._clock())
                        await asyncio.sleep(0)
            except LogUnavailable as error:
                log.warning("generations broke off, read again in %s s: %s", RETRY_S, error)
            await asyncio.sleep(RETRY_S)
