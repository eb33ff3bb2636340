"""A real database that goes away under a consumer and an outbox, and comes back."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database, insert_if_absent
from bourse.event_log import GENERATIONS, CaughtUp, Topic
from bourse.event_log.consumer import Consumer, tables
from bourse.event_log.envelope import envelope
from bourse.event_log.outbox import Publisher, enqueue
from bourse.event_log.table import TableLog
from bourse.v1.events_pb2 import Envelope
from tests.postgres import PostgresServer

DEADLINE_S = 60.0

metadata = MetaData()
consumer_tables = tables(metadata)
inbox = Table("inbox", metadata, Column("id", String, primary_key=True))


@pytest.mark.postgres
async def test_a_database_that_crashes_under_load_loses_nothing(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    log = TableLog(f"sqlite:///{tmp_path}/log.sqlite")
    await log.start()
    told = Topic("told")
    await log.create_topics([GENERATIONS, told])
    database = Database(await own_postgres.create("consumer"))
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        fresh = await insert_if_absent(
            connection, inbox, [{"id": each.id} for each in events], [inbox.c.id]
        )
        for row in fresh:
            await enqueue(connection, consumer_tables, told, b"key", row.id.encode())

    async def stored() -> int:
        async with database.read() as connection:
            return await connection.scalar(select(func.count()).select_from(inbox)) or 0

    async def until(number: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while await stored() < number:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def load(first: int, last: int) -> None:
        for number in range(first, last):
            event = envelope(f"{number}", "Tested", "load", "", b"")
            await log.append(GENERATIONS, [(b"key", event.SerializeToString())])

    publisher = Publisher(database, consumer_tables, log)
    consumer = Consumer(
        log, GENERATIONS, "group", database, consumer_tables, handle, after=publisher.wake
    )
    loops = [asyncio.create_task(consumer.run()), asyncio.create_task(publisher.run())]
    await load(0, 300)
    await until(100)
    await asyncio.to_thread(own_postgres.kill)
    await load(300, 600)
    assert consumer.alive()
    assert not any(each.done() for each in loops)
    await asyncio.to_thread(own_postgres.start)
    await until(600)

    shipped: list[bytes | None] = []
    async with asyncio.timeout(DEADLINE_S):
        async for each in log.follow(told):
            if isinstance(each, CaughtUp):
                continue
            shipped += [record.value for record in each]
            if len(set(shipped)) == 600:
                break
    for task in loops:
        task.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
    await log.close()
    await database.close()

    assert set(shipped) == {b"%d" % number for number in range(600)}
