"""One HTTP/1.1 connection to an upstream: sends a request, parses one answer at a time."""

import asyncio
from typing import cast

import httptools
import httpx

HEADER_BYTES_MAX = 64 * 1024
BUFFER_BYTES = 64 * 1024
"""Unread bytes at which the socket is no longer read."""


class Connection(asyncio.Protocol):
    """One socket. Its user calls `send`, then `wait` and `take` until `complete`."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.headed = self.complete = self.touched = self._keep_alive = False
        self._header_bytes = 0
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._error: Exception | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.touched = True
        if self.complete:  # bytes nobody asked for: this connection is not to be trusted again
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"malformed answer: {error}"))
            return
        if self._header_bytes > HEADER_BYTES_MAX:
            self._fail(httpx.RemoteProtocolError(f"headers above {HEADER_BYTES_MAX} bytes"))
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.complete:
            return
        if self.headed and self._ends_with_connection():
            self.complete = True
        elif self._error is None:
            self._error = httpx.RemoteProtocolError("connection closed before the answer was whole")
        self._wake()

    def _ends_with_connection(self) -> bool:
        return not any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        )

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._parser.get_status_code() < 200:  # 100 Continue, 103 Early Hints
            self.headers.clear()
            return
        self.headed = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._buffered += len(body)
        if self._buffered > BUFFER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.headed:
            self.complete = True
            self._keep_alive = self._parser.should_keep_alive()  # only now does it know

    # for the client

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    def send(self, data: bytes) -> None:
        """Begin a new exchange."""
        self._reset()
        assert self._transport is not None
        self._transport.write(data)

    def deadline(self, timeout_s: float) -> float:
        return self._loop.time() + timeout_s

    async def wait(self, deadline: float) -> None:
        """Return when something new has come. Raises ReadTimeout at the deadline (loop time)."""
        self._raise_error()
        self._waiter = self._loop.create_future()
        self._deadline = deadline
        if self._timer is None or deadline < self._timer_at:
            self._watch()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if not self._pieces:
            self._raise_error()

    def take(self) -> bytes | None:
        """The next bytes of the body, joined; None when none are here."""
        pieces = self._pieces
        if not pieces:
            return None
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    @property
    def reusable(self) -> bool:
        return self.complete and not self.closed and not self._pieces and self._keep_alive

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _watch(self) -> None:
        # One timer for many waits: it is not moved with each, but looks when it goes off.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._loop.time() < self._deadline:
            self._watch()
        else:
            waiter.set_exception(httpx.ReadTimeout("no byte within the read timeout"))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
