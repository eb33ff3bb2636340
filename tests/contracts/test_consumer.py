"""The consumer loop and the outbox, on the table log with SQLite and on Kafka with PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse import telemetry
from bourse.database import Database
from bourse.event_log import Batch, EventLog, Topic, dead_letter_topic
from bourse.event_log.consumer import Consumer, Fenced, TooManyFailures, Transient
from bourse.event_log.envelope import TOMBSTONE, envelope
from bourse.event_log.outbox import Publisher, enqueue
from bourse.event_log.replay import replay
from bourse.v1.events_pb2 import Envelope, Quarantined
from tests.contracts.event_logs import (
    World,
    consumer_tables,
    count,
    create,
    event,
    eventually,
    follow_until,
    inbox,
    remember,
    world_of,
)

WORLDS = [
    pytest.param(("table", "sqlite"), id="table-sqlite"),
    pytest.param(
        ("kafka", "postgres"),
        id="kafka-postgres",
        marks=[pytest.mark.kafka, pytest.mark.postgres],
    ),
]


class Bench:
    """A topic, a database, and consumers of the one into the other."""

    def __init__(self, world: World, log: EventLog, topic: Topic, url: str) -> None:
        self.world = world
        self.log = log
        self.topic = topic
        self.url = url
        self.database = Database(url)
        self.group = world.name("group")

    def consumer(self, handle: Any = remember, **options: Any) -> Consumer:
        return Consumer(
            self.log, self.topic, self.group, self.database, consumer_tables, handle, **options
        )

    async def publish(self, *names: str, key: bytes = b"key") -> None:
        await self.log.append(self.topic, [(key, event(name)) for name in names])

    async def stored(self) -> list[str]:
        async with self.database.read() as connection:
            return sorted(await connection.scalars(select(inbox.c.id)))

    async def position(self) -> int:
        rows = consumer_tables.consumer_offset
        async with self.database.read() as connection:
            return sum(await connection.scalars(select(rows.c.next_offset)))

    async def dead_letters(self) -> list[Any]:
        rows = consumer_tables.dead_letter
        async with self.database.read() as connection:
            return list(await connection.execute(select(rows).order_by(rows.c.id)))

    async def until_stored(self, number: int) -> None:
        async def there() -> bool:
            return await count(self.database, inbox) >= number

        await eventually(there, f"{number} events stored")

    async def until_read(self, number: int) -> None:
        async def there() -> bool:
            return await self.position() >= number

        await eventually(there, f"position {number}")


@pytest.fixture(params=WORLDS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    log_kind, database_kind = request.param
    url = f"sqlite:///{tmp_path}/consumer.sqlite"
    if database_kind == "postgres":
        url = request.getfixturevalue("postgres").url
    world = world_of(log_kind, request)
    log = world.open()
    await log.start()
    topic = Topic(world.name("events"))
    await log.create_topics([topic, dead_letter_topic(topic)], partitions=2)
    made = Bench(world, log, topic, url)
    await create(made.database)
    yield made
    await log.close()
    await made.database.close()


@asynccontextmanager
async def running(*loops: Any) -> AsyncIterator[None]:
    """Run loops as background tasks; what one raises fails the test."""
    tasks = [asyncio.create_task(each.run()) for each in loops]
    try:
        yield
        for each in tasks:
            if each.done():
                each.result()
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def failing_on(*names: str, error: type[Exception] = ValueError) -> Any:
    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        for each in events:
            await remember(connection, [each])
            if each.id in names:
                raise error(f"{each.id} cannot be")

    return handle


async def test_events_are_stored_once_and_the_position_moves(bench: Bench) -> None:
    await bench.publish("a", "b", "c")
    called: list[None] = []
    async with running(bench.consumer(after=lambda: called.append(None))):
        await bench.until_read(3)
    assert await bench.stored() == ["a", "b", "c"]
    assert called


async def test_M13_a_restart_reads_on_and_a_replay_from_zero_changes_no_row(bench: Bench) -> None:
    await bench.publish("a", "b")
    async with running(bench.consumer()):
        await bench.until_read(2)
    await bench.publish("c")
    async with running(bench.consumer()):
        await bench.until_read(3)
    assert await bench.stored() == ["a", "b", "c"]

    async with bench.database.begin() as connection:
        await connection.execute(update(consumer_tables.consumer_offset).values(next_offset=0))
    async with running(bench.consumer()):
        await bench.until_read(3)
    assert await bench.stored() == ["a", "b", "c"]


async def test_M13_the_same_event_twenty_times_has_one_effect(bench: Bench) -> None:
    for _ in range(4):
        await bench.publish(*["again"] * 5)
    async with running(bench.consumer()):
        await bench.until_read(20)
    assert await bench.stored() == ["again"]


async def test_a_poison_event_is_set_aside_and_the_rest_is_stored(bench: Bench) -> None:
    names = [f"event-{number:02}" for number in range(40)]
    await bench.publish(*names)
    consumer = bench.consumer(failing_on("event-07", "event-23"))
    async with running(consumer):
        await bench.until_read(40)

    assert await bench.stored() == [each for each in names if each[-2:] not in ("07", "23")]
    first, second = await bench.dead_letters()
    assert (first.event_id, second.event_id) == ("event-07", "event-23")
    assert (first.error_class, first.reason) == ("ValueError", "event-07 cannot be")
    assert first.topic == bench.topic.name
    assert second.record_offset - first.record_offset == 16
    assert Envelope.FromString(first.value).id == "event-07"
    assert consumer.quarantined == 2


async def test_bytes_that_are_no_envelope_are_set_aside(bench: Bench) -> None:
    await bench.publish("a")
    await bench.log.append(bench.topic, [(b"key", b"\xff\xff nonsense"), (b"key", b"")])
    await bench.publish("b")
    async with running(bench.consumer()):
        await bench.until_read(4)
    assert await bench.stored() == ["a", "b"]
    letters = await bench.dead_letters()
    assert [each.error_class for each in letters] == ["NotAnEnvelope", "NotAnEnvelope"]
    assert letters[0].value == b"\xff\xff nonsense"


async def test_what_was_set_aside_reaches_the_dead_letter_topic_once(bench: Bench) -> None:
    await bench.publish("good", "bad")
    publisher = Publisher(bench.database, consumer_tables, bench.log)
    async with running(bench.consumer(failing_on("bad"), after=publisher.wake), publisher):
        await bench.until_read(2)

        async def shipped() -> bool:
            return await count(bench.database, consumer_tables.outbox) == 0

        await eventually(shipped, "the outbox is empty")
    async with bench.database.begin() as connection:  # replayed, it is not told again
        await connection.execute(update(consumer_tables.consumer_offset).values(next_offset=0))
    async with running(bench.consumer(failing_on("bad")), publisher):
        await bench.until_read(2)
        await eventually(shipped, "the outbox is empty")

    letters = await follow_until(
        bench.log, dead_letter_topic(bench.topic), lambda _, caught_up: caught_up
    )
    (letter,) = letters
    told = Envelope.FromString(letter.value or b"")
    assert told.type == "Quarantined"
    quarantined = Quarantined.FromString(told.data)
    assert quarantined.group == bench.group
    assert (quarantined.topic, quarantined.event_id) == (bench.topic.name, "bad")
    assert (quarantined.error_class, quarantined.reason) == ("ValueError", "bad cannot be")
    assert Envelope.FromString(quarantined.value).id == "bad"
    assert letter.key == quarantined.key == b"key"
    assert len(await bench.dead_letters()) == 1


async def test_a_dead_letter_that_is_replayed_is_stored_once_it_can_be(bench: Bench) -> None:
    await bench.publish("good", "bad", "worse")
    publisher = Publisher(bench.database, consumer_tables, bench.log)
    async with running(bench.consumer(failing_on("bad", "worse")), publisher):
        await bench.until_read(3)
    first, _ = await bench.dead_letters()

    assert await replay(bench.database, consumer_tables, [first.id]) == 1
    async with running(bench.consumer(), publisher):
        await bench.until_read(4)
        assert await bench.stored() == ["bad", "good"]
        assert await replay(bench.database, consumer_tables) == 1
        publisher.wake()
        await bench.until_read(5)
    assert await bench.stored() == ["bad", "good", "worse"]
    assert await bench.dead_letters() == []


async def test_when_everything_fails_the_consumer_stops_and_skips_nothing(bench: Bench) -> None:
    await bench.publish(*(f"event-{number}" for number in range(30)))
    consumer = bench.consumer(failing_on(*(f"event-{n}" for n in range(30))), failures_in_a_row=5)
    with pytest.raises(TooManyFailures):
        async with asyncio.timeout(60):
            await consumer.run()
    assert await bench.position() == 0
    assert await bench.dead_letters() == []

    async with running(bench.consumer()):  # mended
        await bench.until_stored(30)


async def test_failures_in_a_row_count_over_batches_and_restarts(bench: Bench) -> None:
    def all_fail(number: int) -> Consumer:
        return bench.consumer(
            failing_on(*(f"event-{n}" for n in range(10))), failures_in_a_row=number
        )

    for number in range(3):
        await bench.publish(f"event-{number}")
        async with running(all_fail(3)):
            await bench.until_read(number + 1)
    await bench.publish("event-3")
    with pytest.raises(TooManyFailures):
        async with asyncio.timeout(60):
            await all_fail(3).run()
    assert len(await bench.dead_letters()) == 3

    async with running(bench.consumer()):  # one success ends the row
        await bench.until_read(4)
    await bench.publish("event-4")
    async with running(all_fail(3)):
        await bench.until_read(5)
    assert len(await bench.dead_letters()) == 4


@pytest.mark.parametrize(
    "error",
    [
        Transient("not now"),
        OperationalError("select", {}, Exception("the database is away")),
        ConnectionRefusedError("nobody there"),
    ],
    ids=["Transient", "OperationalError", "OSError"],
)
async def test_a_transient_failure_pauses_and_loses_nothing(bench: Bench, error: Exception) -> None:
    failures = [error] * 3

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        await remember(connection, events)
        if failures:
            raise failures.pop()

    await bench.publish("a", "b")
    consumer = bench.consumer(handle)
    async with running(consumer):
        await bench.until_stored(2)
    assert not failures
    assert consumer.alive()
    assert await bench.dead_letters() == []


async def test_a_batch_that_was_fenced_stores_nothing_and_comes_again(bench: Bench) -> None:
    """Another member takes the partition over while a batch is being handled."""
    fences = [True]

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        await remember(connection, events)

    consumer = bench.consumer(handle)
    stored = consumer._fence

    async def fence(connection: AsyncConnection, batch: Any) -> dict[int, int]:
        if fences.pop() if fences else False:
            rows = consumer_tables.consumer_offset
            await connection.execute(update(rows).values(epoch=rows.c.epoch + 1))
            await connection.execute(insert(inbox).values(id="zombie"))
        return await stored(connection, batch)

    consumer._fence = fence  # type: ignore[method-assign]
    await bench.publish("a", "b")
    async with running(consumer):
        await bench.until_read(2)
    assert not fences
    assert await bench.stored() == ["a", "b"]


async def test_the_position_never_moves_back(bench: Bench) -> None:
    """A batch that ends before what is stored already is dropped, whoever read it."""
    await bench.publish("a", "b", "c")
    kept: list[Batch] = []
    consumer = bench.consumer()
    store = consumer._store

    async def keep(batch: Batch) -> None:
        kept.append(batch)
        await store(batch)

    consumer._store = keep  # type: ignore[method-assign]
    async with running(consumer):
        await bench.until_read(3)
        await bench.publish("d")
        await bench.until_read(4)
    async with bench.database.begin() as connection:
        await connection.execute(delete(inbox))

    with pytest.raises(Fenced):
        await store(kept[0])

    assert await bench.position() == 4
    assert await bench.stored() == []


async def test_a_database_that_was_set_back_is_given_again_what_it_forgot(bench: Bench) -> None:
    """A fail-over lost its last commits, or a person asked for a replay, while we were reading."""
    async with running(bench.consumer()):
        await bench.publish("a", "b", "c")
        await bench.until_read(3)
        async with bench.database.begin() as connection:
            await connection.execute(delete(inbox))
            await connection.execute(update(consumer_tables.consumer_offset).values(next_offset=0))
        await bench.publish("d")
        await bench.until_read(4)
    assert await bench.stored() == ["a", "b", "c", "d"]


async def test_two_members_of_a_group_store_each_event_once(bench: Bench) -> None:
    other_log = bench.world.open()
    await other_log.start()
    seen: list[str] = []

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        await remember(connection, events)
        seen.extend(each.id for each in events)

    first = bench.consumer(handle)
    second_database = Database(bench.url)
    second = Consumer(other_log, bench.topic, bench.group, second_database, consumer_tables, handle)
    async with running(first, second):
        for number in range(60):
            await bench.publish(f"event-{number:02}", key=b"key-%d" % number)
        await bench.until_stored(60)
    await other_log.close()
    await second_database.close()
    assert await bench.stored() == [f"event-{number:02}" for number in range(60)]
    assert await bench.position() == 60


async def test_a_tombstone_is_given_as_one(bench: Bench) -> None:
    seen: list[Envelope] = []

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        seen.extend(events)

    await bench.log.append(bench.topic, [(b"the key", None)])
    async with running(bench.consumer(handle)):
        await bench.until_read(1)
    assert [(each.type, each.subject) for each in seen] == [(TOMBSTONE, "the key")]


async def test_a_sampled_event_is_handled_within_the_trace_it_came_from(bench: Bench) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    traces: list[str] = []

    async def handle(connection: AsyncConnection, events: list[Envelope]) -> None:
        traces.append(telemetry.current())

    sampled = envelope("a", "Tested", "tests", "a", b"", parent).SerializeToString()
    await bench.log.append(bench.topic, [(b"key", sampled)])
    async with running(bench.consumer(handle)):
        await bench.until_read(1)
        await bench.publish("b")
        await bench.until_read(2)
    assert [trace.split("-")[1:2] for trace in traces] == [["0af7651916cd43dd8448eb211c80319c"], []]


async def test_the_outbox_ships_what_was_committed_in_order(bench: Bench) -> None:
    publisher = Publisher(bench.database, consumer_tables, bench.log)
    async with bench.database.begin() as connection:
        await enqueue(connection, consumer_tables, bench.topic, b"key", event("rolled back"))
        await connection.rollback()
    for number in range(30):
        async with bench.database.begin() as connection:
            await enqueue(
                connection, consumer_tables, bench.topic, b"key", event(f"event-{number:02}")
            )
    async with running(publisher):
        records = await follow_until(bench.log, bench.topic, lambda found, _: len(found) >= 30)
        names = [Envelope.FromString(record.value or b"").id for record in records]
        assert names == [f"event-{number:02}" for number in range(30)]

        async with bench.database.begin() as connection:
            await enqueue(connection, consumer_tables, bench.topic, b"key", None)
        publisher.wake()
        records = await follow_until(bench.log, bench.topic, lambda found, _: len(found) >= 31)
        assert records[-1].value is None

        async def empty() -> bool:
            return await count(bench.database, consumer_tables.outbox) == 0

        await eventually(empty, "the outbox is empty")


async def test_two_publishers_of_one_outbox_keep_the_order(bench: Bench) -> None:
    databases = [Database(bench.url) for _ in range(2)]
    publishers = [Publisher(each, consumer_tables, bench.log) for each in databases]
    async with running(*publishers):
        for number in range(100):
            async with bench.database.begin() as connection:
                await enqueue(
                    connection, consumer_tables, bench.topic, b"key", event(f"event-{number:03}")
                )
            publishers[number % 2].wake()
        records = await follow_until(bench.log, bench.topic, lambda found, _: len(found) >= 100)
    for each in databases:
        await each.close()
    names = [Envelope.FromString(record.value or b"").id for record in records]
    assert names == [f"event-{number:03}" for number in range(100)]
