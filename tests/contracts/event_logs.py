"""The two event logs, as one parametrised fixture, and what the suites share."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from sqlalchemy import Column, MetaData, String, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database, insert_if_absent
from bourse.event_log import Batch, CaughtUp, EventLog, Record, Topic, open_event_log
from bourse.event_log.consumer import tables
from bourse.event_log.envelope import envelope
from bourse.v1.events_pb2 import Envelope
from tests.kafka import Broker

DEADLINE_S = 60.0
LOGS = [
    pytest.param("table", id="table"),
    pytest.param("kafka", id="kafka", marks=pytest.mark.kafka),
]

metadata = MetaData()
consumer_tables = tables(metadata)
inbox = Table("inbox", metadata, Column("id", String, primary_key=True))
"""What the tests' consumers leave: one row for each event, whatever was delivered."""


class World(Protocol):
    """A log that can be opened again, as another process would."""

    def name(self, prefix: str) -> str: ...
    def open(self) -> EventLog: ...


class TableWorld:
    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite:///{directory}/event_log.sqlite"

    def name(self, prefix: str) -> str:
        return prefix

    def open(self) -> EventLog:
        return open_event_log(self.url)


class KafkaWorld:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def name(self, prefix: str) -> str:
        return self._broker.name(prefix)

    def open(self) -> EventLog:
        return open_event_log(self._broker.url)


def world_of(kind: str, request: pytest.FixtureRequest) -> World:
    if kind == "table":
        return TableWorld(request.getfixturevalue("tmp_path"))
    return KafkaWorld(request.getfixturevalue("kafka"))


@dataclass
class Places:
    """Positions in memory, as a consumer's database would hold them."""

    next: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)

    async def assigned(
        self, topic: str, partitions: Sequence[int]
    ) -> Mapping[int, tuple[int, int]]:
        for partition in partitions:
            self.epochs[partition] = self.epochs.get(partition, 0) + 1
        return {each: (self.next.get(each, 0), self.epochs[each]) for each in partitions}

    def store(self, batch: Batch) -> None:
        self.next.update(batch.next_offsets)


async def take(
    log: EventLog,
    topic: Topic,
    group: str,
    places: Places,
    count: int,
    *,
    store: bool = True,
    commit: bool = True,
) -> list[Record]:
    """Consume until `count` records have come; then leave, storing and committing each batch."""
    found: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        async with aclosing(cast(Any, log.consume(topic, group, places))) as batches:
            async for batch in batches:
                found += batch.records
                if store:
                    places.store(batch)
                if commit:
                    await batch.commit()
                if len(found) >= count:
                    return found
    raise AssertionError


async def follow_until(
    log: EventLog, topic: Topic, done: Callable[[list[Record], bool], bool], **since: int
) -> list[Record]:
    """Follow until `done(records so far, caught up)`."""
    found: list[Record] = []
    caught_up = False
    async with asyncio.timeout(DEADLINE_S):
        async with aclosing(cast(Any, log.follow(topic, **since))) as given:
            async for each in given:
                if isinstance(each, CaughtUp):
                    assert not caught_up, "CaughtUp comes once"
                    caught_up = True
                else:
                    found += each
                if done(found, caught_up):
                    return found
    raise AssertionError


async def eventually(
    check: Callable[[], Awaitable[bool]], what: str, timeout_s: float = DEADLINE_S
) -> None:
    """Poll until it holds; fail after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not await check():
        assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s: {what}"
        await asyncio.sleep(0.02)


def event(name: str, data: bytes = b"") -> bytes:
    return envelope(name, "Tested", "tests", name, data).SerializeToString()


async def remember(connection: AsyncConnection, events: list[Envelope]) -> None:
    """The simplest handler: an inbox and no effects."""
    await insert_if_absent(connection, inbox, [{"id": each.id} for each in events], [inbox.c.id])


async def create(database: Database) -> None:
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)


async def count(database: Database, table: Table) -> int:
    async with database.read() as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0
