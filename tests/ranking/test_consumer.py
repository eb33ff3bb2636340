"""From the event log to the rollups: replays, redelivery, records that nothing can be done with."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from bourse.database import Database
from bourse.event_log import GENERATIONS
from bourse.event_log.consumer import Consumer
from bourse.event_log.table import TableLog
from bourse.v1.events_pb2 import AttemptFinished
from services.ranking.consumer import Counter
from services.ranking.main import GROUP
from services.ranking.tables import consumer_tables
from tests.ranking.builders import attempt, wrapped
from tests.ranking.test_counting import HASH, models, rollups

offsets = consumer_tables.consumer_offset
dead_letter = consumer_tables.dead_letter


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[TableLog]:
    made = TableLog(f"sqlite:///{tmp_path}/log.sqlite")
    await made.start()
    await made.create_topics([GENERATIONS])
    yield made
    await made.close()


async def publish(log: TableLog, *events: AttemptFinished) -> None:
    entries = [(event.account.encode(), wrapped(event).SerializeToString()) for event in events]
    await log.append(GENERATIONS, entries)


async def consume_up_to(log: TableLog, database: Database, offset: int) -> None:
    """Run a consumer, as a process would, until its stored position is `offset`."""
    consumer = Consumer(log, GENERATIONS, GROUP, database, consumer_tables, Counter(HASH).handle)
    running = asyncio.create_task(consumer.run())
    deadline = time.monotonic() + 20
    try:
        while True:
            async with database.read() as connection:
                position = await connection.scalar(select(func.max(offsets.c.next_offset)))
            if position == offset:
                return
            assert not running.done(), running.exception()
            assert time.monotonic() < deadline, f"at {position}, not at {offset}"
            await asyncio.sleep(0.01)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_replaying_the_topic_from_zero_changes_no_row(
    database: Database, log: TableLog
) -> None:
    events = [attempt(f"g{n}", prompt=n, model=f"m{n % 3}") for n in range(30)]
    await publish(log, *events, *events[:20])
    await consume_up_to(log, database, 50)
    before = await rollups(database)
    assert sum(row[2] for row in before["model_hour"]) == 30  # type: ignore[misc]
    async with database.begin() as connection:
        await connection.execute(update(offsets).values(next_offset=0))
    await consume_up_to(log, database, 50)
    assert await rollups(database) == before


async def test_a_poison_record_is_set_aside_and_the_rest_counts(
    database: Database, log: TableLog
) -> None:
    await publish(log, attempt("g1"))
    await publish(log, attempt("g2", model=""))
    await log.append(GENERATIONS, [(b"account-1", b"\xff\xff")])
    await publish(log, attempt("g3"))
    await consume_up_to(log, database, 4)
    assert await models(database) == {"author/model": (2, 60, 24, 14)}
    async with database.read() as connection:
        found = await connection.execute(
            select(dead_letter.c.record_offset, dead_letter.c.error_class).order_by(
                dead_letter.c.record_offset
            )
        )
        assert [tuple(row) for row in found] == [(1, "Malformed"), (2, "NotAnEnvelope")]
