"""The edge's side of an attempt, and what every link to a worker has in common."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from bourse.multiplex.deadlines import Deadlines
from bourse.multiplex.frames import (
    CREDIT_STEP_BYTES,
    OVERHEAD_BYTES,
    WINDOW_BYTES,
    GrammarError,
)
from bourse.v1.events_pb2 import LeaseSpend
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_DEADLINE,
    Accept,
    AttemptFacts,
    Budget,
    Cancel,
    CancelReason,
    Chunk,
    Credit,
    RequestFrame,
    ResponseFrame,
)

MAX_IN_FLIGHT = 8_192
CANCEL_WAIT_S = 2.0
"""How long after Cancel its terminal frame is waited for."""


class Broken(Exception):
    """The worker, its stream or this one attempt is gone, and no terminal frame will come."""


class NoWorker(Broken):
    """No worker can be reached now."""


class WorkerLink(Protocol):
    """The way to one worker."""

    @property
    def name(self) -> str: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def usable(self) -> bool:
        """False while it is not connected, draining, broken or full."""

    def open(self, facts: AttemptFacts, body: bytes, remaining_ms: int) -> "Exchange":
        """Start an attempt, with `remaining_ms` until its deadline. Raises Broken."""

    async def drain(self) -> None:
        """Open nothing new; return when nothing is open any more."""

    async def close(self) -> None:
        """Break what is open and let go."""


class Exchange:
    """The edge's side of one attempt: what its worker says, in order.

    Iterating yields started, then chunk and need_budget, and exactly one finished or failed, then
    it ends; it raises Broken instead of what will never come. Only taking chunks lets the worker
    send more than the first 256 KiB. At the deadline the attempt is cancelled, and two seconds
    after any cancel without a terminal frame it is Broken.
    """

    __slots__ = (
        "_broken",
        "_cancelled",
        "_closed",
        "_frames",
        "_link",
        "_outstanding",
        "_pieces",
        "_started",
        "_taken",
        "_waiter",
        "expires_at",
        "id",
    )

    def __init__(self, link: "Link", request_id: int, expires_at: float) -> None:
        self.id = request_id
        self.expires_at = expires_at
        self._link = link
        self._frames: deque[tuple[ResponseFrame, int]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._outstanding = 0  # received and not yet given back as credit
        self._taken = 0  # of these, what has left `_frames`
        self._started = False
        self._cancelled = False
        self._closed = False  # nothing more will be received
        self._broken: str | None = None  # and the terminal frame was not

    def __aiter__(self) -> "Exchange":
        return self

    async def __anext__(self) -> ResponseFrame:
        while True:
            while not self._frames:
                if self._broken is not None:
                    raise Broken(self._broken)
                if self._closed:
                    raise StopAsyncIteration
                self._waiter = self._link.loop.create_future()
                await self._waiter
            frame, cost = self._frames.popleft()
            if cost:
                self._taken += cost
                if self._taken >= CREDIT_STEP_BYTES and not self._closed:
                    self._give_credit()
                if frame.chunk.more or self._pieces:
                    self._pieces.append(frame.chunk.choices)
                    if frame.chunk.more:
                        continue
                    choices = b"".join(self._pieces)
                    self._pieces.clear()
                    return ResponseFrame(id=self.id, chunk=Chunk(choices=choices))
            return frame

    def budget(self, holds: Sequence[LeaseSpend], reason: str = "") -> None:
        """Give another quantum; empty `holds` with a reason: there is no more."""
        if not self._closed:
            self._link.tell(RequestFrame(id=self.id, budget=Budget(holds=holds, reason=reason)))

    def accept(self) -> None:
        """Tell a hedged attempt that it is the one that is served."""
        if not self._closed:
            self._link.tell(RequestFrame(id=self.id, accept=Accept()))

    def cancel(self, reason: "CancelReason.ValueType") -> None:
        """Stop the attempt; go on iterating for its terminal frame. Further calls do nothing."""
        if not self._closed and not self._cancelled:
            self._cancelled = True
            self._link.cancelled(self, RequestFrame(id=self.id, cancel=Cancel(reason=reason)))

    @property
    def chunk_waits(self) -> bool:
        """Whether the next frame is a chunk that is here already."""
        return bool(self._frames) and self._frames[0][1] > 0

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    @property
    def unread_bytes(self) -> int:
        """What has arrived and was not taken, as windows count it."""
        return self._outstanding - self._taken

    def receive(self, frame: ResponseFrame) -> None:
        """Take a frame from the link. Raises GrammarError."""
        kind = frame.WhichOneof("kind")
        cost = 0
        if kind == "chunk":
            if not self._started:
                raise GrammarError("chunk before started")
            cost = len(frame.chunk.choices) + OVERHEAD_BYTES
            self._outstanding += cost
            if self._outstanding > WINDOW_BYTES:
                raise GrammarError("chunk beyond the window")
        elif kind == "finished" or kind == "failed":
            self._closed = True
            self._link.ended(self)
        elif kind == "started":
            if self._started:
                raise GrammarError("started twice")
            self._started = True
        elif kind != "need_budget":
            raise GrammarError(f"unexpected frame for an open request: {kind}")
        self._frames.append((frame, cost))
        if self._waiter is not None:
            self._wake()

    def broke(self, reason: str) -> None:
        """Nothing more will come."""
        if not self._closed:
            self._closed = True
            self._broken = reason
            if self._waiter is not None:
                self._wake()

    def _give_credit(self) -> None:
        """Let the worker send as much again as was taken."""
        self._link.tell(RequestFrame(id=self.id, credit=Credit(bytes=self._taken)))
        self._outstanding -= self._taken
        self._taken = 0

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Link(ABC):
    """What the links to a worker share: the exchanges that are open, and their deadlines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.unknown_frames = 0
        """Frames for requests that are not open: crossed with a terminal frame, or late."""
        self._exchanges: dict[int, Exchange] = {}
        self._last_id = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.loop = asyncio.get_running_loop()
        self._deadlines: Deadlines[Exchange] = Deadlines(self._exchanges.values, self._expire)

    @property
    def name(self) -> str:
        return self._name

    @property
    def in_flight(self) -> int:
        return len(self._exchanges)

    @property
    @abstractmethod
    def usable(self) -> bool: ...

    @abstractmethod
    def tell(self, frame: RequestFrame) -> None:
        """Send a frame of an open exchange."""

    async def drain(self) -> None:
        self._draining = True
        await self._idle.wait()

    def cancelled(self, exchange: Exchange, frame: RequestFrame) -> None:
        """Send the Cancel of an exchange, and bound the wait for its terminal frame."""
        exchange.expires_at = self._deadlines.now() + CANCEL_WAIT_S
        self._deadlines.watch(exchange.expires_at)
        self.tell(frame)

    def ended(self, exchange: Exchange) -> None:
        """Forget the exchange."""
        self._exchanges.pop(exchange.id, None)
        if not self._exchanges:
            self._idle.set()

    def _new(self, remaining_ms: int) -> Exchange:
        if not self.usable:
            raise Broken(f"worker {self._name} takes nothing new")
        self._last_id += 1
        expires_at = self._deadlines.now() + remaining_ms / 1000
        exchange = Exchange(self, self._last_id, expires_at)
        self._exchanges[exchange.id] = exchange
        self._idle.clear()
        self._deadlines.watch(expires_at)
        return exchange

    def _break(self, reason: str) -> None:
        for exchange in tuple(self._exchanges.values()):
            self.ended(exchange)
            exchange.broke(reason)
        self._deadlines.close()

    def _expire(self, exchange: Exchange) -> None:
        if exchange.cancelled:
            self.ended(exchange)
            exchange.broke(f"worker {self._name} did not end a cancelled attempt")
        else:
            exchange.cancel(CANCEL_REASON_DEADLINE)
