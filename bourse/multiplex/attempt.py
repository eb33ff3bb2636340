"""The worker's side of an attempt."""

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from bourse.multiplex.frames import (
    CREDIT_STEP_BYTES,
    MAX_CONTENT_BYTES,
    MAX_PIECE_BYTES,
    OVERHEAD_BYTES,
    WINDOW_BYTES,
    GrammarError,
)
from bourse.v1.generation_pb2 import (
    AttemptFacts,
    Budget,
    CancelReason,
    Chunk,
    Credit,
    Failed,
    Finished,
    NeedBudget,
    RequestFrame,
    ResponseFrame,
    Started,
)

if TYPE_CHECKING:
    from bourse.multiplex.attempts import Attempts


class Left(Exception):
    """Nobody wants the rest of this attempt: it was cancelled, or its edge is gone.

    `reason` is that of the Cancel, or of the deadline; None when the stream broke.
    """

    def __init__(self, reason: "CancelReason.ValueType | None") -> None:
        super().__init__("stream broke" if reason is None else f"cancelled, reason {reason}")
        self.reason = reason


class Attempt:
    """What a handler gets: one attempt, to be answered with exactly one `finish`.

    Order: `started` once, then any number of `send`, then `finish`, which may also come at once.
    When the attempt is left (cancelled, deadline passed, stream broken) the waiting calls raise
    Left; the handler closes its upstream and still calls `finish`.
    """

    __slots__ = (
        "_accepted",
        "_attempts",
        "_body_complete",
        "_body_given",
        "_body_outstanding",
        "_body_size",
        "_body_taken",
        "_budgets",
        "_ended",
        "_guards",
        "_pieces",
        "_started",
        "_waiters",
        "_window",
        "broken",
        "cancel_reason",
        "expires_at",
        "facts",
        "id",
        "lane",
        "remaining_ms",
        "task",
    )

    def __init__(
        self,
        attempts: "Attempts",
        request_id: int,
        facts: AttemptFacts,
        remaining_ms: int,
        first: bytes,
        more: bool,
    ) -> None:
        self.id = request_id
        self.facts = facts
        self.remaining_ms = remaining_ms
        """At arrival, until the whole attempt's deadline."""
        self.cancel_reason: CancelReason.ValueType | None = None
        self.broken = False
        self.expires_at = attempts.deadlines.now() + remaining_ms / 1000
        self.lane: deque[bytes] = deque()
        self.task: asyncio.Task[None] | None = None
        self._attempts = attempts
        self._pieces: deque[bytes] = deque((first,))
        self._body_complete = not more
        self._body_given = False
        self._body_outstanding = len(first) + OVERHEAD_BYTES
        self._body_size = len(first)
        self._body_taken = 0
        self._window = WINDOW_BYTES
        self._budgets: deque[Budget] = deque()
        self._accepted = False
        self._started = False
        self._ended = False
        self._waiters: list[asyncio.Future[None]] = []
        self._guards: list[UntilLeft] = []

    @property
    def has_left(self) -> bool:
        """True once this attempt was cancelled, its deadline passed, or its stream broke."""
        return self.broken or self.cancel_reason is not None

    async def body(self) -> bytes:
        """Return the whole canonical call, once. Raises Left."""
        if self._body_given:
            raise RuntimeError("the body was taken before")
        if self._body_complete and len(self._pieces) == 1:
            self._body_given = True
            return self._pieces.popleft()
        taken: list[bytes] = []
        while True:
            while self._pieces:
                taken.append(self._pieces.popleft())
                self._return_credit(len(taken[-1]) + OVERHEAD_BYTES)
            if self._body_complete:
                self._body_given = True
                return b"".join(taken)
            await self._change()

    async def started(self, frame: Started) -> None:
        """Say that the first content is here: from now on the attempt is never switched."""
        self._check_not_left()
        if self._started or self._ended:
            raise RuntimeError("an attempt starts once, before it ends")
        self._started = True
        self._attempts.tell(self, ResponseFrame(id=self.id, started=frame))

    async def send(self, chunk: Chunk) -> None:
        """Send content, waiting while the reader's window is full. Raises Left."""
        choices = chunk.choices
        size = len(choices)
        if size > MAX_CONTENT_BYTES:
            raise ValueError(f"a chunk of {size} bytes: the limit is {MAX_CONTENT_BYTES}")
        for at in range(0, max(size, 1), MAX_PIECE_BYTES):
            piece = choices[at : at + MAX_PIECE_BYTES]
            part = Chunk(choices=piece, more=at + len(piece) < size)
            while not self.send_now(part):
                await self._change()

    def send_now(self, chunk: Chunk) -> bool:
        """Send content if it fits into one frame and the reader's window. Raises Left."""
        if not self._started or self._ended:
            raise RuntimeError("content comes between started and the end")
        size = len(chunk.choices)
        if size > MAX_PIECE_BYTES or self._window < size + OVERHEAD_BYTES:
            return False
        if self.broken or self.cancel_reason is not None:
            raise Left(self.cancel_reason)
        self._window -= size + OVERHEAD_BYTES
        self._attempts.tell_content(self, ResponseFrame(id=self.id, chunk=chunk))
        return True

    def need_budget(self) -> None:
        """Ask for another quantum; the answer comes to `budget`."""
        if not self._ended and not self.has_left:
            self._attempts.tell(self, ResponseFrame(id=self.id, need_budget=NeedBudget()))

    async def budget(self) -> Budget:
        """Return the next answer to `need_budget`. Raises Left."""
        while not self._budgets:
            await self._change()
        return self._budgets.popleft()

    async def accepted(self) -> bool:
        """Wait until a hedged attempt is decided: True when it is the one that is served."""
        try:
            while not self._accepted:
                await self._change()
        except Left:
            return False
        return True

    async def left(self) -> None:
        """Return when the attempt is left."""
        try:
            while True:
                await self._change()
        except Left:
            return

    def until_left(self) -> "UntilLeft":
        """Run a block, `async with attempt.until_left():`, that being left interrupts with Left."""
        return UntilLeft(self)

    def finish(self, frame: Finished | Failed) -> None:
        """Send the terminal frame, once. After a broken stream it goes nowhere."""
        if self._ended:
            raise RuntimeError("an attempt ends once")
        if isinstance(frame, Finished):
            terminal = ResponseFrame(id=self.id, finished=frame)
        else:
            terminal = ResponseFrame(id=self.id, failed=frame)
        if not self.broken:
            self._attempts.tell(self, terminal)  # may refuse what is too large
        self._ended = True
        self._attempts.ended(self)

    @property
    def ended(self) -> bool:
        return self._ended

    def receive(self, frame: RequestFrame) -> None:
        """Take a frame from the edge. Raises GrammarError."""
        kind = frame.WhichOneof("kind")
        if kind == "credit":
            self._window += frame.credit.bytes
            if self._window > WINDOW_BYTES:
                raise GrammarError("credit beyond the window")
        elif kind == "body":
            self._receive_body(frame.body.body, frame.body.more)
        elif kind == "budget":
            self._budgets.append(frame.budget)
        elif kind == "accept":
            self._accepted = True
        elif kind == "cancel":
            self._attempts.drop(self)
            self.leave(frame.cancel.reason)
        else:
            raise GrammarError(f"unexpected frame for an open request: {kind}")
        self._wake()

    def leave(self, reason: "CancelReason.ValueType | None") -> None:
        """Tell the handler that nobody waits: for a reason, or because the stream broke."""
        if self.has_left:
            return
        if reason is None:
            self.broken = True
        else:
            self.cancel_reason = reason
        for guard in self._guards:
            guard.interrupt()
        self._wake()
        self._attempts.grace(self)

    def _receive_body(self, body: bytes, more: bool) -> None:
        if self._body_complete:
            raise GrammarError("body after its end")
        cost = len(body) + OVERHEAD_BYTES
        self._body_outstanding += cost
        self._body_size += len(body)
        if self._body_outstanding > WINDOW_BYTES:
            raise GrammarError("body beyond the window")
        if self._body_size > MAX_CONTENT_BYTES:
            raise GrammarError("body too large")
        self._body_complete = not more
        if not self.has_left:
            self._pieces.append(body)

    def _return_credit(self, cost: int) -> None:
        self._body_taken += cost
        if self._body_taken >= CREDIT_STEP_BYTES and not self._body_complete and not self._ended:
            credit = Credit(bytes=self._body_taken)
            self._attempts.tell(self, ResponseFrame(id=self.id, credit=credit))
            self._body_outstanding -= self._body_taken
            self._body_taken = 0

    def _check_not_left(self) -> None:
        if self.broken or self.cancel_reason is not None:
            raise Left(self.cancel_reason)

    async def _change(self) -> None:
        """Wait until anything has arrived. Raises Left."""
        self._check_not_left()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
        self._check_not_left()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class UntilLeft:
    """Interrupts a block like `asyncio.timeout` does, without a task or a timer of its own."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._interrupted = False

    async def __aenter__(self) -> None:
        self._attempt._check_not_left()
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._attempt._guards.append(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._attempt._guards.remove(self)
        if self._interrupted and self._task is not None:
            ours = self._task.uncancel() <= self._cancelling
            if ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise Left(self._attempt.cancel_reason) from error

    def interrupt(self) -> None:
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()
