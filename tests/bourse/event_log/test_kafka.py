"""What aiokafka does when the broker is not there, and what we make of it."""

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Any, cast

import pytest
from aiokafka.partitioner import DefaultPartitioner

from bourse.event_log import CaughtUp, LogUnavailable, Topic, kafka
from bourse.event_log.kafka import KafkaLog
from bourse.event_log.log_limit import RateLimit
from tests.kafka import LocalBroker

NOBODY = "127.0.0.1:1"
TOPIC = Topic("events")


class Zero:
    async def assigned(self, topic: str, partitions: Any) -> dict[int, tuple[int, int]]:
        return dict.fromkeys(partitions, (0, 1))


async def test_without_a_broker_start_succeeds_and_calls_say_so() -> None:
    """A worker must start, and spool, while Kafka is away."""
    log = KafkaLog(NOBODY)
    async with asyncio.timeout(30):
        await log.start()
        with pytest.raises(LogUnavailable):
            await log.append(TOPIC, [(b"k", b"v")])
        with pytest.raises(LogUnavailable):
            await log.create_topics([TOPIC])
        await log.close()


async def test_without_a_broker_readers_wait_and_can_be_cancelled() -> None:
    log = KafkaLog(NOBODY)
    await log.start()

    async def follow() -> None:
        async for _ in log.follow(TOPIC):
            raise AssertionError

    async def consume() -> None:
        async for _ in log.consume(TOPIC, "group", Zero()):
            raise AssertionError

    readers = [asyncio.create_task(follow()), asyncio.create_task(consume())]
    done, _ = await asyncio.wait(readers, timeout=1)
    assert not done
    for each in readers:
        each.cancel()
    async with asyncio.timeout(15):
        await asyncio.wait(readers)
        await log.close()


@pytest.mark.kafka
async def test_O6_an_outage_ends_in_errors_and_not_in_silence(
    own_kafka: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the broker gone an idempotent send never returns and a stop hangs: ours do not."""
    log, short = KafkaLog(own_kafka.bootstrap), KafkaLog(own_kafka.bootstrap)
    await log.start()
    await short.start()
    await log.create_topics([TOPIC], partitions=2)
    seen: list[bytes | None] = []
    caught_up = 0

    async def follow() -> None:
        nonlocal caught_up
        async with aclosing(cast(Any, log.follow(TOPIC))) as given:
            async for each in given:
                if isinstance(each, CaughtUp):
                    caught_up += 1
                else:
                    seen.extend(record.value for record in each)

    async def until_seen(*values: bytes) -> None:
        async with asyncio.timeout(60):
            while not set(values) <= set(seen):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    following = asyncio.create_task(follow())
    await log.append(TOPIC, [(b"k", b"before")])
    await short.append(TOPIC, [(b"k", b"before too")])
    await until_seen(b"before", b"before too")

    await asyncio.to_thread(own_kafka.kill)
    monkeypatch.setattr(kafka, "APPEND_TIMEOUT_S", 1.0)
    with pytest.raises(LogUnavailable):
        await log.append(TOPIC, [(b"k", b"during")])
    stuck = asyncio.create_task(short.append(TOPIC, [(b"k", b"stuck")]))
    await asyncio.sleep(0)
    async with asyncio.timeout(15):
        await short.close()
        with pytest.raises(LogUnavailable):
            await stuck

    monkeypatch.undo()
    await asyncio.to_thread(own_kafka.start)
    async with asyncio.timeout(60):
        while True:
            try:
                await log.append(TOPIC, [(b"k", b"after")])
                break
            except LogUnavailable:
                await asyncio.sleep(0.1)
    await until_seen(b"after")
    following.cancel()
    await asyncio.wait([following])
    async with asyncio.timeout(10):
        await log.close()

    assert caught_up == 1
    assert seen.count(b"before") == seen.count(b"before too") == 1, "a follower reads on"


def test_keys_are_placed_as_every_kafka_client_places_them() -> None:
    partitions = list(range(24))
    theirs = DefaultPartitioner()
    for number in range(500):
        key = b"account-%d" % number
        assert kafka._partition(key, partitions, partitions) == theirs(key, partitions, partitions)


def test_the_clients_logs_are_limited_and_say_what_was_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limit = RateLimit()

    def passes() -> str | None:
        record = logging.LogRecord(
            "aiokafka.x", logging.WARNING, "", 0, "no broker %s", ("a",), None
        )
        return record.getMessage() if limit.filter(record) else None

    assert [passes() for _ in range(5)] == ["no broker a"] * 3 + [None, None]
    now[0] += 11
    assert passes() == "no broker a (and 2 like it)"
