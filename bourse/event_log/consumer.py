"""The one consumer loop: batch -> one database transaction -> commit.

A crash between the transaction and the commit delivers the batch again; the handler's own inbox
makes that harmless. What each failure does:

    transient   (database or log away)     pause with back-off, nothing is skipped
    permanent   (anything else it raises)  found by bisection, quarantined, the rest goes on
    many permanent ones in a row           TooManyFailures: the consumer stops
    fenced      (not the next batch)       dropped, nothing stored; read on where the database is
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, TypeAlias, cast

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse import telemetry
from bourse.database import Database, insert_if_absent
from bourse.direct import any_of, prepared
from bourse.event_log.dead_letters import set_aside
from bourse.event_log.envelope import read_envelope
from bourse.event_log.protocol import Batch, EventLog, Record, Topic
from bourse.event_log.tables import ConsumerTables, tables
from bourse.event_log.transient import BackOff, Transient, is_transient
from bourse.v1.events_pb2 import Envelope

__all__ = ["Consumer", "ConsumerTables", "Fenced", "TooManyFailures", "Transient", "tables"]

log = logging.getLogger(__name__)

Handle: TypeAlias = Callable[[AsyncConnection, list[Envelope]], Awaitable[None]]
"""Stores the effects of events within the batch's transaction, idempotent by the event id.

It may be called again for the same events after its transaction was rolled back, and in a
savepoint, so it keeps nothing outside the connection.
"""

FAILURES_IN_A_ROW = 20
ALIVE_S = 60.0
REST_S = 0.2
"""Under load, batches begin this far apart, so that one transaction serves many events; the first
event after a pause is handled at once."""

REST_BELOW = 500
"""A batch of so many records is large enough to go on without a rest."""

LAG_S = 5.0


class Fenced(Exception):
    """The database says that a batch is not the next one: it belongs to another, or comes again."""


class TooManyFailures(Exception):
    """So many records in a row failed for good that the code, not the data, must be wrong."""


class Consumer:
    """One member of a group that reads a topic into a database."""

    def __init__(
        self,
        log: EventLog,
        topic: Topic,
        group: str,
        database: Database,
        tables: ConsumerTables,
        handle: Handle,
        *,
        failures_in_a_row: int = FAILURES_IN_A_ROW,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """`after` is called when a batch's transaction has been committed."""
        self._log = log
        self._topic = topic
        self._group = group
        self._database = database
        self._tables = tables
        self._handle = handle
        self._failures_max = failures_in_a_row
        self._after = after
        self.polled_at = time.monotonic()
        self.lag: int | None = None
        self.quarantined = 0
        self._lag_at = 0.0
        rows = self._tables.consumer_offset
        mine = (rows.c.topic == bindparam("of_topic"), rows.c.group_name == bindparam("of_group"))
        self._lock = prepared(
            select(rows.c.partition, rows.c.next_offset, rows.c.epoch, rows.c.failures)
            .where(*mine, any_of(rows.c.partition, "of_partitions"))
            .order_by(rows.c.partition)
            .with_for_update(),
            *("of_topic", "of_group", "of_partitions"),
        )
        self._move = prepared(
            update(rows)
            .where(*mine, rows.c.partition == bindparam("of_partition"))
            .values(next_offset=bindparam("to"), failures=bindparam("failed")),
            *("to", "failed", "of_topic", "of_group", "of_partition"),
        )
        self._labels = {"topic": topic.name, "group": group}
        self._attributes = {
            "messaging.operation.type": "process",
            "messaging.destination.name": topic.name,
            "messaging.consumer.group.name": group,
        }
        self._stored = telemetry.counter("bourse.consumer.events", "{event}", "Events stored")
        self._set_aside = telemetry.counter(
            "bourse.consumer.quarantined", "{event}", "Events set aside as dead letters"
        )

    def alive(self) -> bool:
        """True while the loop turns, also while it waits for a database that is away."""
        return self._poll_age_s() < ALIVE_S

    async def run(self) -> None:
        """Consume until cancelled. Raises TooManyFailures or PositionBeyondEnd."""
        back_off = BackOff()
        self._measured()
        while True:
            self.polled_at = time.monotonic()
            try:
                batches = self._log.consume(self._topic, self._group, self)
                async with aclosing(cast(Any, batches)):
                    async for batch in batches:
                        self.polled_at = time.monotonic()
                        if batch.records:
                            await self._store_patiently(batch)
                        back_off.reset()
                        await self._measure()
                        if 0 < len(batch.records) < REST_BELOW:
                            rest_s = self.polled_at + REST_S - time.monotonic()
                            await asyncio.sleep(max(0.0, rest_s))
            except Exception as error:
                if not is_transient(error):
                    raise
                await back_off.wait(f"consuming {self._topic.name} as {self._group}", error)

    async def assigned(
        self, topic: str, partitions: Sequence[int]
    ) -> Mapping[int, tuple[int, int]]:
        """Raise the epochs of partitions, as `Positions` says."""
        rows = self._tables.consumer_offset
        fresh = [
            {
                "topic": topic,
                "partition": partition,
                "group_name": self._group,
                "next_offset": 0,
                "epoch": 0,
                "failures": 0,
            }
            for partition in partitions
        ]
        mine = (
            (rows.c.topic == topic)
            & (rows.c.group_name == self._group)
            & rows.c.partition.in_(partitions)
        )
        async with self._database.begin() as connection:
            await insert_if_absent(connection, rows, fresh, [rows.c.partition])
            # Locked in one order, or two members that assign at once could block each other.
            locked = select(rows.c.partition).where(mine).order_by(rows.c.partition)
            await connection.execute(locked.with_for_update())
            raised = await connection.execute(
                update(rows)
                .where(mine)
                .values(epoch=rows.c.epoch + 1)
                .returning(rows.c.partition, rows.c.next_offset, rows.c.epoch)
            )
            return {row.partition: (row.next_offset, row.epoch) for row in raised}

    async def _store_patiently(self, batch: Batch) -> None:
        """Store a batch, however long the database is away."""
        back_off = BackOff()
        while True:
            try:
                await self._store(batch)
            except Fenced as error:
                log.warning("batch dropped: %s", error)
                batch.abandon()
                return
            except Exception as error:
                if not is_transient(error):
                    raise
                await back_off.wait(f"storing events of {self._topic.name}", error)
                self.polled_at = time.monotonic()
            else:
                self._stored.add(len(batch.records), **self._labels)
                self._after()
                await batch.commit()
                return

    async def _store(self, batch: Batch) -> None:
        """Store a batch in one transaction; where a record fails for good, without that one."""
        try:
            events = [read_envelope(record) for record in batch.records]
            async with self._database.begin() as connection:
                await self._fence(connection, batch)
                await self._advance(connection, batch, {})
                await self._handle_traced(connection, events)
                return
        except (Fenced, asyncio.CancelledError):
            raise
        except Exception as error:
            if is_transient(error):
                raise
            log.warning("a batch of %s failed, looking for the record: %r", self._topic.name, error)
        async with self._database.begin() as connection:
            failures = await self._fence(connection, batch)
            before = self.quarantined
            try:
                await self._bisect(connection, batch.records, failures)
                await self._advance(connection, batch, failures)
            except BaseException:
                self.quarantined = before
                raise
        self._set_aside.add(self.quarantined - before, **self._labels)

    async def _fence(self, connection: AsyncConnection, batch: Batch) -> dict[int, int]:
        """Lock the batch's partitions, check that they are ours; return failures in a row."""
        rows = await self._lock.rows(
            connection, self._topic.name, self._group, sorted(batch.next_offsets)
        )
        found = {row[0]: row for row in rows}
        for partition, start in batch.starts.items():
            _, next_offset, epoch, _ = found.get(partition, (partition, 0, -1, 0))
            if epoch != batch.epochs[partition]:
                raise Fenced(f"{self._topic.name}/{partition} has been assigned anew")
            # Ahead: another member stored it. Behind: the database was set back, by a person or by
            # a fail-over that lost its last commits; going on would skip what it has forgotten.
            if next_offset != start:
                raise Fenced(
                    f"{self._topic.name}/{partition} is at {next_offset} in the database, and"
                    f" the batch begins at {start}"
                )
        return {row[0]: row[3] for row in rows}

    async def _advance(
        self, connection: AsyncConnection, batch: Batch, failures: Mapping[int, int]
    ) -> None:
        moved = [
            (next_offset, failures.get(partition, 0), self._topic.name, self._group, partition)
            for partition, next_offset in batch.next_offsets.items()
        ]
        await self._move.many(connection, moved)

    async def _bisect(
        self, connection: AsyncConnection, records: Sequence[Record], failures: dict[int, int]
    ) -> None:
        """Store what can be stored, in order; quarantine each record that fails alone."""
        try:
            events = [read_envelope(record) for record in records]
            async with connection.begin_nested():
                await self._handle_traced(connection, events)
        except Exception as error:
            if is_transient(error):
                raise
            if len(records) == 1:
                await self._quarantine(connection, records[0], error, failures)
                return
            middle = len(records) // 2
            await self._bisect(connection, records[:middle], failures)
            await self._bisect(connection, records[middle:], failures)
        else:
            failures.update(dict.fromkeys((record.partition for record in records), 0))

    async def _quarantine(
        self,
        connection: AsyncConnection,
        record: Record,
        error: Exception,
        failures: dict[int, int],
    ) -> None:
        if failures[record.partition] >= self._failures_max:
            raise TooManyFailures(
                f"{self._failures_max} records of {record.topic}/{record.partition} failed in a"
                f" row, and now offset {record.offset}"
            ) from error
        failures[record.partition] += 1
        self.quarantined += 1
        await set_aside(connection, self._tables, self._topic, self._group, record, error)

    async def _handle_traced(self, connection: AsyncConnection, events: list[Envelope]) -> None:
        """Handle events, each sampled one within a span of the trace that it came from."""
        sampled = [each for each in events if each.traceparent]
        with ExitStack() as spans:
            if sampled:
                name, attributes = self._topic.name, self._attributes
                batch = telemetry.span(
                    f"receive {name}", telemetry.sample(None, 1.0), "consumer", attributes
                )
                links = [spans.enter_context(batch).traceparent]
                for each in sampled:
                    about = {**attributes, "messaging.message.id": each.id}
                    spans.enter_context(
                        telemetry.span(
                            f"process {name}", each.traceparent, "consumer", about, links
                        )
                    )
            await self._handle(connection, events)

    def _measured(self) -> None:
        """Export what there is to know of this consumer."""
        name = f"bourse.consumer.{self._group}.{self._topic.name}"
        telemetry.gauge(f"{name}.lag", "{event}", "Events not stored yet", lambda: self.lag)
        telemetry.gauge(f"{name}.poll_age", "s", "Since the loop turned", self._poll_age_s)

    def _poll_age_s(self) -> float:
        return time.monotonic() - self.polled_at

    async def _measure(self) -> None:
        now = time.monotonic()
        if now - self._lag_at >= LAG_S:
            self._lag_at = now
            self.lag = await self._log.lag(self._topic, self._group)
