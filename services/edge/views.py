"""Follow a topic into memory: every replica reads all of it, from the beginning."""

import asyncio
import logging
from collections.abc import Callable

from google.protobuf.message import DecodeError

from bourse.event_log import CaughtUp, EventLog, LogUnavailable, Record, Topic
from bourse.event_log.envelope import NotAnEnvelope

log = logging.getLogger(__name__)

BACK_OFF_S = (0.1, 5.0)


async def follow(
    event_log: EventLog,
    topic: Topic,
    read: Callable[[Record], None],
    caught_up: Callable[[], None],
) -> None:
    """Give every record to `read`, and call `caught_up` at what was the end. Never ends.

    A record that cannot be read is logged and passed over: a view is not the ledger. When the log
    is away the view stays as it is, and is read again from the beginning afterwards.
    """
    pause_s = BACK_OFF_S[0]
    while True:
        try:
            async for found in event_log.follow(topic):
                pause_s = BACK_OFF_S[0]
                if isinstance(found, CaughtUp):
                    caught_up()
                    continue
                for record in found:
                    try:
                        read(record)
                    except (NotAnEnvelope, DecodeError, UnicodeDecodeError, ValueError) as error:
                        log.error(
                            "%s/%d@%d passed over: %s",
                            record.topic, record.partition, record.offset, error,
                        )  # fmt: skip
        except (LogUnavailable, OSError, TimeoutError) as error:
            log.warning("%s cannot be followed, again in %.1f s: %s", topic.name, pause_s, error)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, BACK_OFF_S[1])
