"""Run statements at the driver, compiled once: for batches that count microseconds per row.

Building and running a Core statement costs some 400 microseconds, a list of rows as dictionaries a
few more each; here a statement is compiled at its first use for each database and costs a tenth.
Parameters are positional, rows are plain tuples, and no column type converts anything: SQLite
gives 0 and 1 for booleans. Errors are SQLAlchemy's own, as from any other statement.
"""

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import aiosqlite
from sqlalchemy import ClauseElement, Column, ColumnElement, Integer, Table, Text, bindparam
from sqlalchemy import insert as core_insert
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = Sequence[Any]


class any_of(ColumnElement[bool]):  # noqa: N801 (reads as the operator that it is)
    """`column` is one of a list of texts or integers, a single parameter named `name`.

    So the statement's text does not depend on the list's length.
    """

    inherit_cache = False

    def __init__(self, column: Column[Any], name: str) -> None:
        self.column = column
        self.as_json = bindparam(name, type_=Text())
        item = column.type if isinstance(column.type, Integer) else Text()
        self.as_array = bindparam(name, type_=postgresql.ARRAY(item))


@compiles(any_of, "sqlite")
def _any_of_json(element: any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = compiler.process(element.column, **kw), compiler.process(element.as_json, **kw)
    return f"{column} IN (SELECT value FROM json_each({values}))"


@compiles(any_of, "postgresql")
def _any_of_array(element: any_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = (
        compiler.process(element.column, **kw),
        compiler.process(element.as_array, **kw),
    )
    return f"{column} = ANY ({values})"


class Prepared:
    """A statement whose parameters are given in the order of `names`."""

    def __init__(self, build: Callable[[str], ClauseElement], names: Sequence[str]) -> None:
        """`build` makes the statement for `sqlite` or `postgresql`."""
        self._build = build
        self._names = tuple(names)
        self._texts: dict[str, str] = {}

    async def rows(self, connection: AsyncConnection, *parameters: Any) -> Sequence[Sequence[Any]]:
        """Run it once; a list among the parameters is the list of an `any_of`."""
        text = self._text(connection.dialect)
        driver = await _sqlite_driver(connection)
        if driver is None:
            values = tuple(list(p) if isinstance(p, list | set) else p for p in parameters)
            return (await connection.exec_driver_sql(text, values)).all()
        values = tuple(json.dumps(list(p)) if isinstance(p, list | set) else p for p in parameters)
        try:
            found: Sequence[Sequence[Any]] = list(await driver.execute_fetchall(text, values))
        except sqlite3.Error as error:
            raise _wrapped(text, error, connection.dialect) from error
        return found

    async def many(self, connection: AsyncConnection, rows: Sequence[Parameters]) -> None:
        """Run it for each row of parameters; none is no work."""
        if not rows:
            return
        text = self._text(connection.dialect)
        driver = await _sqlite_driver(connection)
        if driver is None:
            await connection.exec_driver_sql(text, [tuple(row) for row in rows])
            return
        try:
            await driver.executemany(text, rows)
        except sqlite3.Error as error:
            raise _wrapped(text, error, connection.dialect) from error

    def _text(self, dialect: Dialect) -> str:
        text = self._texts.get(dialect.name)
        if text is None:
            compiled = self._build(dialect.name).compile(dialect=dialect)
            order = tuple(getattr(compiled, "positiontup", None) or ())
            if order != self._names:
                raise ValueError(f"parameters come as {order}, named as {self._names}: {compiled}")
            text = self._texts[dialect.name] = str(compiled)
        return text


def prepared(statement: ClauseElement, *names: str) -> Prepared:
    """A statement that is written alike for both databases."""
    return Prepared(lambda _: statement, names)


def inserting(table: Table) -> Prepared:
    """Insert rows whose values stand in the order of the table's columns."""
    names = [column.name for column in table.columns]
    statement = core_insert(table).values({name: bindparam(name) for name in names})
    return Prepared(lambda _: statement, names)


def adding(table: Table, names: Sequence[str]) -> Prepared:
    """Insert rows; where the primary key exists already, add the columns `names` to the stored."""
    columns = [column.name for column in table.columns]

    def build(dialect: str) -> ClauseElement:
        insert: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table)
        insert = insert.values({name: bindparam(name) for name in columns})
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=list(table.primary_key.columns),
            set_={name: table.c[name] + insert.excluded[name] for name in names},
        )

    return Prepared(build, columns)


async def _sqlite_driver(connection: AsyncConnection) -> aiosqlite.Connection | None:
    """The driver's connection where it is SQLite's, whose transaction was begun by a statement.

    PostgreSQL's driver begins one only when SQLAlchemy asks for it, so it is not gone around.
    """
    if connection.dialect.name != "sqlite":
        return None
    driver = (await connection.get_raw_connection()).driver_connection
    if not isinstance(driver, aiosqlite.Connection):
        raise TypeError(f"SQLite through {type(driver).__name__}")
    return driver


def _wrapped(text: str, error: sqlite3.Error, dialect: Dialect) -> BaseException:
    return DBAPIError.instance(text, None, error, sqlite3.Error, dialect=dialect)
