"""The attempts that one edge has open at this worker, and their handlers."""

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from bourse.multiplex.attempt import Attempt
from bourse.multiplex.deadlines import Deadlines
from bourse.multiplex.frames import GrammarError
from bourse.v1.events_pb2 import OUTCOME_LOST
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_DEADLINE,
    AttemptFacts,
    Failed,
    RequestFrame,
    ResponseFrame,
)

log = logging.getLogger(__name__)

HANDLER_GRACE_S = 10.0
"""How long after it was left a handler may work before its task is cancelled."""

Handler = Callable[[Attempt], Awaitable[None]]
"""Serves one attempt. If it ends without `finish`, the attempt is lost, as our fault."""


class Attempts(ABC):
    """The attempts that one edge has open here, each with the task of its handler."""

    def __init__(self, handler: Handler, tasks: "set[asyncio.Task[None]]") -> None:
        self.unknown_frames = 0
        """Frames for attempts that are not open: crossed with a terminal frame, or late."""
        self._handler = handler
        self._tasks = tasks
        self._open: dict[int, Attempt] = {}
        self._none_open = asyncio.Event()
        self._none_open.set()
        self.deadlines: Deadlines[Attempt] = Deadlines(self._open.values, self._expire)

    @abstractmethod
    def tell(self, attempt: Attempt, frame: ResponseFrame) -> None:
        """Send a control frame, not before the attempt's own content."""

    @abstractmethod
    def tell_content(self, attempt: Attempt, frame: ResponseFrame) -> None:
        """Send content."""

    @abstractmethod
    def drop(self, attempt: Attempt) -> None:
        """Forget content that was not sent yet."""

    def __len__(self) -> int:
        return len(self._open)

    def start(
        self,
        request_id: int,
        facts: AttemptFacts,
        body: bytes,
        remaining_ms: int,
        more: bool = False,
    ) -> None:
        """Open an attempt and start its handler. Raises GrammarError."""
        if request_id == 0 or request_id in self._open:
            raise GrammarError(f"request id {request_id} cannot be opened")
        attempt = Attempt(self, request_id, facts, remaining_ms, body, more)
        self._open[request_id] = attempt
        self._none_open.clear()
        self.deadlines.watch(attempt.expires_at)
        attempt.task = asyncio.create_task(self._run(attempt))
        self._tasks.add(attempt.task)
        attempt.task.add_done_callback(self._tasks.discard)

    def receive(self, frame: RequestFrame) -> None:
        """Take a frame from the edge. Raises GrammarError."""
        if frame.HasField("open"):
            opening = frame.open
            facts, more = opening.facts, opening.more
            self.start(frame.id, facts, opening.body, opening.remaining_ms, more)
        elif (attempt := self._open.get(frame.id)) is not None:
            attempt.receive(frame)
        elif frame.WhichOneof("kind") is None:
            raise GrammarError("a frame of no kind")
        else:
            self.unknown_frames += 1

    def broke(self) -> None:
        """The edge is gone: all that is open is left."""
        for attempt in tuple(self._open.values()):
            attempt.leave(None)

    def ended(self, attempt: Attempt) -> None:
        self._open.pop(attempt.id, None)
        if not self._open:
            self._none_open.set()

    async def none_open(self) -> None:
        await self._none_open.wait()

    def grace(self, attempt: Attempt) -> None:
        """Bound the handler's time after it was left."""
        attempt.expires_at = self.deadlines.now() + HANDLER_GRACE_S
        self.deadlines.watch(attempt.expires_at)

    async def _run(self, attempt: Attempt) -> None:
        try:
            await self._handler(attempt)
        except Exception:
            log.exception("the handler of an attempt failed")
        finally:
            if not attempt.ended:
                attempt.finish(_lost())

    def _expire(self, attempt: Attempt) -> None:
        if not attempt.has_left:
            attempt.leave(CANCEL_REASON_DEADLINE)
        else:
            attempt.expires_at = math.inf
            log.error("the handler of a cancelled attempt did not end in time: its task is cut")
            if attempt.task is not None:
                attempt.task.cancel()


def _lost() -> Failed:
    return Failed(
        outcome=OUTCOME_LOST,
        status=500,
        error_type="api_error",
        message="The attempt was lost inside the exchange.",
        another_may_help=True,
        another_model_may_help=True,
    )
