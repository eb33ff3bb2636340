"""The SQLite file of the table log: every statement, on one connection, on one thread.

The calls block; `TableLog` runs each on a thread of its own. They stand on the driver itself:
through the pool of `bourse.database` an append took eight hops between threads and 2.0 ms of CPU,
here it is one hop and a tenth of that. Revisit when the pool can run a whole function on its
thread.
"""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bourse.event_log.protocol import Record

BUSY_TIMEOUT_S = 10.0
TOMBSTONE_KEPT_MS = 24 * 3600 * 1000
RECORD_KEPT_MS = 30 * 24 * 3600 * 1000
FORGET_LIMIT = 5000
_SHIFT = 40

# A topic is a range of places: its number above, the offset below. So the records of a topic need
# no index but the primary key. Timestamps of a topic never fall.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_topic (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    compacted INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS log_entry (
    place INTEGER PRIMARY KEY,
    timestamp_ms INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB
);
CREATE TABLE IF NOT EXISTS log_group (
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (number, name)
) WITHOUT ROWID;
"""

Entries = Sequence[tuple[bytes, bytes | None]]


class TopicRow(NamedTuple):
    number: int
    name: str
    compacted: bool
    end: int


class TableFile:
    """One connection to the file; `open` makes the file and its tables where they are missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            raise sqlite3.ProgrammingError("the event log is closed")
        return self._opened

    def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Without an isolation level the driver begins nothing by itself.
        self._opened = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._opened.execute("PRAGMA journal_mode=WAL")
        self._opened.execute("PRAGMA synchronous=FULL")
        self._opened.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def topics(self) -> list[TopicRow]:
        rows = self._connection.execute(
            "SELECT number, name, compacted, next_offset FROM log_topic"
        ).fetchall()
        return [
            TopicRow(number, name, bool(compacted), end) for number, name, compacted, end in rows
        ]

    def create(self, topics: Sequence[tuple[str, bool]]) -> None:
        self._connection.executemany(
            "INSERT INTO log_topic (name, compacted, next_offset, last_ms) VALUES (?, ?, 0, 0)"
            " ON CONFLICT DO NOTHING",
            topics,
        )

    def append(
        self, entries: Mapping[str, Entries], commits: Mapping[tuple[int, str], int]
    ) -> dict[str, list[Record]]:
        """Append to topics and note groups' offsets in one transaction; return what was written."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            written = {name: self._place(name, found) for name, found in entries.items()}
            connection.executemany(
                "INSERT INTO log_group VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
                [(number, group, end) for (number, group), end in commits.items()],
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return written

    def _place(self, name: str, entries: Entries) -> list[Record]:
        now_ms = time.time_ns() // 1_000_000
        number, end, timestamp_ms = self._connection.execute(
            "UPDATE log_topic SET next_offset = next_offset + ?, last_ms = max(last_ms, ?)"
            " WHERE name = ? RETURNING number, next_offset, last_ms",
            (len(entries), now_ms, name),
        ).fetchall()[0]
        first = end - len(entries)
        place = (number << _SHIFT) + first
        self._connection.executemany(
            "INSERT INTO log_entry VALUES (?, ?, ?, ?)",
            [
                (place + index, timestamp_ms, key, value)
                for index, (key, value) in enumerate(entries)
            ],
        )
        return [
            Record(name, 0, first + index, key, value, timestamp_ms)
            for index, (key, value) in enumerate(entries)
        ]

    def read(self, topic: TopicRow, offset: int, end: int, limit: int) -> list[Record]:
        """The records from `offset` to `end`, at most `limit`."""
        base = topic.number << _SHIFT
        rows = self._connection.execute(
            "SELECT place, timestamp_ms, key, value FROM log_entry"
            " WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
            (base + offset, base + end, limit),
        ).fetchall()
        return [
            Record(topic.name, 0, place - base, key, value, timestamp_ms)
            for place, timestamp_ms, key, value in rows
        ]

    def first_since(self, topic: TopicRow, since_ms: int, end: int) -> int:
        """The offset of the first record not older than `since_ms`, or `end`."""
        base = topic.number << _SHIFT
        low, high = 0, end
        while low < high:
            middle = (low + high) // 2
            row = self._connection.execute(
                "SELECT place, timestamp_ms FROM log_entry"
                " WHERE place >= ? AND place < ? ORDER BY place LIMIT 1",
                (base + middle, base + high),
            ).fetchone()
            if row is None or row[1] >= since_ms:
                high = middle
            else:
                low = row[0] - base + 1
        return low

    def committed(self, number: int, group: str) -> int:
        row = self._connection.execute(
            "SELECT next_offset FROM log_group WHERE number = ? AND name = ?", (number, group)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def compact(self, topic: TopicRow) -> int:
        """Keep the last record of each key, and no tombstone that every follower has met.

        Return how many records are left.
        """
        within = {
            "first": topic.number << _SHIFT,
            "stop": topic.number + 1 << _SHIFT,
            "old_ms": time.time_ns() // 1_000_000 - TOMBSTONE_KEPT_MS,
        }
        self._connection.execute(
            "DELETE FROM log_entry WHERE place >= :first AND place < :stop AND ("
            " place NOT IN (SELECT max(place) FROM log_entry"
            "   WHERE place >= :first AND place < :stop GROUP BY key)"
            " OR (value IS NULL AND timestamp_ms < :old_ms))",
            within,
        )
        left = self._connection.execute(
            "SELECT count(*) FROM log_entry WHERE place >= :first AND place < :stop", within
        ).fetchone()
        return int(left[0])

    def forget(self, topic: TopicRow) -> None:
        """Delete old records that every group has read, some at a time."""
        base = topic.number << _SHIFT
        self._connection.execute(
            "DELETE FROM log_entry WHERE timestamp_ms < ? AND place IN ("
            " SELECT place FROM log_entry WHERE place >= ? AND place < ? + ("
            "  SELECT coalesce(min(next_offset), 0) FROM log_group WHERE number = ?)"
            " ORDER BY place LIMIT ?)",
            (
                time.time_ns() // 1_000_000 - RECORD_KEPT_MS,
                base,
                base,
                topic.number,
                FORGET_LIMIT,
            ),
        )
