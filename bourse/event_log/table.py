"""The event log in one SQLite file, for all processes of one box.

A topic is one partition, numbered 0. A group has one member at a time; the others stand by on a
file lock and take over when it ends, however it ends.
"""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from bourse.event_log.lock import FileLock
from bourse.event_log.protocol import (
    Batch,
    CaughtUp,
    LogUnavailable,
    PositionBeyondEnd,
    Positions,
    Record,
    Topic,
)
from bourse.event_log.table_file import Entries, TableFile, TopicRow

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.02
"""How soon another process's append is seen, and how often a busy reader reads at most."""

IDLE_S = 5.0
"""How often `consume` yields an empty batch while nothing comes."""

STANDBY_S = 0.2
COMMIT_S = 1.0
CLOSE_S = 4.0
READ_LIMIT = 1000
TAIL_BYTES = 8 * 1024 * 1024
TAIL_RECORDS = 4 * READ_LIMIT
PENDING_ENTRIES = 100_000
TIDY_AFTER = 1000


@dataclass(slots=True, eq=False)
class _Topic:
    """What this process knows of a topic. `tail` spares local readers the file."""

    row: TopicRow
    end: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tail: deque[Record] = field(default_factory=deque)
    tail_bytes: int = 0
    written: int = TIDY_AFTER  # since the last tidying; the first append does it at once

    def grew(self, end: int) -> None:
        if end > self.end:
            self.end = end
            self.changed.set()
            self.changed = asyncio.Event()

    def remember(self, records: Sequence[Record]) -> None:
        if self.tail and records[0].offset != self.tail[-1].offset + 1:
            self.tail.clear()  # another process has written in between
            self.tail_bytes = 0
        self.tail.extend(records)
        self.tail_bytes += sum(map(_size, records))
        while self.tail_bytes > TAIL_BYTES or len(self.tail) > TAIL_RECORDS:
            self.tail_bytes -= _size(self.tail.popleft())

    def recall(self, offset: int) -> list[Record]:
        """The records from `offset` on if all of them are remembered, else nothing."""
        if not self.tail or not self.tail[0].offset <= offset <= self.tail[-1].offset:
            return []
        first = offset - self.tail[0].offset
        return [self.tail[at] for at in range(first, min(first + READ_LIMIT, len(self.tail)))]


@dataclass(slots=True, eq=False)
class _Waiting:
    """An append that waits for the next transaction."""

    topic: _Topic
    entries: Entries
    done: "asyncio.Future[None]"


@dataclass(slots=True, eq=False)
class TableBatch:
    """A batch of a topic's only partition."""

    records: Sequence[Record]
    starts: Mapping[int, int]
    next_offsets: Mapping[int, int]
    epochs: Mapping[int, int]
    note: Callable[[int], None]
    abandoned: bool = False

    async def commit(self) -> None:
        for next_offset in self.next_offsets.values():
            self.note(next_offset)

    def abandon(self) -> None:
        self.abandoned = True


class TableLog:
    """The event log at `sqlite:///path`; any number of processes of one box may open it."""

    def __init__(self, url: str) -> None:
        scheme, _, path = url.partition(":///")
        if scheme != "sqlite" or not path:
            raise ValueError(f"{url}: want sqlite:///path or kafka://host:port")
        self._path = Path(path)
        self._writing = _Thread("event log write", TableFile(self._path))
        self._reading = _Thread("event log read", TableFile(self._path))
        self._topics: dict[str, _Topic] = {}
        self._pending: list[_Waiting] = []
        self._pending_entries = 0
        self._commits: dict[tuple[int, str], int] = {}  # not written yet
        self._committed: dict[tuple[int, str], int] = {}
        self._writer: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        await self._writing.start()
        await self._reading.start()
        await self._load()

    async def close(self) -> None:
        self._closed = True
        for task in (self._watcher, self._flusher):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        with suppress(TimeoutError, LogUnavailable):
            async with asyncio.timeout(CLOSE_S):
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                await self._write([])
                await self._writing.close()
                await self._reading.close()

    async def create_topics(
        self, topics: Sequence[Topic], partitions: int = 1, replication_factor: int = 1
    ) -> None:
        rows = [(topic.name, topic.compacted) for topic in topics]
        await self._writing.run(lambda file: file.create(rows))
        await self._load()

    async def append(self, topic: Topic, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        if not entries:
            return
        found = await self._known(topic.name)
        if found is None:
            raise LogUnavailable(f"topic {topic.name} does not exist")
        if self._closed:
            raise LogUnavailable("the event log is closed")
        if self._pending_entries > PENDING_ENTRIES:
            raise LogUnavailable("too many appends are waiting")
        done = asyncio.get_running_loop().create_future()
        self._pending.append(_Waiting(found, entries, done))
        self._pending_entries += len(entries)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_pending(), name="event log writer")
        await done

    async def consume(self, topic: Topic, group: str, positions: Positions) -> AsyncIterator[Batch]:
        names = ".".join(quote(name, "") for name in (topic.name, group))
        lock = FileLock(self._path.with_name(f"{self._path.name}.{names}.lock"))

        def batch(records: Sequence[Record], start: int, epoch: int) -> TableBatch:
            if not records:
                return TableBatch([], {}, {}, {}, lambda _: None)
            ends = {0: records[-1].offset + 1}
            return TableBatch(
                records,
                {0: start},
                ends,
                {0: epoch},
                lambda end: self._note_commit(found, group, end),
            )

        try:
            while not lock.acquire():
                yield batch([], 0, 0)
                await asyncio.sleep(STANDBY_S)
            found = await self._created(topic.name)
            while True:
                offset, epoch = (await positions.assigned(topic.name, [0]))[0]
                await self._load()
                if offset > found.end:
                    raise PositionBeyondEnd(topic.name, 0, offset, found.end)
                async for records in self._records(found, offset):
                    given = batch(records, offset, epoch)
                    yield given
                    if given.abandoned:
                        break
                    offset = given.next_offsets.get(0, offset)
        finally:
            lock.release()

    async def follow(
        self, topic: Topic, since_ms: int | None = None
    ) -> AsyncIterator[Sequence[Record] | CaughtUp]:
        found = await self._created(topic.name)
        await self._load()
        end = found.end
        offset = 0
        if since_ms is not None:
            since = since_ms
            offset = await self._reading.run(lambda file: file.first_since(found.row, since, end))
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
        try:
            found = await self._known(topic.name)
            if found is None:
                return None
            await self._load()
            number = found.row.number
            committed = self._committed.get((number, group))
            if committed is None:
                committed = await self._reading.run(lambda file: file.committed(number, group))
        except LogUnavailable:
            return None
        return max(0, found.end - committed)

    # Writing.

    async def _write_pending(self) -> None:
        """Write all that wait, again and again: what comes meanwhile shares the next sync."""
        while self._pending:
            waiting, self._pending = self._pending, []
            self._pending_entries = 0
            try:
                await self._write(waiting)
            except Exception as error:
                for each in waiting:
                    if not each.done.done():
                        each.done.set_exception(error)
                continue
            for each in waiting:
                if not each.done.done():
                    each.done.set_result(None)
            for topic in {each.topic for each in waiting}:
                if topic.written >= TIDY_AFTER:
                    await self._tidy(topic)

    async def _write(self, waiting: Sequence[_Waiting]) -> None:
        """Write appends and commits in one transaction, then wake the readers."""
        if not waiting and not self._commits:
            return
        entries: dict[str, list[tuple[bytes, bytes | None]]] = {}
        for each in waiting:
            entries.setdefault(each.topic.row.name, []).extend(each.entries)
        commits, self._commits = self._commits, {}
        try:
            written = await self._writing.run(lambda file: file.append(entries, commits))
        except LogUnavailable:
            self._commits = {**commits, **self._commits}
            raise
        for name, records in written.items():
            topic = self._topics[name]
            topic.remember(records)
            topic.written += len(records)
            topic.grew(records[-1].offset + 1)

    async def _tidy(self, topic: _Topic) -> None:
        left = 0
        try:
            if topic.row.compacted:
                left = await self._writing.run(lambda file: file.compact(topic.row))
            else:
                await self._writing.run(lambda file: file.forget(topic.row))
        except LogUnavailable:
            return  # nothing depends on it; a later append tries again
        # A topic of many keys is looked at less often, so that an append stays cheap.
        topic.written = min(0, TIDY_AFTER - left)

    def _note_commit(self, topic: _Topic, group: str, next_offset: int) -> None:
        """Remember a group's offset; it is written with the next append, or within a second."""
        name = (topic.row.number, group)
        self._committed[name] = self._commits[name] = next_offset
        if (self._flusher is None or self._flusher.done()) and not self._closed:
            self._flusher = asyncio.create_task(self._flush_commits(), name="event log commits")

    async def _flush_commits(self) -> None:
        await asyncio.sleep(COMMIT_S)
        with suppress(LogUnavailable):  # they are for display; the next append brings them
            await self._write([])

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
            rest_s = read_at + POLL_S - time.monotonic()
            if rest_s > 0 and topic.end - offset < READ_LIMIT // 2:
                await asyncio.sleep(rest_s)
            read_at = time.monotonic()
            end = topic.end
            try:
                records = topic.recall(offset) or await self._read(topic, offset, end)
            except LogUnavailable as error:
                log.warning("%s could not be read, trying again: %s", topic.row.name, error)
                await asyncio.sleep(STANDBY_S)
                continue
            offset = records[-1].offset + 1 if records else end  # none: compacted away
            yield records

    async def _read(self, topic: _Topic, offset: int, end: int) -> list[Record]:
        return await self._reading.run(lambda file: file.read(topic.row, offset, end, READ_LIMIT))

    async def _created(self, name: str) -> _Topic:
        """Return the topic, waiting until somebody has created it."""
        while True:
            topic = await self._known(name)
            if topic is not None:
                return topic
            await asyncio.sleep(STANDBY_S)

    async def _known(self, name: str) -> _Topic | None:
        if name not in self._topics:
            await self._load()
        return self._topics.get(name)

    async def _load(self) -> None:
        for row in await self._reading.run(lambda file: file.topics()):
            if row.name in self._topics:
                self._topics[row.name].grew(row.end)
            else:
                self._topics[row.name] = _Topic(row, row.end)

    # Seeing what other processes append.

    def _watch(self) -> None:
        if (self._watcher is None or self._watcher.done()) and not self._closed:
            self._watcher = asyncio.create_task(self._watch_ends(), name="event log watcher")

    async def _watch_ends(self) -> None:
        """Poll the ends of all topics, for all readers of this process.

        It runs on the event loop: ten microseconds for a page of shared memory, where a hop to a
        thread and back would cost ten times that, fifty times a second on an idle box.
        """
        file = TableFile(self._path)
        file.open()
        try:
            while True:
                await asyncio.sleep(POLL_S)
                with suppress(sqlite3.Error):
                    for row in file.topics():
                        if row.name in self._topics:
                            self._topics[row.name].grew(row.end)
        finally:
            file.close()


class _Thread:
    """A thread that owns a connection."""

    def __init__(self, name: str, file: TableFile) -> None:
        self._file = file
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def start(self) -> None:
        await self.run(lambda file: file.open())

    async def run(self, work: Callable[[TableFile], T]) -> T:
        """Run `work` on the thread; raises LogUnavailable for what the file cannot do now."""
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, work, self._file
            )
        except (sqlite3.Error, RuntimeError) as error:
            raise LogUnavailable(f"the event log's file: {error}") from error

    async def close(self) -> None:
        await self.run(lambda file: file.close())
        self._executor.shutdown(wait=False)


def _size(record: Record) -> int:
    return 200 + len(record.key) + len(record.value or b"")
