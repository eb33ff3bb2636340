"""Count attempts from `generations`: each event once, all of a batch in its one transaction."""

from collections.abc import Callable

from google.protobuf.message import DecodeError
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.v1.events_pb2 import AttemptFinished, Envelope
from services.ranking import counting, store
from services.ranking.counting import Attempt, Changes, Malformed

ATTEMPT_FINISHED = "AttemptFinished"


class Counter:
    """The handler of ranking's consumer. Keeps nothing between calls."""

    def __init__(self, account_hash: Callable[[str], str]) -> None:
        self._account_hash = account_hash

    async def handle(self, connection: AsyncConnection, events: list[Envelope]) -> None:
        """Count the events not seen before; never commits. Raises Malformed."""
        arrived: dict[tuple[str, int], tuple[AttemptFinished, Attempt]] = {}
        for envelope in events:
            if envelope.type == ATTEMPT_FINISHED:
                event = _read(envelope)
                attempt = counting.read(event, envelope.time_ms, self._account_hash)
                arrived.setdefault((attempt.generation, attempt.attempt), (event, attempt))
        known = await store.known_attempts(connection, (key[0] for key in arrived))
        for attempt in known:
            arrived.pop((attempt.generation, attempt.attempt), None)
        if not arrived:
            return
        changes = Changes()
        for event, attempt in arrived.values():
            counting.count_endpoint(changes, event, attempt)
        fresh = [attempt for _, attempt in arrived.values()]
        counting.count_generations(changes, known, fresh)
        await store.insert_attempts(connection, fresh)
        await store.add(connection, changes)


def _read(envelope: Envelope) -> AttemptFinished:
    try:
        return AttemptFinished.FromString(envelope.data)
    except DecodeError as error:
        raise Malformed(f"data: {error}") from error
