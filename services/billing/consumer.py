"""The `generations` topic: events in, postings out."""

import time
from collections.abc import Callable

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.event_log.consumer import Transient
from bourse.v1.events_pb2 import Envelope
from services.billing import ledger, posting

GROUP = "billing"


async def handle(
    connection: AsyncConnection,
    events: list[Envelope],
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> None:
    """Post a batch. Raises ledger.Unpostable where an event must never post."""
    attempts = [ledger.read(event) for event in events]
    try:
        await posting.post_attempts(connection, attempts, now_ms())
    except IntegrityError as error:
        # Another consumer has just posted the same rows: the next try sees them.
        raise Transient(str(error)) from error
