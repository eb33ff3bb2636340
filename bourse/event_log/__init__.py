"""The event log: one protocol, two implementations, one consumer loop, a durable spool.

`kafka.py` is Apache Kafka through aiokafka; `table.py` is a database table with the same promises:
records of one key stay in order, groups keep their own offsets, delivery is at least once, nothing
acknowledged is ever dropped. The URL's scheme chooses.
"""

from bourse.event_log.protocol import (
    ACCOUNTS,
    CATALOG,
    GENERATIONS,
    IDENTITY,
    Batch,
    CaughtUp,
    EventLog,
    LogUnavailable,
    PositionBeyondEnd,
    Positions,
    Record,
    Topic,
    dead_letter_topic,
)

__all__ = [
    "ACCOUNTS",
    "CATALOG",
    "GENERATIONS",
    "IDENTITY",
    "Batch",
    "CaughtUp",
    "EventLog",
    "LogUnavailable",
    "PositionBeyondEnd",
    "Positions",
    "Record",
    "Topic",
    "dead_letter_topic",
    "open_event_log",
]


def open_event_log(url: str) -> EventLog:
    """Return the log behind `kafka://host:port,…` or `sqlite:///path`; connect with `start()`."""
    scheme, _, rest = url.partition(":")
    if scheme == "kafka":
        from bourse.event_log.kafka import KafkaLog

        return KafkaLog(rest.removeprefix("//"))
    from bourse.event_log.table import TableLog

    return TableLog(url)
