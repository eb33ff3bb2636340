"""The durable spool of a producer: durable first, shipped later.

Three kinds of records stand in append-only segment files, each with its length and a CRC:

    intent      before the work begins: a restart learns what was under way
    checkpoint  how far it has come; the last one counts
    settle      how it ended: the event, as the log will carry it

A record is written before the call returns, so it survives a killed process. Against power loss
one thread syncs for all, at once when idle and every few milliseconds under load. The calls are
for one thread, the event loop's.

    directory/
      lock                  held by the one process that has the spool open
      shipped               how far the forwarder has come
      00000000000000000001  segments, in order
"""

import asyncio
import itertools
import logging
import mmap
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bourse.event_log import segments
from bourse.event_log.lock import FileLock
from bourse.event_log.segments import CHECKPOINT, INTENT, SETTLE

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 1024 * 1024
MAX_BYTES = 4 * 1024 * 1024 * 1024
SYNC_INTERVAL_S = 0.004


class SpoolFull(Exception):
    """The disk cap is reached: nothing new may begin. What has begun can still settle."""


class SpoolInUse(Exception):
    """Another process has this spool open."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A settle record, ready to be shipped. The next record begins at (segment, end)."""

    id: str
    key: bytes
    value: bytes
    time_ms: int
    segment: int
    end: int


@dataclass(frozen=True, slots=True)
class OpenIntent:
    """Work that began and never settled. `checkpoint` is None if it never came so far."""

    id: str
    intent: bytes
    checkpoint: bytes | None


class Spool:
    """A directory of segments. Call `open` first; nothing else is needed after a crash."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._directory = Path(directory)
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._lock = FileLock(self._directory / "lock")
        self._sequence = itertools.count(1)
        self._sizes: dict[int, int] = {}  # segment -> bytes, in order
        self._begun: dict[str, int] = {}  # id -> the segment its intent stands in
        self._recovered: dict[str, OpenIntent] = {}
        self._shipped = (0, 0)  # segment, offset
        self._current = 0
        self._descriptor = -1
        self._mapped = mmap.mmap(-1, 1)  # the segment being written
        self._mark_descriptor = -1
        self._syncer = _Syncer()
        self.settled = asyncio.Event()
        """Set by every settle; the forwarder waits for it."""
        self.disk_bytes = 0
        """The size of all segments."""
        self.depth = 0
        """How many settled records are not shipped yet."""
        self.bytes = 0
        """The size of the settled records that are not shipped yet."""

    def open(self) -> None:
        """Lock the directory and recover what the last process left. Raises SpoolInUse."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise SpoolInUse(str(self._directory))
        self._mark_descriptor = os.open(
            self._directory / "shipped", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        self._shipped = segments.decode_mark(os.pread(self._mark_descriptor, 64, 0)) or (0, 0)
        self._recover()
        self._rotate()
        self._syncer.start()
        if self.depth:
            self.settled.set()

    def close(self) -> None:
        """Sync and let go; what is not shipped stays for the next `open`."""
        self._syncer.stop()
        self._mapped.close()
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, self._sizes[self._current])
        for descriptor in (self._descriptor, self._mark_descriptor):
            if descriptor >= 0:
                os.fdatasync(descriptor)
                os.close(descriptor)
        self._descriptor = self._mark_descriptor = -1
        self._lock.release()

    # Writing.

    def next_seq(self) -> int:
        """Count 1, 2, … from `open` on, without a gap."""
        return next(self._sequence)

    @property
    def full(self) -> bool:
        """True when `intent` would raise SpoolFull."""
        return self.disk_bytes >= self._max_bytes and not self._make_room()

    def intent(self, name: str, data: bytes) -> None:
        """Write that the work of this name begins. Raises SpoolFull above the disk cap."""
        if self.disk_bytes >= self._max_bytes and not self._make_room():
            raise SpoolFull(f"the spool holds {self.disk_bytes} bytes")
        self._begun[name] = self._current
        self._write(INTENT, name, b"", data)

    def checkpoint(self, name: str, data: bytes) -> None:
        """Write how far the work has come; the last checkpoint replaces those before."""
        self._write(CHECKPOINT, name, b"", data)

    def settle(self, name: str, key: bytes, value: bytes) -> None:
        """Write how the work ended, as the event to ship. It is on disk when this returns.

        It needs no intent before it, and the disk cap does not stop it. Raises OSError when the
        disk itself is full: then nothing was written.
        """
        self.bytes += self._write(SETTLE, name, key, value)
        self.depth += 1
        self._begun.pop(name, None)
        self.settled.set()

    def _write(self, kind: int, name: str, key: bytes, value: bytes) -> int:
        data = segments.encode(kind, name, key, value)
        size = len(data)
        start = self._sizes[self._current]
        if start + size > len(self._mapped):
            self._rotate(size)
            start = 0
        # Into the page cache, as a write would, but with neither a system call nor a wait for the
        # sync that runs meanwhile. The disk holds the room already, so this cannot fail.
        self._mapped[start : start + size] = data
        self.disk_bytes += size
        self._sizes[self._current] = start + size
        if not self._syncer.dirty:
            self._syncer.wake()
        return size

    def _rotate(self, least_bytes: int = 0) -> None:
        """Turn to a new segment with its room on the disk. Raises OSError: then nothing changed."""
        number = max(self._current, self._shipped[0], *self._sizes, 0) + 1
        room = max(self._segment_bytes, least_bytes)
        path = self._path(number)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, room)
            mapped = mmap.mmap(descriptor, room)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        self._mapped.close()
        self._mapped = mapped
        if self._current:
            self._syncer.lengths[self._descriptor] = self._sizes[self._current]
        self._descriptor = descriptor
        self._current = number
        self._sizes[number] = 0
        self._syncer.turn_to(self._descriptor)
        directory = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # or a power loss forgets the new file's name
        finally:
            os.close(directory)

    # Shipping.

    def unshipped(self, limit: int | None = None) -> list[Settled]:
        """The settled records that are not shipped, oldest first, at most `limit`."""
        return list(itertools.islice(self._scan_unshipped(), limit))

    def mark_shipped(self, records: Sequence[Settled]) -> None:
        """Say that these, the first of `unshipped`, are in the log. Lost in a power loss, the
        mark is only older, and consumers meet duplicates."""
        last = records[-1]
        os.pwrite(self._mark_descriptor, segments.encode_mark(last.segment, last.end), 0)
        self._shipped = (last.segment, last.end)
        self.depth -= len(records)
        self.bytes -= sum(segments.size_of(each.id, each.key, each.value) for each in records)

    def delete_shipped(self, retention_s: float) -> None:
        """Delete, oldest first, segments that were shipped and last written so long ago.

        One in which something began that is still open stays, and all after it.
        """
        needed = min(self._begun.values(), default=self._current)
        whole = self._shipped[0] if self.depth else self._current
        for number in sorted(self._sizes):
            if number >= min(needed, whole, self._current):
                return
            path = self._path(number)
            if time.time() - path.stat().st_mtime < retention_s:
                return
            path.unlink()
            self.disk_bytes -= self._sizes.pop(number)

    @property
    def oldest_age_s(self) -> float:
        """How long the oldest unshipped record has waited; 0 when there is none.

        Any thread may ask.
        """
        try:
            oldest = next(self._scan_unshipped(), None)
        except FileNotFoundError:  # shipped and deleted meanwhile
            return 0.0
        return 0.0 if oldest is None else max(0.0, time.time() - oldest.time_ms / 1000)

    def _make_room(self) -> bool:
        self.delete_shipped(0)
        return self.disk_bytes < self._max_bytes

    def _scan_unshipped(self) -> Iterator[Settled]:
        if not self.depth:
            return
        segment, offset = self._shipped
        for number in sorted(self._sizes):
            if number < segment:
                continue
            start = offset if number == segment else 0
            for entry in segments.scan(self._path(number), start):
                if entry.kind == SETTLE:
                    yield Settled(
                        entry.id, entry.key, entry.value, entry.time_ms, number, entry.end
                    )

    # Recovery.

    def open_intents(self) -> list[OpenIntent]:
        """What the last process had begun and nobody has settled, as found by `open`."""
        return [found for found in self._recovered.values() if found.id in self._begun]

    def _recover(self) -> None:
        self.depth = self.bytes = self.disk_bytes = 0
        numbers = sorted(
            int(path.name) for path in self._directory.iterdir() if path.name.isdigit()
        )
        for number in numbers:
            path = self._path(number)
            end = 0
            for entry in segments.scan(path):
                self._recover_entry(entry, number)
                end = entry.end
            size = path.stat().st_size
            if end < size and segments.is_blank(path, end):
                os.truncate(path, end)  # room that a killed process had not used
            elif end < size:
                self._cut(path, end, size, torn=number == numbers[-1])
            if end:
                self._sizes[number] = end
                self.disk_bytes += end
            else:
                path.unlink()

    def _recover_entry(self, entry: segments.Entry, number: int) -> None:
        if entry.kind == INTENT:
            self._begun[entry.id] = number
            self._recovered[entry.id] = OpenIntent(entry.id, entry.value, None)
        elif entry.kind == CHECKPOINT and entry.id in self._recovered:
            intent = self._recovered[entry.id].intent
            self._recovered[entry.id] = OpenIntent(entry.id, intent, entry.value)
        elif entry.kind == SETTLE:
            self._begun.pop(entry.id, None)
            self._recovered.pop(entry.id, None)
            if (number, entry.end) > self._shipped:
                self.depth += 1
                self.bytes += segments.size_of(entry.id, entry.key, entry.value)

    def _cut(self, path: Path, end: int, size: int, *, torn: bool) -> None:
        """Cut what is not whole records: the last write of a killed machine, or damage."""
        if torn:
            log.warning("spool %s: cut a torn tail of %d bytes", path.name, size - end)
        else:
            kept = path.with_name(f"{path.name}.damaged")
            shutil.copyfile(path, kept)
            log.error(
                "spool %s is damaged at %d of %d bytes: the file is kept as %s",
                path.name, end, size, kept.name,
            )  # fmt: skip
        os.truncate(path, end)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020d}"


class _Syncer:
    """The thread that syncs the segment being written, once for all that was written before."""

    def __init__(self) -> None:
        self.dirty = False
        self._woken = threading.Event()
        self._descriptors: list[int] = []  # the last one is being written, the others are done
        self.lengths: dict[int, int] = {}  # of those that are done, without their unused room
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="spool sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; all but the last file are then synced and closed."""
        if self._thread is None:
            return
        self._stopped = True
        self._woken.set()
        self._thread.join()
        self._thread = None
        self._descriptors.clear()

    def wake(self) -> None:
        self.dirty = True
        self._woken.set()

    def turn_to(self, descriptor: int) -> None:
        """Sync this file from now on; sync the one before a last time and close it."""
        self._descriptors.append(descriptor)
        self.wake()

    def _run(self) -> None:
        while not self._stopped:
            self._woken.wait()
            self._woken.clear()
            started_at = time.monotonic()
            self._sync()
            rest_s = started_at + SYNC_INTERVAL_S - time.monotonic()
            if rest_s > 0 and not self._stopped:
                time.sleep(rest_s)
        self._sync()

    def _sync(self) -> None:
        self.dirty = False  # before syncing: what is written from here on wakes again
        try:
            while len(self._descriptors) > 1:
                done = self._descriptors[0]
                os.ftruncate(done, self.lengths.pop(done))
                os.fdatasync(done)
                os.close(self._descriptors.pop(0))
            os.fdatasync(self._descriptors[-1])
        except OSError:
            log.exception("the spool could not be synced")
