"""Ships a spool's settled records to the event log, in order, exactly as they were spooled."""

import asyncio
import time
from contextlib import suppress

from bourse.event_log.protocol import EventLog, LogUnavailable, Topic
from bourse.event_log.spool import Settled, Spool
from bourse.event_log.transient import BackOff

RETENTION_S = 3600.0
BATCH_LIMIT = 500
BATCH_INTERVAL_S = 0.05
"""Under load, batches begin this far apart; the first record after a pause goes at once."""

APPEND_TIMEOUT_S = 30.0
HOUSEKEEPING_S = 10.0


class Forwarder:
    """The one reader of a spool. What it has shipped is deleted after `retention_s`."""

    def __init__(
        self,
        spool: Spool,
        log: EventLog,
        topic: Topic,
        *,
        retention_s: float = RETENTION_S,
        append_timeout_s: float = APPEND_TIMEOUT_S,
    ) -> None:
        self._spool = spool
        self._log = log
        self._topic = topic
        self._retention_s = retention_s
        self._append_timeout_s = append_timeout_s
        self._tidied_at = 0.0
        self._emptied = asyncio.Event()

    async def run(self) -> None:
        """Ship until cancelled, whatever becomes of the log: then the spool grows."""
        shipped_at = 0.0
        while True:
            self._tidy()
            self._spool.settled.clear()
            if not self._spool.depth:
                self._emptied.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(HOUSEKEEPING_S):
                        await self._spool.settled.wait()
                continue
            rest_s = shipped_at + BATCH_INTERVAL_S - time.monotonic()
            if rest_s > 0 and self._spool.depth < BATCH_LIMIT:
                await asyncio.sleep(rest_s)
            shipped_at = time.monotonic()
            records = self._spool.unshipped(BATCH_LIMIT)
            if not records:
                raise RuntimeError(f"{self._spool.depth} spooled records cannot be read back")
            await self._ship(records)

    async def drain(self) -> None:
        """Wait until everything settled so far has been shipped; the caller bounds it."""
        while self._spool.depth:
            self._emptied.clear()
            await self._emptied.wait()

    async def _ship(self, records: list[Settled]) -> None:
        """Append a batch, however often the log has to be asked."""
        entries = [(record.key, record.value) for record in records]
        back_off = BackOff()
        while True:
            try:
                async with asyncio.timeout(self._append_timeout_s):
                    await self._log.append(self._topic, entries)
                break
            except (LogUnavailable, TimeoutError, OSError) as error:
                await back_off.wait(f"forwarding {self._spool.depth} spooled events", error)
        self._spool.mark_shipped(records)

    def _tidy(self) -> None:
        now = time.monotonic()
        if now - self._tidied_at >= HOUSEKEEPING_S:
            self._tidied_at = now
            self._spool.delete_shipped(self._retention_s)
