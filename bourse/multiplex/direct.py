"""The link to a worker in this process: the same exchange and attempt, and no bytes between."""

import asyncio
from collections.abc import Mapping

from bourse.multiplex.attempt import Attempt
from bourse.multiplex.attempts import Attempts
from bourse.multiplex.exchange import MAX_IN_FLIGHT, Exchange, Link
from bourse.multiplex.worker import GenerationServicer
from bourse.v1.generation_pb2 import AttemptFacts, RequestFrame, ResponseFrame


class DirectLink(Link):
    """Hands each frame to the other side at once; windows count as they do on a stream."""

    def __init__(self, servicer: GenerationServicer, name: str = "local") -> None:
        super().__init__(name)
        self._servicer = servicer
        self._attempts = _DirectAttempts(self, self._exchanges, servicer)
        self._closed = False

    @property
    def usable(self) -> bool:
        return not (
            self._draining
            or self._servicer.draining
            or self._closed
            or len(self._exchanges) >= MAX_IN_FLIGHT
        )

    def open(self, facts: AttemptFacts, body: bytes, remaining_ms: int) -> Exchange:
        exchange = self._new(remaining_ms)
        self._attempts.start(exchange.id, facts, body, remaining_ms)
        return exchange

    def tell(self, frame: RequestFrame) -> None:
        self._attempts.receive(frame)

    async def close(self) -> None:
        self._closed = True
        self._attempts.broke()
        self._break("link to the worker in this process was closed")
        await asyncio.sleep(0)


class _DirectAttempts(Attempts):
    def __init__(
        self, link: DirectLink, exchanges: Mapping[int, Exchange], servicer: GenerationServicer
    ) -> None:
        super().__init__(servicer.handler, servicer.tasks)
        self._link = link
        self._exchanges = exchanges

    def tell(self, attempt: Attempt, frame: ResponseFrame) -> None:
        exchange = self._exchanges.get(frame.id)
        if exchange is None:
            self._link.unknown_frames += 1
        else:
            exchange.receive(frame)

    tell_content = tell  # nothing is sent, so nothing overtakes

    def drop(self, attempt: Attempt) -> None:
        """Nothing waits here: what was sent has arrived."""
