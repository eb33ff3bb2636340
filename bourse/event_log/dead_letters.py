"""Set a record aside: a row in the database, and a word to `<topic>.dlq` through the outbox."""

import logging
import time

from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import insert_if_absent
from bourse.event_log.envelope import NotAnEnvelope, envelope, read_envelope
from bourse.event_log.outbox import enqueue
from bourse.event_log.protocol import Record, Topic, dead_letter_topic
from bourse.event_log.tables import ConsumerTables
from bourse.v1.events_pb2 import Quarantined

log = logging.getLogger(__name__)

REASON_LENGTH = 500


async def set_aside(
    connection: AsyncConnection,
    tables: ConsumerTables,
    topic: Topic,
    group: str,
    record: Record,
    error: Exception,
) -> None:
    """Quarantine a record in the caller's transaction, with where it came from and why.

    One that is set aside already, because it was read again, is not told a second time.
    """
    source = f"{record.topic}/{record.partition}/{record.offset}"
    told = Quarantined(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        group=group,
        event_id=_event_id(record),
        error_class=type(error).__name__,
        reason=str(error)[:REASON_LENGTH],
        key=record.key,
        value=record.value or b"",
    )
    log.error("quarantined %s (%s): %s: %s", source, told.event_id, told.error_class, told.reason)
    row = {
        "topic": record.topic,
        "partition": record.partition,
        "record_offset": record.offset,
        "group_name": group,
        "event_id": told.event_id,
        "error_class": told.error_class,
        "reason": told.reason,
        "key": record.key,
        "value": record.value,
        "created_at_ms": time.time_ns() // 1_000_000,
    }
    letters = tables.dead_letter
    if await insert_if_absent(connection, letters, [row], [letters.c.id]):
        event = envelope(
            id=f"{source}:quarantined:{group}",
            type="Quarantined",
            source=group,
            subject=source,
            data=told.SerializeToString(),
        )
        await enqueue(
            connection, tables, dead_letter_topic(topic), record.key, event.SerializeToString()
        )


def _event_id(record: Record) -> str:
    try:
        return read_envelope(record).id
    except NotAnEnvelope:
        return ""
