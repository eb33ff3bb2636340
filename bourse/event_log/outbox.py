"""The outbox: events written in the transaction that makes them true, shipped after it.

A crash between the two loses nothing: the publisher finds the row at the next start.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database
from bourse.event_log.lock import FileLock
from bourse.event_log.protocol import EventLog, Topic
from bourse.event_log.tables import ConsumerTables
from bourse.event_log.transient import BackOff, is_transient

SHIP_LIMIT = 500
POLL_S = 1.0
APPEND_TIMEOUT_S = 25.0


async def enqueue(
    connection: AsyncConnection,
    tables: ConsumerTables,
    topic: Topic,
    key: bytes,
    value: bytes | None,
) -> None:
    """Add an event in the caller's transaction; never commits. `value` None is a tombstone."""
    await enqueue_all(connection, tables, topic, [(key, value)])


async def enqueue_all(
    connection: AsyncConnection,
    tables: ConsumerTables,
    topic: Topic,
    entries: Sequence[tuple[bytes, bytes | None]],
) -> None:
    """Add many events in order, as `enqueue` does."""
    if not entries:
        return
    now_ms = time.time_ns() // 1_000_000
    await connection.execute(
        insert(tables.outbox),
        [
            {"topic": topic.name, "key": key, "value": value, "created_at_ms": now_ms}
            for key, value in entries
        ],
    )


class Publisher:
    """Ships a database's outbox to the event log, in order, and deletes what is acknowledged.

    Any number of processes may run one on the same database: they take turns, so that an old
    state of a key is never appended after a newer one.
    """

    def __init__(self, database: Database, tables: ConsumerTables, log: EventLog) -> None:
        self._database = database
        self._outbox = tables.outbox
        self._log = log
        self._wake = asyncio.Event()
        self._turn: FileLock | None = None
        if database.is_sqlite:
            path = Path(database.engine.url.database or "")
            self._turn = FileLock(path.with_name(f"{path.name}.outbox.lock"))

    def wake(self) -> None:
        """Ship now, not at the next poll; call it after a transaction that enqueued."""
        self._wake.set()

    async def run(self) -> None:
        """Ship until cancelled, whatever becomes of the database or the log."""
        back_off = BackOff()
        try:
            while True:
                self._wake.clear()
                try:
                    shipped = await self.ship()
                except Exception as error:
                    if not is_transient(error):
                        raise
                    await back_off.wait("shipping the outbox", error)
                    continue
                back_off.reset()
                if shipped < SHIP_LIMIT:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._wake.wait()
        finally:
            if self._turn is not None:
                self._turn.release()

    async def ship(self) -> int:
        """Ship one batch; return how many rows it had, 0 also when it is another's turn."""
        async with self._batch() as (rows, connection):
            for topic, group in groupby(rows, key=lambda row: str(row.topic)):
                entries = [(row.key, row.value) for row in group]
                async with asyncio.timeout(APPEND_TIMEOUT_S):
                    await self._log.append(Topic(topic), entries)
            if rows:
                # By id, never by range: a transaction with a lower id may have committed since.
                gone = delete(self._outbox).where(self._outbox.c.id.in_([row.id for row in rows]))
                if connection is not None:
                    await connection.execute(gone)
                else:
                    async with self._database.begin() as writer:
                        await writer.execute(gone)
        return len(rows)

    @asynccontextmanager
    async def _batch(self) -> AsyncIterator[tuple[Sequence[Row[Any]], AsyncConnection | None]]:
        """Give the next rows while no other process ships any.

        PostgreSQL's row locks make the others wait, within the transaction that will delete. One
        SQLite transaction would stop every writer while the log is slow, so there the turn is a
        file lock and the connection None.
        """
        query = select(self._outbox).order_by(self._outbox.c.id).limit(SHIP_LIMIT)
        if self._turn is None:
            async with self._database.begin() as connection:
                yield (await connection.execute(query.with_for_update())).all(), connection
        elif self._turn.acquire():
            async with self._database.read() as connection:
                rows = (await connection.execute(query)).all()
            yield rows, None
        else:
            yield [], None
