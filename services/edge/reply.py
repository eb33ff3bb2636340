"""The client's connection while a completion runs: what it is sent, and whether it is still there.

Nothing here costs a task for a request that is answered within `WATCH_AFTER_S`. After that one
task waits for the client to leave, and a timer keeps a waiting client's connection alive, tells
when the first token is too late, and drops a client that takes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from services.edge.errors import Headers

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

WATCH_AFTER_S = 0.1
TICK_S = 1.0

COMMENT = b": OPENROUTER PROCESSING\n\n"
"""Some clients match this text."""
WHITESPACE = b" "


@dataclass(frozen=True, slots=True)
class Timing:
    """The deadlines of settings.py that a reply keeps, in seconds."""

    hold_back_s: float = 15.0
    keep_alive_s: float = 15.0
    write_stall_s: float = 60.0


class Reply:
    """One client waiting for one completion."""

    __slots__ = (
        "_at", "_keep_alive", "_keeping", "_loop", "_on_late", "_on_left", "_quiet_until",
        "_receive", "_send", "_sending_since", "_tick_s", "_timer", "_timing", "_watching",
        "committed", "content_type", "done", "headers", "left", "status",
    )  # fmt: skip

    def __init__(self, receive: Receive, send: Send, timing: Timing) -> None:
        self._receive = receive
        self._send = send
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._keep_alive = b""
        self._quiet_until = 0.0
        self._sending_since = 0.0
        self._on_left: Callable[[], None] = _nothing
        self._on_late: Callable[[], None] = _nothing
        self._at = 0.0
        self._tick_s = TICK_S
        self.headers: Headers = []
        """Sent with the status, whatever it is."""
        self.content_type = b"application/json"
        self.committed = False
        """Whether a status has been sent."""
        self.status = 0
        self.left = False
        self.done = False

    def attend(
        self, first_token_within_s: float, on_left: Callable[[], None], on_late: Callable[[], None]
    ) -> None:
        """Watch the client from now on. The callbacks are called at most once each."""
        self._at = self._loop.time() + first_token_within_s
        self._on_left = on_left
        self._on_late = on_late
        if self._timer is None:
            self._timer = self._loop.call_later(WATCH_AFTER_S, self._begin)

    def in_time(self) -> None:
        """The first content is here: `on_late` will not be called."""
        self._on_late = _nothing

    def keep_alive(self, data: bytes, after_s: float) -> None:
        """Send `data` when nothing was sent for `after_s`, then every so often."""
        self._keep_alive = data
        self._quiet_until = self._loop.time() + after_s

    async def write(self, data: bytes) -> None:
        """Send a part of the body, and the status 200 before the first. Waits for the client."""
        if self._keeping is not None:
            await self._keeping
        if self.left:
            return
        if not self.committed:
            self.committed = True
            await self._put(self._start(200))
        self._sending_since = now = self._loop.time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending_since = 0.0
        self._quiet_until = now + self._timing.keep_alive_s

    async def end(self, data: bytes = b"") -> None:
        """Send the last part of a body, and the status 200 if no part came before."""
        self._keep_alive = b""
        if self._keeping is not None:
            await self._keeping
        if self.left:
            return
        self.done = True
        if not self.committed:
            self.committed = True
            await self._put(self._start(200))
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, body: bytes, headers: Headers) -> None:
        """Send a whole answer; nothing was sent before."""
        self._keep_alive = b""
        self.committed = True
        self.done = True
        start = self._start(status)
        start["headers"] += [*headers, (b"content-length", b"%d" % len(body))]
        self._sending_since = self._loop.time()
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
        self._sending_since = 0.0

    def close(self) -> None:
        """Stop watching, and let go of who was called back: a cycle waits for the collector."""
        self.done = True
        self._on_left = self._on_late = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watching is not None:
            self._watching.cancel()
        if self._keeping is not None:
            self._keeping.cancel()

    def _start(self, status: int) -> Message:
        self.status = status
        return {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", self.content_type), *self.headers],
        }

    async def _put(self, message: Message) -> None:
        self._sending_since = self._loop.time()
        await self._send(message)
        self._sending_since = 0.0

    def _begin(self) -> None:
        self._tick_s = min(TICK_S, self._timing.keep_alive_s / 4, self._timing.hold_back_s / 4)
        self._watching = self._loop.create_task(self._watch())
        self._tick()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if not self.left and not self.done:
            self.left = True
            self._on_left()

    def _tick(self) -> None:
        if self.done or self.left:
            return
        now = self._loop.time()
        if self._on_late is not _nothing and now >= self._at:
            on_late, self._on_late = self._on_late, _nothing
            on_late()
        if self._sending_since and now - self._sending_since >= self._timing.write_stall_s:
            self._drop()
        elif self._keep_alive and now >= self._quiet_until and not self._sending_since:
            self._quiet_until = now + self._timing.keep_alive_s
            self._keeping = self._loop.create_task(self._keep())
        delay = self._tick_s
        if self._on_late is not _nothing:
            delay = min(delay, max(self._at - now, 0.001))
        self._timer = self._loop.call_later(delay, self._tick)

    async def _keep(self) -> None:
        try:
            if not self.committed:
                self.committed = True
                await self._put(self._start(200))
            data = self._keep_alive
            if data and not self.done:
                await self._put({"type": "http.response.body", "body": data, "more_body": True})
        finally:
            self._keeping = None

    def _drop(self) -> None:
        """Give up a client that takes nothing, and free whoever waits to write to it."""
        # An ASGI server has no word for this; uvicorn's connection is behind `send`.
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
        self._leave()


def _nothing() -> None:
    pass
