"""The deadlines of one answer: one timer, however many reads it takes."""

import asyncio
from dataclasses import dataclass
from enum import Enum
from types import TracebackType


class Overdue(Enum):
    """Which deadline passed."""

    FIRST_BYTE = "no byte of an answer"
    IDLE = "no byte for a while"
    CONTENT = "no content for a while"
    FIRST_TOKEN = "no content in time"
    TOTAL = "the answer takes too long"


class DeadlinePassed(Exception):
    """An answer is late: the block was interrupted."""

    def __init__(self, overdue: Overdue) -> None:
        super().__init__(overdue.value)
        self.overdue = overdue


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an upstream may take, in seconds."""

    first_byte_s: float = 30.0
    idle_s: float = 30.0
    content_s: float = 120.0
    total_s: float = 600.0
    finished_s: float = 5.0
    """Without a byte once a finish reason came: only usage and an end mark can follow."""


class Watchdog:
    """Interrupts its block with DeadlinePassed.

    Its user tells it of bytes (`heard`) and content (`got_content`), and between `pause` and
    `resume` that it does not read: then only the total counts. `first_token_s` bounds the time to
    the first content, 0: it does not.
    """

    __slots__ = (
        "_cancelling",
        "_content_at",
        "_first_byte_s",
        "_first_token_at",
        "_idle_s",
        "_loop",
        "_overdue",
        "_patience",
        "_paused",
        "_shortest_s",
        "_started_at",
        "_task",
        "_timer",
        "heard_at",
    )

    def __init__(
        self, patience: Patience, first_byte_s: float = 0.0, first_token_s: float = 0.0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._first_byte_s = first_byte_s or patience.first_byte_s
        self._idle_s = patience.idle_s
        self._shortest_s = min(patience.idle_s, patience.finished_s)
        self._started_at = self._loop.time()
        self._first_token_at = (
            self._started_at + max(first_token_s, first_byte_s) if first_token_s else 0.0
        )
        self.heard_at = 0.0
        """When the last byte came, on the event loop's clock; 0: none yet."""
        self._content_at = 0.0
        self._paused = False
        self._overdue: Overdue | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "Watchdog":
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._set(self._next()[0], self._started_at)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if self._overdue is not None and task is not None:
            ours = task.uncancel() <= self._cancelling
            if ours and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise DeadlinePassed(self._overdue) from error

    def heard(self) -> float:
        """A byte came; return when."""
        self.heard_at = self._loop.time()
        return self.heard_at

    def got_content(self) -> None:
        """The last bytes held content."""
        self._content_at = self.heard_at

    def finished(self) -> None:
        """A finish reason came."""
        self._idle_s = self._shortest_s

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.heard_at = self._content_at = self._loop.time()

    def _next(self) -> tuple[float, Overdue]:
        """The earliest deadline as things stand."""
        at, overdue = self._started_at + self._patience.total_s, Overdue.TOTAL
        if self._paused:
            return at, overdue
        if self._first_token_at and not self._content_at and self._first_token_at < at:
            at, overdue = self._first_token_at, Overdue.FIRST_TOKEN
        if not self.heard_at:
            silent_at, silence = self._started_at + self._first_byte_s, Overdue.FIRST_BYTE
        else:
            silent_at, silence = self.heard_at + self._idle_s, Overdue.IDLE
            if self._content_at:
                content_at = self._content_at + self._patience.content_s
            else:
                content_at = self._started_at + max(self._patience.content_s, self._first_byte_s)
            if content_at < silent_at:
                silent_at, silence = content_at, Overdue.CONTENT
        return (silent_at, silence) if silent_at < at else (at, overdue)

    def _set(self, at: float, now: float) -> None:
        # Never further off than the shortest wait that may begin meanwhile.
        self._timer = self._loop.call_at(min(at, now + self._shortest_s), self._look)

    def _look(self) -> None:
        if self._task is None:
            return
        at, overdue = self._next()
        now = self._loop.time()
        if now < at:
            self._set(at, now)
            return
        self._overdue = overdue
        self._task.cancel()
