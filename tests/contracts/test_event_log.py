"""What an event log promises: one suite, run on the table and on Kafka.

It cannot catch what several brokers would show: a leader that moves, a replica that lags.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from bourse.event_log import (
    Batch,
    EventLog,
    LogUnavailable,
    PositionBeyondEnd,
    Topic,
    dead_letter_topic,
)
from tests.contracts.event_logs import (
    LOGS,
    Places,
    World,
    eventually,
    follow_until,
    take,
    world_of,
)


@pytest.fixture(params=LOGS)
def world(request: pytest.FixtureRequest) -> World:
    return world_of(request.param, request)


@pytest.fixture
async def log(world: World) -> AsyncIterator[EventLog]:
    opened = world.open()
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def topic(world: World, log: EventLog) -> Topic:
    made = Topic(world.name("events"))
    await log.create_topics([made, dead_letter_topic(made)], partitions=3)
    return made


@pytest.fixture
async def compacted(world: World, log: EventLog) -> Topic:
    made = Topic(world.name("states"), compacted=True)
    await log.create_topics([made], partitions=3)
    return made


def numbered(count: int, keys: int = 5) -> list[tuple[bytes, bytes | None]]:
    return [(b"key-%d" % (number % keys), b"%d" % number) for number in range(count)]


def by_key(records: list[Any]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for record in records:
        found.setdefault(record.key, []).append(record.value)
    return found


async def test_records_of_one_key_stay_in_order(log: EventLog, topic: Topic) -> None:
    entries = numbered(1200)
    for start in range(0, 1200, 400):
        await log.append(topic, entries[start : start + 400])

    records = await take(log, topic, "readers", Places(), 1200)

    assert by_key(records) == {
        b"key-%d" % key: [b"%d" % number for number in range(key, 1200, 5)] for key in range(5)
    }


async def test_a_record_comes_back_as_it_was_given(log: EventLog, topic: Topic) -> None:
    await log.append(topic, [(b"\x00\xff", b"\x80 value"), (b"", b""), (b"gone", None)])

    records = await take(log, topic, "readers", Places(), 3)

    assert {(record.key, record.value) for record in records} == {
        (b"\x00\xff", b"\x80 value"),
        (b"", b""),
        (b"gone", None),
    }
    assert {record.topic for record in records} == {topic.name}
    assert all(record.timestamp_ms > 1_600_000_000_000 for record in records)


async def test_appends_at_once_lose_nothing_and_double_nothing(log: EventLog, topic: Topic) -> None:
    await asyncio.gather(*(log.append(topic, [(b"k", b"%d" % n)]) for n in range(200)))

    records = await take(log, topic, "readers", Places(), 200)

    assert sorted(int(record.value) for record in records if record.value) == list(range(200))


async def test_groups_do_not_see_each_other(log: EventLog, topic: Topic) -> None:
    await log.append(topic, numbered(10))

    first = await take(log, topic, "first", Places(), 10)
    second = await take(log, topic, "second", Places(), 10)

    assert {r.value for r in first} == {r.value for r in second} == {v for _, v in numbered(10)}


async def test_what_was_not_stored_before_a_crash_comes_again(
    log: EventLog, world: World, topic: Topic
) -> None:
    places = Places()
    await log.append(topic, numbered(6))
    await take(log, topic, "readers", places, 6, store=False, commit=False)

    after_crash = world.open()
    await after_crash.start()
    records = await take(after_crash, topic, "readers", places, 6)
    await after_crash.close()

    assert {record.value for record in records} == {value for _, value in numbered(6)}


async def test_positions_of_the_database_rule_over_commits(log: EventLog, topic: Topic) -> None:
    await log.append(topic, numbered(8))
    await take(log, topic, "readers", Places(), 8)  # stored nowhere that lasts, but committed

    records = await take(log, topic, "readers", Places(), 8)
    assert len(records) == 8, "an empty database reads from the beginning"

    places = Places()
    await take(log, topic, "others", places, 8, commit=False)
    await log.append(topic, [(b"key-0", b"new")])
    records = await take(log, topic, "others", places, 1)
    assert [record.value for record in records] == [b"new"]


async def test_each_assignment_raises_the_epoch_of_its_batches(log: EventLog, topic: Topic) -> None:
    places = Places()
    await log.append(topic, numbered(4))
    seen: list[dict[int, int]] = []
    async with aclosing(cast(Any, log.consume(topic, "readers", places))) as batches:
        async for batch in batches:
            if not batch.records:
                continue
            seen.append(dict(batch.epochs))
            if len(seen) == 1:
                batch.abandon()  # nothing was stored: it comes again, after a new assignment
            else:
                break

    (partition, *_) = seen[0]
    assert seen[1][partition] > seen[0][partition]
    assert seen[1][partition] == places.epochs[partition]


async def test_an_abandoned_batch_comes_again(log: EventLog, topic: Topic) -> None:
    places = Places()
    await log.append(topic, numbered(4, keys=1))
    given: list[list[bytes | None]] = []
    async with aclosing(cast(Any, log.consume(topic, "readers", places))) as batches:
        async for batch in batches:
            if batch.records:
                given.append([record.value for record in batch.records])
                if len(given) == 2:
                    break
                batch.abandon()
    assert given[0] == given[1] == [b"0", b"1", b"2", b"3"]


async def test_an_idle_consumer_is_given_empty_batches(log: EventLog, topic: Topic) -> None:
    async with asyncio.timeout(30):
        async with aclosing(cast(Any, log.consume(topic, "readers", Places()))) as batches:
            async for batch in batches:
                assert (batch.records, dict(batch.next_offsets)) == ([], {})
                break


async def test_a_position_beyond_the_end_is_an_error_and_not_silence(
    log: EventLog, topic: Topic
) -> None:
    await log.append(topic, numbered(3))
    places = Places(next=dict.fromkeys(range(3), 1000))
    with pytest.raises(PositionBeyondEnd):
        await take(log, topic, "readers", places, 1)


async def test_a_follower_sees_everything_and_is_told_when_it_caught_up(
    log: EventLog, topic: Topic
) -> None:
    await log.append(topic, numbered(700))

    records = await follow_until(log, topic, lambda found, caught_up: caught_up)
    assert sorted(int(r.value or b"") for r in records) == list(range(700))

    def live(found: list[Any], caught_up: bool) -> bool:
        if caught_up and not appended:
            appended.append(asyncio.ensure_future(log.append(topic, [(b"k", b"live")])))
        return any(record.value == b"live" for record in found)

    appended: list[Any] = []
    records = await follow_until(log, topic, live)
    assert len(records) == 701


async def test_a_follower_of_an_empty_topic_has_caught_up(log: EventLog, topic: Topic) -> None:
    assert await follow_until(log, topic, lambda found, caught_up: caught_up) == []


async def test_a_follower_starts_where_it_was_asked_to(log: EventLog, topic: Topic) -> None:
    await log.append(topic, [(b"k", b"old")])
    (old,) = await follow_until(log, topic, lambda found, caught_up: caught_up)
    while True:  # until the clock has moved on
        await log.append(topic, [(b"k", b"new")])
        records = await follow_until(log, topic, lambda found, caught_up: caught_up)
        since_ms = records[-1].timestamp_ms
        if since_ms > old.timestamp_ms:
            break

    found = await follow_until(log, topic, lambda _, caught_up: caught_up, since_ms=since_ms)
    assert found == [record for record in records if record.timestamp_ms >= since_ms]

    later = since_ms + 3_600_000
    assert await follow_until(log, topic, lambda _, up: up, since_ms=later) == []


async def test_two_followers_each_see_every_record(log: EventLog, topic: Topic) -> None:
    await log.append(topic, numbered(20))

    def all_there(found: list[Any], caught_up: bool) -> bool:
        return caught_up

    first, second = await asyncio.gather(
        follow_until(log, topic, all_there), follow_until(log, topic, all_there)
    )
    assert len(first) == len(second) == 20


async def test_the_last_state_of_each_key_is_never_lost(log: EventLog, compacted: Topic) -> None:
    for round_number in range(30):
        await log.append(compacted, [(b"key-%d" % key, b"%d" % round_number) for key in range(100)])
    await log.append(compacted, [(b"key-0", None)])

    records = await follow_until(log, compacted, lambda _, caught_up: caught_up)

    state = {record.key: record.value for record in records}
    assert state == {b"key-0": None} | {b"key-%d" % key: b"29" for key in range(1, 100)}


async def test_topics_that_exist_are_left_as_they_are(
    log: EventLog, world: World, topic: Topic
) -> None:
    await log.append(topic, numbered(4))
    added = Topic(world.name("added"))

    await log.create_topics([topic, added], partitions=3)

    assert len(await take(log, topic, "readers", Places(), 4)) == 4
    await log.append(added, [(b"k", b"v")])


async def test_appending_to_a_topic_that_is_not_there_is_an_error(
    log: EventLog, world: World
) -> None:
    with pytest.raises(LogUnavailable):
        await log.append(Topic(world.name("absent")), [(b"k", b"v")])


async def test_appending_nothing_is_no_error(log: EventLog, topic: Topic) -> None:
    await log.append(topic, [])


async def test_members_of_one_group_share_the_records_between_them(
    log: EventLog, world: World, topic: Topic
) -> None:
    """Each record goes to one of them, and when one leaves the other goes on for it."""
    other = world.open()
    await other.start()
    places = Places()
    taken: list[bytes | None] = []

    async def member(which: EventLog) -> None:
        async with aclosing(cast(Any, which.consume(topic, "readers", places))) as batches:
            async for batch in batches:
                if any(places.epochs[at] != epoch for at, epoch in batch.epochs.items()):
                    batch.abandon()
                    continue
                places.store(batch)
                taken.extend(record.value for record in batch.records)

    members = [asyncio.create_task(member(each)) for each in (log, other)]

    async def has_all(numbers: range) -> bool:
        for each in members:
            if each.done() and not each.cancelled():
                each.result()
        return {b"%d" % number for number in numbers} <= set(taken)

    for number in range(50):
        await log.append(topic, [(b"key-%d" % number, b"%d" % number)])
    await eventually(lambda: has_all(range(50)), "both members together have read all")

    members[0].cancel()
    await asyncio.wait([members[0]])
    for number in range(50, 100):
        await log.append(topic, [(b"key-%d" % number, b"%d" % number)])
    await eventually(lambda: has_all(range(100)), "the one that is left has read the rest")

    assert len(taken) == 100, "nothing was stored twice"
    members[1].cancel()
    await asyncio.wait([members[1]])
    await other.close()


async def test_lag_counts_what_a_group_has_not_read(log: EventLog, topic: Topic) -> None:
    places = Places()
    await log.append(topic, numbered(10))
    batch: Batch
    async with aclosing(cast(Any, log.consume(topic, "readers", places))) as batches:
        read = 0
        async for batch in batches:
            places.store(batch)
            await batch.commit()
            read += len(batch.records)
            if read == 10:
                break

        async def none_left() -> bool:
            return await log.lag(topic, "readers") == 0

        await eventually(none_left, "no lag after all was read")


async def test_close_is_bounded_with_readers_open(world: World, topic: Topic) -> None:
    opened = world.open()
    await opened.start()
    reader = asyncio.create_task(follow_until(opened, topic, lambda *_: False))
    await opened.append(topic, numbered(3))
    async with asyncio.timeout(10):
        await opened.close()
    reader.cancel()
    await asyncio.wait([reader])
