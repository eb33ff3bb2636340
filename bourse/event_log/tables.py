"""The tables that a service with a consumer or an outbox has beside its own.

The service owns them: it calls `tables(metadata)` in its `tables.py` and its migrations make them.
"""

from dataclasses import dataclass

from sqlalchemy import (
    Column,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
)

from bourse.database import Int64


@dataclass(frozen=True, slots=True)
class ConsumerTables:
    consumer_offset: Table
    dead_letter: Table
    outbox: Table


def tables(metadata: MetaData) -> ConsumerTables:
    """Declare the three tables in a service's metadata."""
    return ConsumerTables(
        consumer_offset=Table(
            "consumer_offset",
            metadata,
            Column("topic", String, nullable=False),
            Column("partition", Int64, nullable=False),
            Column("group_name", String, nullable=False),
            Column("next_offset", Int64, nullable=False),
            Column("epoch", Int64, nullable=False),
            Column("failures", Int64, nullable=False),  # quarantined in a row, up to now
            PrimaryKeyConstraint("topic", "partition", "group_name", name="pk_consumer_offset"),
        ),
        dead_letter=Table(
            "dead_letter",
            metadata,
            Column("id", Int64, primary_key=True, autoincrement=True),
            Column("topic", String, nullable=False),
            Column("partition", Int64, nullable=False),
            Column("record_offset", Int64, nullable=False),
            Column("group_name", String, nullable=False),
            Column("event_id", String, nullable=False),  # empty: the envelope was not readable
            Column("error_class", String, nullable=False),
            Column("reason", String, nullable=False),
            Column("key", LargeBinary, nullable=False),
            Column("value", LargeBinary, nullable=True),
            Column("created_at_ms", Int64, nullable=False),
            UniqueConstraint(
                "topic", "partition", "record_offset", "group_name", name="uq_dead_letter_source"
            ),
        ),
        outbox=Table(
            "outbox",
            metadata,
            Column("id", Int64, primary_key=True, autoincrement=True),
            Column("topic", String, nullable=False),
            Column("key", LargeBinary, nullable=False),
            Column("value", LargeBinary, nullable=True),
            Column("created_at_ms", Int64, nullable=False),
        ),
    )
