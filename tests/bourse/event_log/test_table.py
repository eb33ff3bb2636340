"""What only the table log does: compaction, forgetting, several processes on one file."""

import time
from pathlib import Path

import pytest

from bourse.event_log import CATALOG, GENERATIONS, CaughtUp, Record, Topic, table_file
from bourse.event_log.table import TIDY_AFTER, TableLog
from bourse.event_log.table_file import TableFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


def log_at(path: Path) -> TableLog:
    return TableLog(f"sqlite:///{path}")


async def read(log: TableLog, topic: Topic) -> list[Record]:
    found: list[Record] = []
    async for each in log.follow(topic):
        if isinstance(each, CaughtUp):
            return found
        found += each
    raise AssertionError


async def test_compaction_keeps_the_last_record_of_each_key_and_its_place(path: Path) -> None:
    log = log_at(path)
    await log.start()
    await log.create_topics([CATALOG, GENERATIONS])
    await log.append(GENERATIONS, [(b"key-1", b"of another topic")] * 5)
    for number in range(3 * TIDY_AFTER // 10):
        await log.append(CATALOG, [(b"key-%d" % key, b"%d" % number) for key in range(10)])
    await log.append(CATALOG, [(b"key-3", None)])
    await log.close()

    file = TableFile(path)
    file.open()
    (row,) = [each for each in file.topics() if each.name == CATALOG.name]
    before = {record.key: record for record in file.read(row, 0, row.end, 10 * TIDY_AFTER)}
    left = file.compact(row)
    after = file.read(row, 0, row.end, 10 * TIDY_AFTER)
    file.close()

    assert left == len(after) == 10
    assert {record.key: record for record in after} == before
    assert before[b"key-3"].value is None, "a follower that was away must still meet it"

    log = log_at(path)
    await log.start()
    assert {record.key for record in await read(log, CATALOG)} == set(before)
    assert len(await read(log, GENERATIONS)) == 5
    await log.append(CATALOG, [(b"key-0", b"new")])
    newest = (await read(log, CATALOG))[-1]
    assert newest.offset == max(record.offset for record in after) + 1
    await log.close()


async def test_an_appending_log_compacts_by_itself(path: Path) -> None:
    log = log_at(path)
    await log.start()
    await log.create_topics([CATALOG])
    for number in range(10):
        await log.append(CATALOG, [(b"key", b"%d" % number)] * TIDY_AFTER)
    await log.append(CATALOG, [(b"other", b"")])
    await log.close()

    file = TableFile(path)
    file.open()
    (row,) = file.topics()
    assert len(file.read(row, 0, row.end, 20 * TIDY_AFTER)) <= TIDY_AFTER + 2
    file.close()


async def test_an_old_tombstone_goes_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_at(path)
    await log.start()
    await log.create_topics([CATALOG])
    await log.append(CATALOG, [(b"a", b"1"), (b"b", b"1"), (b"a", None)])
    await log.close()
    file = TableFile(path)
    file.open()
    (row,) = file.topics()
    assert file.compact(row) == 2
    monkeypatch.setattr(table_file, "TOMBSTONE_KEPT_MS", -1000)
    assert file.compact(row) == 1
    assert [record.key for record in file.read(row, 0, row.end, 10)] == [b"b"]
    file.close()

    log = log_at(path)
    await log.start()
    assert [record.key for record in await read(log, CATALOG)] == [b"b"]
    await log.close()


async def test_only_old_records_that_every_group_has_read_are_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TableFile(path)
    file.open()
    file.create([(GENERATIONS.name, False)])
    file.append({GENERATIONS.name: [(b"k", b"%d" % number) for number in range(10)]}, {})
    (row,) = file.topics()

    def values() -> list[bytes | None]:
        return [record.value for record in file.read(row, 0, row.end, 100)]

    file.append({}, {(row.number, "fast"): 8, (row.number, "slow"): 3})
    file.forget(row)
    assert len(values()) == 10, "they are not old"
    monkeypatch.setattr(table_file, "RECORD_KEPT_MS", -1000)
    file.forget(row)
    assert values() == [b"%d" % number for number in range(3, 10)]
    file.close()


async def test_a_topic_nobody_reads_is_never_forgotten(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "RECORD_KEPT_MS", -1000)
    log = log_at(path)
    await log.start()
    await log.create_topics([GENERATIONS])
    for _ in range(3):
        await log.append(GENERATIONS, [(b"k", b"v")] * TIDY_AFTER)
    assert len(await read(log, GENERATIONS)) == 3 * TIDY_AFTER
    await log.close()


async def test_timestamps_never_fall_when_the_clock_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_at(path)
    await log.start()
    await log.create_topics([GENERATIONS])
    await log.append(GENERATIONS, [(b"k", b"1")])
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns - 3600 * 10**9)
    await log.append(GENERATIONS, [(b"k", b"2")])
    first, second = await read(log, GENERATIONS)
    assert second.timestamp_ms >= first.timestamp_ms
    await log.close()
