"""Prepared statements do on both databases what the ordinary ones do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, PrimaryKeyConstraint, Table, Text, select
from sqlalchemy.exc import IntegrityError, OperationalError

from bourse.database import Database, Int64
from bourse.direct import adding, any_of, inserting, prepared

metadata = MetaData()
visits = Table(
    "visit",
    metadata,
    Column("name", Text, nullable=False),
    Column("day", Integer, nullable=False),
    Column("count", Int64, nullable=False),
    PrimaryKeyConstraint("name", "day", name="visit_pk"),
)
insert_visit = inserting(visits)
add_visit = adding(visits, ("count",))
of_names = prepared(
    select(visits.c.name, visits.c.count)
    .where(any_of(visits.c.name, "names"))
    .order_by(visits.c.name),
    "names",
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


async def found(database: Database, *names: str) -> list[tuple[str, int]]:
    async with database.read() as connection:
        return [(row[0], row[1]) for row in await of_names.rows(connection, list(names))]


async def test_a_list_of_any_length_is_one_parameter(database: Database) -> None:
    rows = [(f"n{number:04d}", 1, 2**40 + number) for number in range(3000)]
    async with database.begin() as connection:
        await insert_visit.many(connection, rows)
        await insert_visit.many(connection, [])
    assert await found(database, *(name for name, _, _ in rows)) == [(n, c) for n, _, c in rows]
    assert await found(database, "n0002", "quote\"' and ünïcode") == [("n0002", 2**40 + 2)]
    assert await found(database) == []


async def test_adding_inserts_or_adds(database: Database) -> None:
    async with database.begin() as connection:
        await add_visit.many(connection, [("a", 1, 5), ("b", 1, 7)])
        await add_visit.many(connection, [("a", 1, 10)])
    assert await found(database, "a", "b") == [("a", 15), ("b", 7)]


async def test_what_is_written_belongs_to_the_callers_transaction(database: Database) -> None:
    async def fail() -> None:
        async with database.begin() as connection:
            await insert_visit.many(connection, [("a", 1, 1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await found(database, "a") == []


async def test_errors_are_those_of_any_other_statement(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.begin() as connection:
            await insert_visit.many(connection, [("a", 1, 1), ("a", 1, 2)])
    assert await found(database, "a") == []


async def test_a_database_that_is_away_is_an_operational_error(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/test.sqlite")
    async with database.begin() as connection:
        with pytest.raises(OperationalError):
            await of_names.rows(connection, ["a"])  # there is no such table
    await database.close()


async def test_parameters_named_in_another_order_are_refused(database: Database) -> None:
    wrong = prepared(of_names._build("sqlite"), "others")
    with pytest.raises(ValueError, match="others"):
        async with database.read() as connection:
            await wrong.rows(connection, ["a"])
