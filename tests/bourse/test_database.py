"""Both databases keep the promises that stores rely on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, func, select, update

from bourse.database import Database, Int64, add_excluded, insert_if_absent, upsert

metadata = MetaData()
counters = Table(
    "counter",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", Int64, nullable=False),
)


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path}/test.sqlite")
    else:
        opened = Database(request.getfixturevalue("postgres").url)
    async with opened.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield opened
    await opened.close()


async def value_of(database: Database, name: str) -> int | None:
    async with database.read() as connection:
        return (
            await connection.execute(select(counters.c.value).where(counters.c.name == name))
        ).scalar_one_or_none()


async def test_two_writers_that_read_first_lose_no_update(database: Database) -> None:
    async with database.begin() as connection:
        await upsert(connection, counters, [{"name": "a", "value": 0}], ["name"])

    async def add_one() -> None:
        for _ in range(25):
            async with database.begin() as connection:
                query = select(counters.c.value).where(counters.c.name == "a").with_for_update()
                current = (await connection.execute(query)).scalar_one()
                await connection.execute(update(counters).values(value=current + 1))

    await asyncio.gather(add_one(), add_one(), add_one(), add_one())
    assert await value_of(database, "a") == 100


async def test_an_exception_rolls_the_whole_transaction_back(database: Database) -> None:
    async def fail_midway() -> None:
        async with database.begin() as connection:
            await upsert(connection, counters, [{"name": "a", "value": 1}], ["name"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_midway()
    assert await value_of(database, "a") is None


async def test_insert_if_absent_returns_only_what_was_new(database: Database) -> None:
    rows = [{"name": name, "value": 1} for name in "abc"]
    async with database.begin() as connection:
        first = await insert_if_absent(connection, counters, rows[:2], [counters.c.name])
        again = await insert_if_absent(connection, counters, rows, [counters.c.name])
    assert sorted(row.name for row in first) == ["a", "b"]
    assert [row.name for row in again] == ["c"]


async def test_upsert_adds_to_what_is_stored(database: Database) -> None:
    for amount in (5, 7):
        async with database.begin() as connection:
            await upsert(
                connection,
                counters,
                [{"name": "a", "value": amount}, {"name": f"b{amount}", "value": amount}],
                ["name"],
                add_excluded(connection, counters, ["value"]),
            )
    assert await value_of(database, "a") == 12
    async with database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(counters))).scalar() == 3


async def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    async with database.begin() as connection:
        await upsert(connection, counters, [{"name": "a", "value": 1}], ["name"])
        async with asyncio.timeout(5):
            assert await value_of(database, "a") is None  # not committed yet
    assert await value_of(database, "a") == 1


async def test_transactions_cancelled_anywhere_leave_no_trace_and_no_lock(
    database: Database,
) -> None:
    async def write() -> None:
        async with database.begin() as connection:
            await upsert(connection, counters, [{"name": "a", "value": 1}], ["name"])
            await asyncio.Event().wait()

    for turns in range(40):
        writing = asyncio.create_task(write())
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert await value_of(database, "a") is None
    async with database.begin() as connection:
        await upsert(connection, counters, [{"name": "a", "value": 2}], ["name"])
    assert await value_of(database, "a") == 2
