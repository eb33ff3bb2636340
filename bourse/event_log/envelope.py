"""The envelope of every record: how an event is wrapped, and how a record is read back."""

import time

from google.protobuf.message import DecodeError

from bourse.event_log.protocol import Record
from bourse.v1.events_pb2 import Envelope

TOMBSTONE = "Tombstone"
"""The type of the envelope that stands for a record without a value; its subject is the key."""


class NotAnEnvelope(Exception):
    """A record's value is not an envelope with an id and a type."""


def envelope(
    id: str,
    type: str,  # noqa: A002
    source: str,
    subject: str,
    data: bytes,
    traceparent: str = "",
    time_ms: int | None = None,
) -> Envelope:
    """Wrap an event; `data` is the serialized payload whose message name is `type`.

    `id` is unique for ever: consumers dedupe by it. `time_ms` is now unless it is given.
    """
    return Envelope(
        id=id,
        source=source,
        type=type,
        subject=subject,
        time_ms=time.time_ns() // 1_000_000 if time_ms is None else time_ms,
        traceparent=traceparent,
        data=data,
    )


def read_envelope(record: Record) -> Envelope:
    """Return the record's envelope; raises NotAnEnvelope."""
    if record.value is None:
        return envelope(
            id=f"{record.topic}:{record.partition}:{record.offset}",
            type=TOMBSTONE,
            source=record.topic,
            subject=record.key.decode("utf-8", "replace"),
            data=b"",
            time_ms=record.timestamp_ms,
        )
    try:
        found = Envelope.FromString(record.value)
    except DecodeError as error:
        raise NotAnEnvelope(str(error)) from error
    if not found.id or not found.type:
        raise NotAnEnvelope("the envelope has no id or no type")
    return found
