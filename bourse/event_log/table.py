"""The event log in one SQLite file, for all processes of one box.

A topic is one partition, numbered 0. Its records lie in one table, ordered by *place*: the topic's
number above, the offset below, so that a topic is one range of the primary key and needs no other
index. A group has one member at a time; the others stand by on a file lock and take over when it
ends, however it ends.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Boolean, Column, LargeBinary, MetaData, PrimaryKeyConstraint, String, Table
from sqlalchemy import UniqueConstraint, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database, Int64, insert_if_absent, upsert
from bourse.event_log.lock import FileLock
from bourse.event_log.protocol import Batch, CaughtUp, LogUnavailable, Positions, Record, Topic
from bourse.event_log.protocol import PositionBeyondEnd

POLL_S = 0.02
"""How soon another process's append is seen, and how often a busy reader reads at most."""

IDLE_S = 5.0
"""How often `consume` yields an empty batch while nothing comes."""

STANDBY_S = 0.2
COMMIT_S = 1.0
CLOSE_S = 5.0
READ_LIMIT = 1000
TAIL_BYTES = 8 * 1024 * 1024
PENDING_ENTRIES = 100_000
COMPACT_AFTER = 1000
TOMBSTONE_KEPT_MS = 24 * 3600 * 1000
_SHIFT = 40

log = logging.getLogger(__name__)

metadata = MetaData()

topic_table = Table(
    "log_topic",
    metadata,
    Column("number", Int64, primary_key=True, autoincrement=True),
    Column("name", String, nullable=False),
    Column("compacted", Boolean, nullable=False),
    Column("next_offset", Int64, nullable=False),
    Column("last_ms", Int64, nullable=False),
    UniqueConstraint("name", name="uq_log_topic_name"),
)
entry_table = Table(
    "log_entry",
    metadata,
    Column("place", Int64, primary_key=True, autoincrement=False),
    Column("timestamp_ms", Int64, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("value", LargeBinary, nullable=True),
)
group_table = Table(
    "log_group",
    metadata,
    Column("number", Int64, nullable=False),
    Column("group_name", String, nullable=False),
    Column("next_offset", Int64, nullable=False),
    PrimaryKeyConstraint("number", "group_name", name="pk_log_group"),
)

_TAKE = (
    update(topic_table)
    .where(topic_table.c.name == bindparam("topic"))
    .values(
        next_offset=topic_table.c.next_offset + bindparam("count"),
        last_ms=func.max(topic_table.c.last_ms, bindparam("now_ms")),
    )
    .returning(topic_table.c.next_offset, topic_table.c.last_ms)
)
_INSERT = insert(entry_table)
_READ = (
    select(entry_table.c.place, entry_table.c.timestamp_ms, entry_table.c.key, entry_table.c.value)
    .where(entry_table.c.place >= bindparam("first"), entry_table.c.place < bindparam("stop"))
    .order_by(entry_table.c.place)
    .limit(bindparam("count"))
)
_READ_TIME = (
    select(entry_table.c.place, entry_table.c.timestamp_ms)
    .where(entry_table.c.place >= bindparam("first"), entry_table.c.place < bindparam("stop"))
    .order_by(entry_table.c.place)
    .limit(1)
)


@dataclass(slots=True)
class _Waiting:
    """An append that waits for the next transaction."""

    topic: "_Topic"
    entries: Sequence[tuple[bytes, bytes | None]]
    done: "asyncio.Future[None]"


@dataclass(slots=True)
class _Topic:
    """What this process knows of a topic. `tail` spares local readers the database."""

    number: int
    name: str
    compacted: bool
    end: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tail: deque[Record] = field(default_factory=deque)
    tail_end: int = 0
    tail_bytes: int = 0
    written: int = COMPACT_AFTER  # since the last compaction; the first append looks at once

    def grew(self, end: int) -> None:
        if end > self.end:
            self.end = end
            self.changed.set()
            self.changed = asyncio.Event()

    def remember(self, records: Sequence[Record]) -> None:
        if records[0].offset != self.tail_end:
            self.tail.clear()
            self.tail_bytes = 0
        self.tail.extend(records)
        self.tail_end = records[-1].offset + 1
        self.tail_bytes += sum(_size(record) for record in records)
        while self.tail_bytes > TAIL_BYTES or len(self.tail) > 4 * READ_LIMIT:
            self.tail_bytes -= _size(self.tail.popleft())

    def recall(self, offset: int) -> list[Record]:
        """The records from `offset` if all since then are remembered, else nothing."""
        if not self.tail or not self.tail[0].offset <= offset < self.tail_end:
            return []
        first = offset - self.tail[0].offset
        last = min(first + READ_LIMIT, len(self.tail))
        return [self.tail[index] for index in range(first, last)]


@dataclass(slots=True)
class TableBatch:
    """A batch of a topic's only partition."""

    records: Sequence[Record]
    next_offsets: Mapping[int, int]
    epochs: Mapping[int, int]
    abandoned: bool = field(default=False, init=False)
    _log: "TableLog"
    _topic: str
    _group: str

    async def commit(self) -> None:
        for next_offset in self.next_offsets.values():
            self._log.note_commit(self._topic, self._group, next_offset)

    def abandon(self) -> None:
        self.abandoned = True


class TableLog:
    """The event log at `sqlite:///path`; any number of processes of one box may open it."""

    def __init__(self, url: str) -> None:
        self._path = Path(make_url(url).database or "")
        self._database = Database(url)
        self._topics: dict[str, _Topic] = {}
        self._pending: list[_Waiting] = []
        self._commits: dict[tuple[str, str], int] = {}
        self._committed: dict[tuple[str, str], int] = {}
        self._writer: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        async with self._database.begin() as connection:
            await connection.run_sync(metadata.create_all)
        await self._load()

    async def close(self) -> None:
        self._closed = True
        for task in (self._watcher, self._flusher):
            if task is not None:
                task.cancel()
        with suppress(TimeoutError, LogUnavailable):
            async with asyncio.timeout(CLOSE_S - 1):
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                if self._commits:
                    await self._write([])
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._database.close()

    async def create_topics(
        self, topics: Sequence[Topic], partitions: int = 1, replication_factor: int = 1
    ) -> None:
        rows = [
            {"name": topic.name, "compacted": topic.compacted, "next_offset": 0, "last_ms": 0}
            for topic in topics
        ]
        try:
            async with self._database.begin() as connection:
                await insert_if_absent(connection, topic_table, rows, [topic_table.c.number])
        except SQLAlchemyError as error:
            raise LogUnavailable(str(error)) from error
        await self._load()

    async def append(
        self, topic: Topic, entries: Sequence[tuple[bytes, bytes | None]]
    ) -> None:
        if not entries:
            return
        if self._closed:
            raise LogUnavailable("the event log is closed")
        if sum(len(waiting.entries) for waiting in self._pending) > PENDING_ENTRIES:
            raise LogUnavailable("too many appends are waiting")
        found = await self._known(topic.name)
        if found is None:
            raise LogUnavailable(f"topic {topic.name} does not exist")
        done = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(found, entries, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending(), name="event log writer")
        await done

    async def consume(
        self, topic: Topic, group: str, positions: Positions
    ) -> AsyncIterator[Batch]:
        lock = FileLock(self._path.with_name(
            f"{self._path.name}.{quote(topic.name, '')}.{quote(group, '')}.lock"
        ))
        try:
            while not lock.acquire():
                yield TableBatch([], {}, {}, self, topic.name, group)
                await asyncio.sleep(STANDBY_S)
            found = await self._created(topic.name)
            while True:
                assigned = await positions.assigned(topic.name, [0])
                offset, epoch = assigned[0]
                if offset > await self._end(found):
                    raise PositionBeyondEnd(topic.name, 0, offset, found.end)
                async for records in self._records(found, offset):
                    ends = {0: records[-1].offset + 1} if records else {}
                    epochs = {0: epoch} if records else {}
                    batch = TableBatch(records, ends, epochs, self, topic.name, group)
                    yield batch
                    if batch.abandoned:
                        break
        finally:
            lock.release()

    async def follow(
        self, topic: Topic, since_ms: int | None = None
    ) -> AsyncIterator[Sequence[Record] | CaughtUp]:
        found = await self._created(topic.name)
        end = await self._end(found)
        offset = 0 if since_ms is None else await self._first_since(found, since_ms, end)
        caught_up = offset >= end
        if caught_up:
            yield CaughtUp()
        async for records in self._records(found, offset):
            if records:
                yield records
                offset = records[-1].offset + 1
            if not caught_up and (offset >= end or not records):
                caught_up = True
                yield CaughtUp()

    async def lag(self, topic: Topic, group: str) -> int | None:
        if topic.name not in self._topics:
            return None
        found = self._topics[topic.name]
        try:
            end = await self._end(found)
            committed = self._committed.get((topic.name, group))
            if committed is None:
                committed = await self._stored_commit(found, group)
        except SQLAlchemyError:
            return None
        return max(0, end - committed)

    def note_commit(self, topic: str, group: str, next_offset: int) -> None:
        """Remember a group's offset; it is written with the next append, or within a second."""
        self._committed[topic, group] = self._commits[topic, group] = next_offset
        if (self._flusher is None or self._flusher.done()) and not self._closed:
            self._flusher = asyncio.create_task(self._flush_commits(), name="event log commits")

    # Writing.

    async def _write_pending(self) -> None:
        while self._pending:
            waiting, self._pending = self._pending, []
            try:
                written = await self._write(waiting)
            except Exception as error:
                for each in waiting:
                    if not each.done.done():
                        each.done.set_exception(error)
                continue
            for each in waiting:
                if not each.done.done():
                    each.done.set_result(None)
            for topic in written:
                if topic.compacted and topic.written >= COMPACT_AFTER:
                    await self._compact(topic)

    async def _write(self, waiting: Sequence[_Waiting]) -> list[_Topic]:
        """Write all that wait and the commits in one transaction; return the topics that grew."""
        by_topic: dict[str, list[tuple[bytes, bytes | None]]] = {}
        for each in waiting:
            by_topic.setdefault(each.topic.name, []).extend(each.entries)
        commits, self._commits = self._commits, {}
        placed: list[tuple[_Topic, list[Record]]] = []
        try:
            async with self._database.begin() as connection:
                for name, found in by_topic.items():
                    topic = self._topics[name]
                    placed.append((topic, await self._place(connection, topic, found)))
                await self._store_commits(connection, commits)
        except SQLAlchemyError as error:
            self._commits = {**commits, **self._commits}
            raise LogUnavailable(f"the event log could not be written: {error}") from error
        for topic, records in placed:
            topic.remember(records)
            topic.written += len(records)
            topic.grew(records[-1].offset + 1)
        return [topic for topic, _ in placed]

    async def _place(
        self, connection: AsyncConnection, topic: _Topic, found: Sequence[tuple[bytes, bytes | None]]
    ) -> list[Record]:
        now_ms = time.time_ns() // 1_000_000
        values = {"topic": topic.name, "count": len(found), "now_ms": now_ms}
        end, timestamp_ms = (await connection.execute(_TAKE, values)).one()
        records = [
            Record(topic.name, 0, offset, key, value, timestamp_ms)
            for offset, (key, value) in enumerate(found, end - len(found))
        ]
        base = topic.number << _SHIFT
        await connection.execute(
            _INSERT,
            [
                {
                    "place": base + record.offset,
                    "timestamp_ms": timestamp_ms,
                    "key": record.key,
                    "value": record.value,
                }
                for record in records
            ],
        )
        return records

    async def _store_commits(
        self, connection: AsyncConnection, commits: Mapping[tuple[str, str], int]
    ) -> None:
        rows = [
            {"number": self._topics[topic].number, "group_name": group, "next_offset": offset}
            for (topic, group), offset in commits.items()
        ]
        await upsert(connection, group_table, rows, ["number", "group_name"])

    async def _flush_commits(self) -> None:
        await asyncio.sleep(COMMIT_S)
        if self._commits:
            with suppress(LogUnavailable):  # they are for display; the next append brings them
                await self._write([])

    async def _compact(self, topic: _Topic) -> None:
        """Keep the last record of each key; a tombstone goes once every follower has met it."""
        first, stop = topic.number << _SHIFT, topic.number + 1 << _SHIFT
        within = (entry_table.c.place >= first) & (entry_table.c.place < stop)
        last = select(func.max(entry_table.c.place)).where(within).group_by(entry_table.c.key)
        old_ms = time.time_ns() // 1_000_000 - TOMBSTONE_KEPT_MS
        gone = entry_table.c.value.is_(None) & (entry_table.c.timestamp_ms < old_ms)
        try:
            async with self._database.begin() as connection:
                await connection.execute(
                    delete(entry_table).where(within, entry_table.c.place.not_in(last) | gone)
                )
                kept = await connection.scalar(
                    select(func.count()).select_from(entry_table).where(within)
                )
        except SQLAlchemyError:
            return  # nothing depends on it; a later append tries again
        # A topic of many keys is looked at less often, so that each append stays cheap.
        topic.written = min(0, COMPACT_AFTER - (kept or 0))

    # Reading.

    async def _records(self, topic: _Topic, offset: int) -> AsyncIterator[list[Record]]:
        """Yield records from `offset` as they come; nothing for IDLE_S yields an empty list.

        The first record after a pause is given at once. Under load a reader waits until POLL_S
        after it last read, and takes together all that has come.
        """
        read_at = 0.0
        while True:
            changed = topic.changed
            if topic.end <= offset:
                self._watch()
                try:
                    async with asyncio.timeout(IDLE_S):
                        await changed.wait()
                except TimeoutError:
                    yield []
                    continue
            rest = read_at + POLL_S - time.monotonic()
            if rest > 0 and topic.end - offset < READ_LIMIT // 2:
                await asyncio.sleep(rest)
            read_at = time.monotonic()
            end = topic.end
            try:
                records = topic.recall(offset) or await self._read(topic, offset, end)
            except SQLAlchemyError:
                log.exception("reading topic %s failed: trying again", topic.name)
                await asyncio.sleep(STANDBY_S)
                continue
            offset = records[-1].offset + 1 if records else end  # none: compacted away
            yield records

    async def _read(self, topic: _Topic, offset: int, end: int) -> list[Record]:
        base = topic.number << _SHIFT
        values = {"first": base + offset, "stop": base + end, "count": READ_LIMIT}
        async with self._database.read() as connection:
            rows = (await connection.execute(_READ, values)).all()
        return [
            Record(topic.name, 0, place - base, key, value, timestamp_ms)
            for place, timestamp_ms, key, value in rows
        ]

    async def _first_since(self, topic: _Topic, since_ms: int, end: int) -> int:
        """The first offset not older than `since_ms`; a topic's timestamps never fall."""
        base = topic.number << _SHIFT
        low, high = 0, end
        async with self._database.read() as connection:
            while low < high:
                middle = (low + high) // 2
                row = (
                    await connection.execute(
                        _READ_TIME, {"first": base + middle, "stop": base + high}
                    )
                ).one_or_none()
                if row is None or row[1] >= since_ms:
                    high = middle
                else:
                    low = row[0] - base + 1
        return low

    async def _end(self, topic: _Topic) -> int:
        async with self._database.read() as connection:
            end = await connection.scalar(
                select(topic_table.c.next_offset).where(topic_table.c.number == topic.number)
            )
        topic.grew(end or 0)
        return topic.end

    async def _stored_commit(self, topic: _Topic, group: str) -> int:
        async with self._database.read() as connection:
            stored = await connection.scalar(
                select(group_table.c.next_offset).where(
                    group_table.c.number == topic.number, group_table.c.group_name == group
                )
            )
        return stored or 0

    async def _created(self, name: str) -> _Topic:
        """Return the topic, waiting until somebody has created it."""
        while (topic := await self._known(name)) is None:
            await asyncio.sleep(STANDBY_S)
        return topic

    async def _known(self, name: str) -> _Topic | None:
        if name not in self._topics:
            await self._load()
        return self._topics.get(name)

    async def _load(self) -> None:
        try:
            async with self._database.read() as connection:
                rows = (await connection.execute(select(topic_table))).all()
        except SQLAlchemyError as error:
            raise LogUnavailable(f"the event log could not be read: {error}") from error
        for row in rows:
            if row.name not in self._topics:
                self._topics[row.name] = _Topic(
                    row.number, row.name, row.compacted, row.next_offset
                )

    # Seeing what other processes append.

    def _watch(self) -> None:
        if (self._watcher is None or self._watcher.done()) and not self._closed:
            self._watcher = asyncio.create_task(self._watch_ends(), name="event log watcher")

    async def _watch_ends(self) -> None:
        """Poll the ends of all topics for all readers of this process.

        This is a call of its own on the driver, on the event loop: one page of shared memory is
        read in some ten microseconds, and passing by the pool's threads would cost twenty times
        that, fifty times a second, on an idle box.
        """
        with sqlite3.connect(
            self._path, timeout=0, isolation_level=None
        ) as connection:
            try:
                while True:
                    await asyncio.sleep(POLL_S)
                    with suppress(sqlite3.OperationalError):
                        for name, end in connection.execute(
                            "SELECT name, next_offset FROM log_topic"
                        ).fetchall():
                            if name in self._topics:
                                self._topics[name].grew(end)
            finally:
                connection.close()


def _size(record: Record) -> int:
    return 200 + len(record.key) + len(record.value or b"")

