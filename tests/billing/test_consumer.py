"""Billing's consumer on a real event log: what it quarantines, and that it goes on."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from bourse.event_log import GENERATIONS, EventLog, dead_letter_topic, open_event_log
from bourse.event_log.consumer import Consumer
from bourse.v1.events_pb2 import AttemptFinished, Outcome
from services.billing import consumer
from services.billing.tables import consumer_tables, metadata
from tests.billing.builders import Books, finished, wrapped

CHARGE = 600_000


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[EventLog]:
    opened = open_event_log(f"sqlite:///{tmp_path}/log.sqlite")
    await opened.start()
    await opened.create_topics([GENERATIONS, dead_letter_topic(GENERATIONS)])
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def consuming(books: Books, log: EventLog) -> AsyncIterator[Consumer]:
    reader = Consumer(
        log, GENERATIONS, consumer.GROUP, books.database, consumer_tables, consumer.handle
    )
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)


async def publish(log: EventLog, *events: AttemptFinished) -> None:
    await log.append(
        GENERATIONS, [(e.account.encode(), wrapped(e).SerializeToString()) for e in events]
    )


async def dead(books: Books) -> list[tuple[str, str]]:
    table = metadata.tables["dead_letter"]
    async with books.database.read() as connection:
        rows = await connection.execute(
            select(table.c.event_id, table.c.reason).order_by(table.c.record_offset)
        )
        return [(row[0], row[1].partition(":")[0]) for row in rows]


def posted(books: Books, *generations: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return all([(await books.generation(g)).attempts for g in generations])

    return condition


async def test_M13_twenty_deliveries_of_one_event_post_once(books: Books, log: EventLog) -> None:
    async with consuming(books, log):
        await publish(log, *[finished("01A")] * 15)
        await until(posted(books, "01A"))
        await publish(log, *[finished("01A")] * 5, finished("01B"))
        await until(posted(books, "01B"))
    assert (await books.balance()).used_nano == 2 * CHARGE
    assert await dead(books) == []


async def test_M13_replaying_the_whole_topic_changes_no_row(books: Books, log: EventLog) -> None:
    def events(number: int) -> list[AttemptFinished]:
        return [
            finished(f"01{number}A"),
            finished(f"01{number}B", 2, tokens=20),
            finished(f"01{number}B", 1, tokens=10),
            finished(f"01{number}C", outcome=Outcome.OUTCOME_LOST),
        ]

    async with consuming(books, log):
        await publish(log, *(e for number in range(20) for e in events(number)))
        await until(posted(books, "0119C"))
    offsets = "consumer_offset"
    before = {name: rows for name, rows in (await books.rows()).items() if name != offsets}
    async with books.database.begin() as connection:
        table = metadata.tables[offsets]
        await connection.execute(table.update().values(next_offset=0))
    async with consuming(books, log):
        await publish(log, finished("01Z", outcome=Outcome.OUTCOME_FAILED, tokens=0))
        await until(posted(books, "01Z"))
    after = {name: rows for name, rows in (await books.rows()).items() if name != offsets}
    for name, rows in before.items():
        new = [row for row in after[name] if row not in rows]
        assert len(after[name]) - len(rows) == (1 if name == "attempt" else 0)
        assert all(name in ("attempt", "usage_day") for _ in new)


async def test_M10_what_does_not_hold_is_quarantined_and_its_neighbours_post(
    books: Books, log: EventLog
) -> None:
    negative = finished("01B")
    negative.usage[0].count = -10
    mispriced = finished("01D")
    mispriced.list_nano -= 1
    async with consuming(books, log) as reader:
        await publish(log, finished("01A"), negative, finished("01C"), mispriced, finished("01E"))
        await until(posted(books, "01A", "01C", "01E"))
        assert reader.quarantined == 2
    assert await dead(books) == [
        ("01B:attempt:1", "absurd_usage"),
        ("01D:attempt:1", "rate_mismatch"),
    ]
    assert (await books.balance()).used_nano == 3 * CHARGE
    assert not (await books.generation("01B")).attempts


async def test_other_content_under_a_known_id_is_quarantined(books: Books, log: EventLog) -> None:
    async with consuming(books, log):
        await publish(log, finished("01A"))
        await until(posted(books, "01A"))
        await publish(log, finished("01A", tokens=5), finished("01B"))
        await until(posted(books, "01B"))
    assert await dead(books) == [("01A:attempt:1", "other_content")]
    assert (await books.balance()).used_nano == 2 * CHARGE


async def test_a_quarantined_event_goes_to_the_dead_letter_topic(
    books: Books, log: EventLog
) -> None:
    bad = finished("01A")
    bad.commission_nano += 1
    async with consuming(books, log):
        await publish(log, bad, finished("01B"))
        await until(posted(books, "01B"))
    table = metadata.tables["outbox"]
    async with books.database.read() as connection:
        topics = (await connection.scalars(select(table.c.topic))).all()
    assert topics == [dead_letter_topic(GENERATIONS).name]
