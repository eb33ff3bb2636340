"""The forwarder: everything settled reaches the log, in order, whatever the log or a kill does."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from sqlalchemy import Column, MetaData, String, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database, insert_if_absent
from bourse.event_log import GENERATIONS, CaughtUp, LogUnavailable, Topic
from bourse.event_log.consumer import Consumer, tables
from bourse.event_log.envelope import envelope
from bourse.event_log.forwarder import Forwarder
from bourse.event_log.kafka import KafkaLog
from bourse.event_log.spool import Spool
from bourse.event_log.table import TableLog
from bourse.v1.events_pb2 import Envelope
from tests.kafka import LocalBroker

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 60.0

metadata = MetaData()
consumer_tables = tables(metadata)
inbox = Table("inbox", metadata, Column("id", String, primary_key=True))
effects = Table("effects", metadata, Column("id", String))
"""No key: an effect that is stored twice counts twice."""


class FaultyLog:
    """Appends, fails and hangs as it is told; keeps what it acknowledged."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.appended: list[tuple[bytes, bytes | None]] = []
        self._faults = iter(faults)

    async def append(self, topic: Topic, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        fault = next(self._faults, "")
        if fault == "unknown":  # written, but the acknowledgement was lost
            self.appended += entries
        if fault in ("refused", "unknown"):
            raise LogUnavailable(fault)
        if fault == "hangs":
            await asyncio.sleep(3600)
        self.appended += entries


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", segment_bytes=2000)
    opened.open()
    yield opened
    opened.close()


@asynccontextmanager
async def running(*loops: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in loops]
    yield
    for each in tasks:
        each.cancel()
    for each in tasks:
        with suppress(asyncio.CancelledError):
            await each


async def drained(forwarder: Forwarder) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await forwarder.drain()


def settle(spool: Spool, count: int, first: int = 0) -> list[bytes]:
    values = [b"value %d" % number for number in range(first, first + count)]
    for number, value in enumerate(values, first):
        spool.settle(f"{number}", b"key", value)
    return values


async def test_everything_settled_is_shipped_in_order_as_it_was_spooled(spool: Spool) -> None:
    log = FaultyLog([])
    forwarder = Forwarder(spool, log, GENERATIONS)  # type: ignore[arg-type]
    values = settle(spool, 20)
    async with running(forwarder):
        await drained(forwarder)
        values += settle(spool, 700, first=20)
        await drained(forwarder)
    assert [value for _, value in log.appended] == values
    assert {key for key, _ in log.appended} == {b"key"}
    assert spool.depth == 0


async def test_a_log_that_refuses_and_hangs_gets_everything_in_the_end(spool: Spool) -> None:
    log = FaultyLog(["refused", "refused", "hangs", "refused"])
    forwarder = Forwarder(spool, log, GENERATIONS, append_timeout_s=0.05)  # type: ignore[arg-type]
    values = settle(spool, 30)
    async with running(forwarder):
        await drained(forwarder)
    assert [value for _, value in log.appended] == values


async def test_a_lost_acknowledgement_means_sent_again_never_left_out(spool: Spool) -> None:
    log = FaultyLog(["unknown"])
    forwarder = Forwarder(spool, log, GENERATIONS)  # type: ignore[arg-type]
    values = settle(spool, 5)
    async with running(forwarder):
        await drained(forwarder)
    assert [value for _, value in log.appended] == values + values


async def test_O6_while_the_log_is_away_the_spool_takes_on_and_counts(spool: Spool) -> None:
    log = FaultyLog(["hangs"] * 1000)
    forwarder = Forwarder(spool, log, GENERATIONS, append_timeout_s=0.01)  # type: ignore[arg-type]
    async with running(forwarder):
        settle(spool, 40)
        await asyncio.sleep(0)
        assert spool.depth == 40
        assert spool.bytes > 0
    assert log.appended == []


async def test_a_forwarder_that_starts_again_ships_only_what_is_left(
    spool: Spool, tmp_path: Path
) -> None:
    log = FaultyLog([])
    first = Forwarder(spool, log, GENERATIONS)  # type: ignore[arg-type]
    settle(spool, 10)
    async with running(first):
        await drained(first)
    settle(spool, 10, first=10)
    spool.close()

    spool.open()
    second = Forwarder(spool, log, GENERATIONS)  # type: ignore[arg-type]
    async with running(second):
        await drained(second)
    assert [value for _, value in log.appended] == [b"value %d" % n for n in range(20)]


def spooling(directory: Path, url: str = "", boot: str = "boot") -> "subprocess.Popen[str]":
    """A process that settles until it is killed."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/bourse/event_log/spooling.py"), str(directory), url,
         boot],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def kill_after(process: "subprocess.Popen[str]", count: int) -> list[str]:
    """kill -9 once `count` settles have returned; return the names of all that had."""
    assert process.stdout is not None
    with process.stdout:
        return _kill_after(process, process.stdout, count)


def _kill_after(process: "subprocess.Popen[str]", output: IO[str], count: int) -> list[str]:
    told = [output.readline().strip() for _ in range(count)]
    process.send_signal(signal.SIGKILL)
    rest = output.read()
    process.wait(10)
    # The last line may be half written.
    return told + rest.split("\n")[:-1]


async def everything(log: TableLog) -> list[str]:
    found: list[str] = []
    async for each in log.follow(GENERATIONS):
        if isinstance(each, CaughtUp):
            return found
        found += [Envelope.FromString(record.value or b"").id for record in each]
    raise AssertionError


async def test_M12_a_kill_after_settle_and_before_forward_ships_exactly_what_was_settled(
    tmp_path: Path,
) -> None:
    told = kill_after(spooling(tmp_path / "spool"), 200)

    spool = Spool(tmp_path / "spool")
    spool.open()
    log = TableLog(f"sqlite:///{tmp_path}/log.sqlite")
    await log.start()
    await log.create_topics([GENERATIONS])
    forwarder = Forwarder(spool, log, GENERATIONS)
    interrupted = spool.open_intents()
    async with running(forwarder):
        await drained(forwarder)
    shipped = await everything(log)
    await log.close()
    spool.close()

    # The killed process may have settled one more than it could tell of.
    assert shipped[: len(told)] == told
    assert len(shipped) <= len(told) + 1
    assert len(shipped) == len(set(shipped))
    for each in interrupted:
        assert each.id not in shipped
        assert each.intent == b"intent of " + each.id.encode()


async def test_M12_killed_again_and_again_while_forwarding_nothing_is_lost(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.sqlite"
    log = TableLog(url)
    await log.start()
    await log.create_topics([GENERATIONS])
    told: list[str] = []
    for boot in range(5):
        process = spooling(tmp_path / "spool", url, f"boot-{boot}")
        told += await asyncio.to_thread(kill_after, process, 60 + 37 * boot)

    spool = Spool(tmp_path / "spool")
    spool.open()
    forwarder = Forwarder(spool, log, GENERATIONS)
    async with running(forwarder):
        await drained(forwarder)
    shipped = await everything(log)
    await log.close()
    spool.close()

    assert set(told) <= set(shipped)
    # Each kill may have fallen between an append and its mark: duplicates, and always in order.
    first_seen = list(dict.fromkeys(shipped))
    assert [name for name in first_seen if name in set(told)] == told


@pytest.mark.kafka
async def test_O6_a_broker_killed_under_load_loses_nothing_and_doubles_nothing(
    own_kafka: LocalBroker, tmp_path: Path
) -> None:
    """kill -9 of Kafka between spool and consumer, and its restart some seconds later."""
    topic = Topic("generations")
    producing, consuming = KafkaLog(own_kafka.bootstrap), KafkaLog(own_kafka.bootstrap)
    await producing.start()
    await consuming.start()
    await producing.create_topics([topic], partitions=6)
    spool = Spool(tmp_path / "spool")
    spool.open()
    database = Database(f"sqlite:///{tmp_path}/consumer.sqlite")
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        fresh = await insert_if_absent(
            connection, inbox, [{"id": each.id} for each in events], [inbox.c.id]
        )
        if fresh:
            await connection.execute(insert(effects), [{"id": row.id} for row in fresh])

    async def stored(table: Table) -> int:
        async with database.read() as connection:
            return await connection.scalar(select(func.count()).select_from(table)) or 0

    async def until(number: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while await stored(effects) < number:
            assert time.monotonic() < deadline, f"{await stored(effects)} of {number} stored"
            await asyncio.sleep(0.05)

    async def load(numbers: range) -> None:
        for number in numbers:
            name = f"event-{number}"
            event = envelope(name, "Tested", "load", name, b"x" * 300)
            spool.settle(name, b"account-%d" % (number % 17), event.SerializeToString())
            if number % 10 == 0:
                await asyncio.sleep(0.005)

    consumer = Consumer(consuming, topic, "billing", database, consumer_tables, handle)
    forwarder = Forwarder(spool, producing, topic)
    async with running(consumer, forwarder):
        await load(range(500))
        await until(300)
        loading = asyncio.create_task(load(range(500, 3000)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(own_kafka.kill)
        await loading
        assert spool.depth > 0, "the spool holds what the broker has not"
        await asyncio.to_thread(own_kafka.start)
        await drained(forwarder)
        await until(3000)

    assert (await stored(inbox), await stored(effects)) == (3000, 3000)
    async with asyncio.timeout(10):
        await producing.close()
        await consuming.close()
    spool.close()
    await database.close()
