"""End the loans of edges that never came back, once every worker has said that it carries none."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from bourse.database import Database
from bourse.event_log import LogUnavailable
from services.billing import lending

LIMIT = 500
BACKLOG_MAX = 10_000

log = logging.getLogger(__name__)


class Sweep:
    """Looks for leases to reclaim every `interval_s`.

    A worker that has shipped an event no longer reports its lease, so the events in the log must
    have posted too: with no backlog a report after the lease's end is proof; with a small one the
    reports must be `wait_s` newer; with a large or unknown one nothing is reclaimed.
    """

    def __init__(
        self,
        database: Database,
        backlog: Callable[[], Awaitable[int | None]],
        interval_s: float,
        wait_s: float,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database = database
        self._backlog = backlog
        self._interval_s = interval_s
        self._wait_ms = int(wait_s * 1000)
        self._now_ms = now_ms

    async def run(self) -> None:
        while True:
            try:
                await self.once()
            except (SQLAlchemyError, OSError, LogUnavailable) as error:
                log.warning("leases not swept: %s", error)
            await asyncio.sleep(self._interval_s)

    async def once(self) -> int:
        """Reclaim what can be; return how many leases that were."""
        # Read the reports before the backlog: what a report no longer names is in the log by then.
        async with self._database.read() as connection:
            certain = await lending.cleared(connection, self._now_ms(), 0, LIMIT)
            older = await lending.cleared(connection, self._now_ms(), self._wait_ms, LIMIT)
        if not certain:
            return 0
        backlog = await self._backlog()
        if backlog is None or backlog > BACKLOG_MAX:
            return 0
        ids = certain if backlog == 0 else older
        if not ids:
            return 0
        async with self._database.begin() as connection:
            reclaimed = await lending.reclaim(connection, ids)
        if reclaimed:
            log.info("%d leases of lost edges reclaimed", reclaimed)
        return reclaimed
