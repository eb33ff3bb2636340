"""Open a database by URL: SQLite files and PostgreSQL behind the same few calls.

Everything that has to know which of the two it talks to stands in this module. Stores take a
connection and never commit; whoever opened the transaction commits it, once, at the boundary.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, Row, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

Int64 = BigInteger().with_variant(Integer, "sqlite")
"""A signed 64-bit integer column, also where SQLite wants INTEGER for a row id."""

BUSY_TIMEOUT_MS = 10_000
POOL_SIZE = 8
POOL_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 30


class Database:
    """One service's database.

    `url` is `sqlite:///path` (or `sqlite:////absolute/path`) or `postgresql://user@host/name`;
    the asynchronous driver is chosen here.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        if backend not in ("sqlite", "postgresql"):
            raise ValueError(f"no {backend} database: want sqlite:///path or postgresql://…")
        self.is_sqlite = backend == "sqlite"
        self._writer = asyncio.Lock() if self.is_sqlite else None
        if self.is_sqlite:
            self.engine = _sqlite_engine(parsed.database or "")
        else:
            self.engine = create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                pool_size=POOL_SIZE,
                max_overflow=0,
                pool_timeout=POOL_TIMEOUT_S,
                pool_pre_ping=True,
                connect_args={"timeout": POOL_TIMEOUT_S, "command_timeout": STATEMENT_TIMEOUT_S},
            )

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Open a writing transaction: commit on leaving, roll back on an exception."""
        if self._writer is None:
            async with self.engine.begin() as connection:
                yield connection
        else:
            async with self._writer, self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads: it never waits for a writer."""
        async with self.engine.connect() as connection:
            await connection.execution_options(bourse_read=True)
            async with connection.begin():
                yield connection

    async def close(self) -> None:
        await self.engine.dispose()


def _sqlite_engine(path: str) -> AsyncEngine:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_reset_on_return=None,  # `reset` below does it
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver would begin a deferred transaction by itself, in which two read-then-write
        # writers lose updates without an error; with None, `begin` below is in charge.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("bourse_read")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    @event.listens_for(engine.sync_engine, "reset")
    def reset(connection: Any, _record: object, _state: object) -> None:
        # To roll back what has ended already would cost every transaction a hop to a thread.
        if connection.driver_connection.in_transaction:
            connection.rollback()

    return engine


async def insert_if_absent(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    returning: Sequence[Column[Any]],
) -> Sequence[Row[Any]]:
    """Insert the rows that collide with no unique key; return `returning` of those inserted."""
    if not rows:
        return []
    insert = _insert(connection, table).on_conflict_do_nothing().returning(*returning)
    return (await connection.execute(insert, list(rows))).all()


async def upsert(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str],
    values: Mapping[str, Any] | None = None,
) -> None:
    """Insert rows; where `key` exists already, set `values`, else the row's other columns.

    `values` maps a column's name to an expression, such as those of `add_excluded`.
    """
    if not rows:
        return
    insert = _insert(connection, table)
    update = values or {name: insert.excluded[name] for name in rows[0] if name not in key}
    await connection.execute(
        insert.on_conflict_do_update(index_elements=list(key), set_=dict(update)), list(rows)
    )


def add_excluded(connection: AsyncConnection, table: Table, names: Sequence[str]) -> dict[str, Any]:
    """`values` for `upsert` that add the new row's columns to the stored ones."""
    excluded = _insert(connection, table).excluded
    return {name: table.c[name] + excluded[name] for name in names}


def _insert(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)
