"""The event log on Apache Kafka. The only module that knows aiokafka.

Its traps are why this is longer than it looks it should be: an idempotent producer's sends never
return while the broker is away and its stop hangs, rebalance callbacks swallow exceptions, and the
client logs hundreds of lines a second in an outage.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import aiokafka
from aiokafka import TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from bourse.event_log.log_limit import limit_logs
from bourse.event_log.protocol import (
    Batch,
    CaughtUp,
    LogUnavailable,
    PositionBeyondEnd,
    Positions,
    Record,
    Topic,
)
from bourse.event_log.transient import BackOff

log = logging.getLogger(__name__)

APPEND_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 15.0
STOP_S = 4.0
REQUEST_TIMEOUT_MS = 10_000
RETRY_BACKOFF_MS = 250
METADATA_MAX_AGE_MS = 60_000
LINGER_MS = 10
BATCH_BYTES = 262_144
READ_LIMIT = 500
POLL_MS = 500
READ_INTERVAL_S = 0.02
"""Under light load batches are read this far apart, and take together what has come."""

COMMIT_S = 1.0
SESSION_TIMEOUT_MS = 45_000
HEARTBEAT_MS = 5_000
REBALANCE_TIMEOUT_MS = 60_000
RETENTION_MS = 30 * 24 * 3600 * 1000
SEGMENT_MS = 6 * 3600 * 1000  # a compacted topic is compacted only in segments that are closed

_kafka: Any = aiokafka  # it carries no types


class KafkaLog:
    """The event log at `kafka://host:port,host:port`."""

    def __init__(self, bootstrap: str, *, session_timeout_ms: int = SESSION_TIMEOUT_MS) -> None:
        self._bootstrap = bootstrap
        self._session_timeout_ms = session_timeout_ms
        self._producer: Any = None
        self._starting = asyncio.Lock()
        self._consumers: dict[Any, tuple[str, str]] = {}  # client -> (topic, group)
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Connect to nothing yet: a worker must start, and spool, while Kafka is away."""
        limit_logs("aiokafka")

    async def close(self) -> None:
        self._closed = True
        producer, self._producer = self._producer, None
        ends = [_stop(consumer) for consumer in tuple(self._consumers)]
        if producer is not None:
            ends.append(_stop(producer))
        await asyncio.gather(*ends, *self._ending)

    async def create_topics(
        self, topics: Sequence[Topic], partitions: int = 1, replication_factor: int = 1
    ) -> None:
        admin: Any = AIOKafkaAdminClient(
            bootstrap_servers=self._bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        try:
            async with asyncio.timeout(2 * CALL_TIMEOUT_S):
                await admin.start()
                wanted = [_new_topic(topic, partitions, replication_factor) for topic in topics]
                response = await admin.create_topics(wanted)
                for name, code, *_ in response.topic_errors:
                    if code not in (0, TopicAlreadyExistsError.errno):
                        raise LogUnavailable(f"topic {name} not created: {for_code(code).__name__}")
                await _wait_for_leaders(admin, [topic.name for topic in topics])
        except (KafkaError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"topics could not be created: {error!r}") from error
        finally:
            with suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await admin.close()

    # Producing.

    async def append(self, topic: Topic, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        if not entries:
            return
        producer: Any = None
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                producer = await self._running_producer()
                for key, value in entries:
                    sent.append(await producer.send(topic.name, value, key))
                # Not `gather`: cancelled, it would cancel what is already on its way.
                await asyncio.wait(sent)
            for each in sent:
                each.result()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._discard(producer)
            raise LogUnavailable(f"{topic.name}: not acknowledged: {error!r}") from error
        finally:
            for each in sent:
                each.add_done_callback(_retrieve)

    async def _running_producer(self) -> Any:
        async with self._starting:
            self._check_open()
            if self._producer is None:
                producer = _kafka.AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=LINGER_MS,
                    max_batch_size=BATCH_BYTES,
                    compression_type="zstd",
                    request_timeout_ms=REQUEST_TIMEOUT_MS,
                    retry_backoff_ms=RETRY_BACKOFF_MS,
                    metadata_max_age_ms=METADATA_MAX_AGE_MS,
                    partitioner=_partition,
                )
                try:
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
                limit_logs("aiokafka")
                self._producer = producer
            return self._producer

    async def _discard(self, producer: Any) -> None:
        """Give a producer up for good, so that nothing it holds is sent after it is sent anew."""
        if producer is None or self._producer is not producer:
            return
        self._producer = None
        _kill(producer)
        ending = asyncio.create_task(_stop(producer), name="kafka producer stop")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    # Consuming.

    async def consume(self, topic: Topic, group: str, positions: Positions) -> AsyncIterator[Batch]:
        back_off = BackOff()
        while True:
            self._check_open()
            member = _Member(topic.name, self._new_consumer(group), positions)
            try:
                await _start(member.consumer)
                self._consumers[member.consumer] = (topic.name, group)
                member.consumer.subscribe([topic.name], listener=member)
                while True:
                    batch = await member.next()
                    back_off.reset()
                    yield batch
                    if batch.abandoned:
                        await member.reassign()
            except (KafkaError, TimeoutError) as error:
                await back_off.wait(f"consuming {topic.name} as {group}", error)
            finally:
                await member.commit()
                self._consumers.pop(member.consumer, None)
                await _stop(member.consumer)

    async def lag(self, topic: Topic, group: str) -> int | None:
        """Of the partitions this process reads; of no other's."""
        found: int | None = None
        for consumer, name in self._consumers.items():
            if name != (topic.name, group):
                continue
            for partition in consumer.assignment():
                high = consumer.highwater(partition)
                if high is None:
                    return None
                with suppress(KafkaError, TimeoutError):
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        found = (found or 0) + max(0, high - await consumer.position(partition))
            found = found or 0
        return found

    async def follow(
        self, topic: Topic, since_ms: int | None = None
    ) -> AsyncIterator[Sequence[Record] | CaughtUp]:
        back_off = BackOff()
        view = _View(topic.name, since_ms)
        while True:
            self._check_open()
            consumer = self._new_consumer(None)
            try:
                await _start(consumer)
                self._consumers[consumer] = (topic.name, "")
                await view.place(consumer)
                while True:
                    if view.reached():
                        yield CaughtUp()
                    records = await view.next(consumer)
                    back_off.reset()
                    if records:
                        yield records
            except (KafkaError, TimeoutError) as error:
                await back_off.wait(f"following {topic.name}", error)
            finally:
                self._consumers.pop(consumer, None)
                await _stop(consumer)

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("the event log is closed")

    def _new_consumer(self, group: str | None) -> Any:
        return _kafka.AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=READ_LIMIT,
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=min(HEARTBEAT_MS, self._session_timeout_ms // 3),
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            # Not sticky: aiokafka keeps that one's state on the class, shared by all groups.
            partition_assignment_strategy=(RangePartitionAssignor,),
            request_timeout_ms=REQUEST_TIMEOUT_MS + POLL_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        )


@dataclass(slots=True, eq=False)
class KafkaBatch:
    """A batch of some of a member's partitions."""

    records: Sequence[Record]
    starts: Mapping[int, int]
    next_offsets: Mapping[int, int]
    epochs: Mapping[int, int]
    member: "_Member"
    abandoned: bool = field(default=False, init=False)

    async def commit(self) -> None:
        self.member.uncommitted.update(self.next_offsets)

    def abandon(self) -> None:
        self.abandoned = True


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]
    """One member of a group: where it reads, and since which assignment.

    The callbacks only set flags: they block the fetcher, and what they raise is only logged.
    """

    def __init__(self, topic: str, consumer: Any, positions: Positions) -> None:
        self.consumer = consumer
        self.uncommitted: dict[int, int] = {}
        self._topic = topic
        self._positions = positions
        self._epochs: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._assigned = asyncio.Event()
        self._fresh = True
        self._committed_at = 0.0
        self._idle_polls = 0
        self._read_at = 0.0
        self._light = False

    async def on_partitions_revoked(self, revoked: object) -> None:
        self._assigned.clear()
        self._fresh = True

    async def on_partitions_assigned(self, assigned: object) -> None:
        self._fresh = True
        self._assigned.set()

    async def next(self) -> KafkaBatch:
        """The next batch; empty when nothing came, or the group is being rebalanced."""
        if time.monotonic() - self._committed_at >= COMMIT_S:
            await self.commit()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_MS / 1000):
                await self._assigned.wait()
        if not self._assigned.is_set():
            self._idle_polls += 1
            if self._idle_polls * POLL_MS > 2 * REBALANCE_TIMEOUT_MS:
                raise KafkaError("the group gives this member no answer")
            return self._batch({})
        self._idle_polls = 0
        if self._fresh and not await self._take():
            return self._batch({})
        rest_s = self._read_at + READ_INTERVAL_S - time.monotonic()
        if self._light and rest_s > 0:
            await asyncio.sleep(rest_s)
        self._read_at = time.monotonic()
        found = await self.consumer.getmany(timeout_ms=POLL_MS, max_records=READ_LIMIT)
        if self._fresh:  # the group was rebalanced meanwhile: these are read again, by whom it is
            return self._batch({})
        return self._batch(found)

    async def reassign(self) -> None:
        """Go on from the database's positions, once the group agrees that we are in it.

        A member that was put out without knowing it would fence the one that took over.
        """
        self._fresh = True
        mine = {
            partition: self._next[partition.partition]
            for partition in self.consumer.assignment()
            if partition.partition in self._next
        }
        if mine:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await self.consumer.commit(mine)
            except CommitFailedError:
                self._assigned.clear()  # until the group says what is ours

    async def commit(self) -> None:
        """Tell Kafka, for displays, how far the database is."""
        self._committed_at = time.monotonic()
        mine = self.consumer.assignment()
        offsets = {
            TopicPartition(self._topic, number): offset
            for number, offset in self.uncommitted.items()
            if TopicPartition(self._topic, number) in mine
        }
        self.uncommitted.clear()
        if offsets:
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await self.consumer.commit(offsets)

    async def _take(self) -> bool:
        """Raise the epochs of what is ours now and seek to the database's positions."""
        self._fresh = False
        partitions = sorted(self.consumer.assignment())
        if not partitions:
            self._epochs, self._next = {}, {}
            return True
        numbers = [partition.partition for partition in partitions]
        found = await self._positions.assigned(self._topic, numbers)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            begins = await self.consumer.beginning_offsets(partitions)
            ends = await self.consumer.end_offsets(partitions)
        if self._fresh:
            return False
        for partition in partitions:
            offset, _ = found[partition.partition]
            begin, end = begins[partition], ends[partition]
            if offset > end:
                raise PositionBeyondEnd(self._topic, partition.partition, offset, end)
            if 0 < offset < begin:
                log.error(
                    "%s/%d: records %d to %d are gone, unread",
                    self._topic, partition.partition, offset, begin - 1,
                )  # fmt: skip
            self.consumer.seek(partition, max(offset, begin))
        self._epochs = {number: epoch for number, (_, epoch) in found.items()}
        self._next = {number: offset for number, (offset, _) in found.items()}
        return True

    def _batch(self, found: Mapping[Any, Sequence[Any]]) -> KafkaBatch:
        records = _records(found)
        self._light = len(records) < READ_LIMIT // 2
        ends = {record.partition: record.offset + 1 for record in records}
        starts = {number: self._next[number] for number in ends}
        self._next.update(ends)
        epochs = {number: self._epochs[number] for number in ends}
        return KafkaBatch(records, starts, ends, epochs, self)


class _View:
    """Where a follower is: kept over reconnections, so that nothing is left out or read twice."""

    def __init__(self, topic: str, since_ms: int | None) -> None:
        self._topic = topic
        self._since_ms = since_ms
        self._next: dict[Any, int] = {}
        self._ends: dict[Any, int] | None = None
        self._caught_up = False

    async def place(self, consumer: Any) -> None:
        """Assign all partitions and seek; raises KafkaError while the topic does not exist."""
        first = TopicPartition(self._topic, 0)
        async with asyncio.timeout(CALL_TIMEOUT_S):
            consumer.assign([first])  # the client learns of a topic when it is to read it
            await consumer.end_offsets([first])
            numbers = consumer.partitions_for_topic(self._topic) or {0}
            partitions = [TopicPartition(self._topic, number) for number in sorted(numbers)]
            consumer.assign(partitions)
            if self._ends is None:
                ends = await consumer.end_offsets(partitions)
                if self._since_ms is None:
                    self._next = await consumer.beginning_offsets(partitions)
                else:
                    since = dict.fromkeys(partitions, self._since_ms)
                    found = await consumer.offsets_for_times(since)
                    self._next = {
                        partition: ends[partition] if at is None else at.offset
                        for partition, at in found.items()
                    }
                self._ends = ends
            for partition, offset in self._next.items():
                consumer.seek(partition, offset)

    def reached(self) -> bool:
        """True once: when all that was there at the start has been given."""
        ends = self._ends or {}
        if self._caught_up or any(self._next[partition] < end for partition, end in ends.items()):
            return False
        self._caught_up = True
        return True

    async def next(self, consumer: Any) -> list[Record]:
        found = await consumer.getmany(timeout_ms=POLL_MS, max_records=2 * READ_LIMIT)
        for partition, records in found.items():
            self._next[partition] = records[-1].offset + 1
        if not self._caught_up:
            # A position passes over what was compacted away; the last record's offset does not.
            for partition in self._next:
                self._next[partition] = max(
                    self._next[partition], await consumer.position(partition)
                )
        return _records(found)


def _records(found: Mapping[Any, Sequence[Any]]) -> list[Record]:
    return [
        Record(each.topic, each.partition, each.offset, each.key or b"", each.value, each.timestamp)
        for partition in sorted(found)
        for each in found[partition]
    ]


def _new_topic(topic: Topic, partitions: int, replication_factor: int) -> Any:
    configs = {"min.insync.replicas": "2" if replication_factor >= 3 else "1"}
    dead_letters = topic.name.endswith(".dlq")
    if topic.compacted:
        configs |= {"cleanup.policy": "compact", "segment.ms": str(SEGMENT_MS)}
    else:
        configs["retention.ms"] = "-1" if dead_letters else str(RETENTION_MS)
    count = 1 if topic.compacted or dead_letters else partitions
    new_topic: Any = NewTopic
    return new_topic(topic.name, count, replication_factor, topic_configs=configs)


async def _wait_for_leaders(admin: Any, names: list[str]) -> None:
    """Wait until every partition can be written: a new topic takes a moment."""
    while True:
        found = await admin.describe_topics(names)
        if all(
            not topic["error_code"] and all(not each["error_code"] for each in topic["partitions"])
            for topic in found
        ):
            return
        await asyncio.sleep(0.05)


async def _start(client: Any) -> None:
    async with asyncio.timeout(CALL_TIMEOUT_S):
        await client.start()
    limit_logs("aiokafka")


async def _stop(client: Any) -> None:
    """Stop a producer or a consumer, within a bound whatever the broker does."""
    try:
        async with asyncio.timeout(STOP_S):
            await client.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("a Kafka client did not stop properly: %r", error)
        _kill(client)


def _kill(client: Any) -> None:
    """End a client's own tasks, which its `stop` would wait for without end."""
    sender = getattr(client, "_sender", None)
    if sender is not None and sender.sender_task is not None:
        sender.sender_task.cancel()
    accumulator = getattr(client, "_message_accumulator", None)
    if accumulator is not None:
        accumulator.fail_all(KafkaError("the producer was given up"))


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes | None, everyone: Sequence[int], _available: object) -> int:
    """As Kafka's own clients place keys; remembered, since it is slow in Python."""
    return everyone[_hash(key or b"") % len(everyone)]


def _retrieve(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
