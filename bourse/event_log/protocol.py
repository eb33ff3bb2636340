"""What an event log promises, whichever it is."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Topic:
    """A named log. `compacted`: only the last record of each key is kept for ever."""

    name: str
    compacted: bool = False


GENERATIONS = Topic("generations")
CATALOG = Topic("catalog", compacted=True)
IDENTITY = Topic("identity", compacted=True)
ACCOUNTS = Topic("accounts", compacted=True)


def dead_letter_topic(topic: Topic) -> Topic:
    """Where the quarantined records of a topic go."""
    return Topic(f"{topic.name}.dlq")


class LogUnavailable(Exception):
    """The log cannot be reached now; nothing was lost, and the same call may succeed later."""


class PositionBeyondEnd(Exception):
    """The consumer's database has read more than the log holds: the log was replaced or cut.

    Going on would skip what comes next without a word, so a person has to decide: bring the log
    back, or set the group's `consumer_offset.next_offset` to 0 and let the inbox sort it out.
    """

    def __init__(self, topic: str, partition: int, position: int, end: int) -> None:
        super().__init__(
            f"{topic}/{partition} ends at {end}, before the stored position {position}"
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `value` is None for a tombstone; `offset` is its own place."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """`follow` has passed the end that each partition had when it began."""


class Batch(Protocol):
    """Some records in order, and the right to say that they are done.

    It is empty when nothing came for a while: the reader sees that the log is still being polled.
    """

    records: Sequence[Record]
    starts: Mapping[int, int]
    """Partition -> the position that the batch was read from: where the one before it ended."""
    next_offsets: Mapping[int, int]
    """Partition -> the offset to read next, once this batch's effects are stored."""
    epochs: Mapping[int, int]
    """Partition -> the epoch raised in the database when it was assigned here."""

    async def commit(self) -> None:
        """Tell the log, for lag displays only; call it after the transaction."""

    def abandon(self) -> None:
        """Say that the effects were not stored: go on from the database's positions, asked anew."""


class Positions(Protocol):
    """The offsets that count: those in the consumer's own database."""

    async def assigned(
        self, topic: str, partitions: Sequence[int]
    ) -> Mapping[int, tuple[int, int]]:
        """Raise each partition's epoch; return partition -> (offset to read next, epoch).

        A partition never read before starts at offset 0.
        """


class EventLog(Protocol):
    """An ordered, durable log of topics. Bounded everywhere: reading never runs ahead unread."""

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Stop within five seconds, whatever the other side does."""

    async def create_topics(
        self, topics: Sequence[Topic], partitions: int = 1, replication_factor: int = 1
    ) -> None:
        """Create those that are missing; those that exist are left as they are.

        Compacted topics have one partition.
        """

    async def append(self, topic: Topic, entries: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Append (key, value) in order; return when all are durable (acknowledged by all replicas).

        Raises LogUnavailable when that is not known in time: some may then be in the log, so the
        caller sends all of them again, and consumers meet duplicates.
        """

    def consume(self, topic: Topic, group: str, positions: Positions) -> AsyncIterator[Batch]:
        """Yield batches of this member's partitions, from the offsets in `positions`. Never ends.

        Raises PositionBeyondEnd, and what `positions` raises.
        """

    def follow(
        self, topic: Topic, since_ms: int | None = None
    ) -> AsyncIterator[Sequence[Record] | CaughtUp]:
        """Yield every record of every partition, for a view in memory. Never ends.

        From the beginning, or from the first record not older than `since_ms`. `CaughtUp` comes
        once, when all that was there at the start has been yielded.
        """

    async def lag(self, topic: Topic, group: str) -> int | None:
        """Records the group has not committed yet; None where that cannot be told."""
