"""The edge's end of a stream: the link that carries exchanges as frames."""

import asyncio
import logging
from collections import deque
from typing import Protocol

from google.protobuf.message import DecodeError

from bourse.multiplex.exchange import MAX_IN_FLIGHT, Exchange, Link
from bourse.multiplex.frames import (
    MAX_CONTENT_BYTES,
    MAX_PIECE_BYTES,
    OVERHEAD_BYTES,
    WINDOW_BYTES,
    GrammarError,
    Lane,
    Outbox,
    pack,
    unpack,
)
from bourse.rpc import RpcError, Stream
from bourse.v1.generation_pb2 import AttemptFacts, Body, RequestFrame, ResponseFrame

log = logging.getLogger(__name__)


class EdgeStream(Stream, Protocol):
    """The stream of one link."""

    async def done_writing(self) -> None: ...


class _Upload:
    """A request's frames that wait, and of its body what has not become frames yet."""

    __slots__ = ("body", "lane", "opening", "sent", "window")

    def __init__(self, body: bytes, opening: bytes, sent: int) -> None:
        self.body = body
        self.opening = opening
        self.sent = sent
        self.window = WINDOW_BYTES - sent - OVERHEAD_BYTES
        self.lane: Lane = deque()


class StreamLink(Link):
    """A link over one stream; it lives as long as `run`."""

    def __init__(self, stream: EdgeStream, name: str = "") -> None:
        super().__init__(name)
        self._stream = stream
        self._outbox = Outbox()
        self._uploads: dict[int, _Upload] = {}
        self._open = False
        self._running: asyncio.Task[str] | None = None

    @property
    def usable(self) -> bool:
        return self._open and not self._draining and len(self._exchanges) < MAX_IN_FLIGHT

    async def run(self) -> str:
        """Carry exchanges until the stream ends; return why it did. What was open is Broken."""
        self._running = asyncio.create_task(self._carry())
        try:
            await asyncio.wait({self._running})
        finally:
            self._running.cancel()
        return "closed" if self._running.cancelled() else self._running.result()

    async def close(self) -> None:
        """Break what is open and end `run`."""
        self._draining = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _carry(self) -> str:
        self._open = True
        reason = "closed"
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._read())
                both.create_task(self._write())
            reason = "ended"
        except* (RpcError, GrammarError) as errors:
            reason = str(errors.exceptions[0])
            if isinstance(errors.exceptions[0], GrammarError):
                log.error("worker %s broke the grammar of the stream: %s", self._name, reason)
        finally:
            self._open = False
            self._break(f"stream to worker {self._name} broke: {reason}")
            self._uploads.clear()
        return reason

    def open(self, facts: AttemptFacts, body: bytes, remaining_ms: int) -> Exchange:
        if len(body) > MAX_CONTENT_BYTES:
            raise ValueError(f"a body of {len(body)} bytes: the limit is {MAX_CONTENT_BYTES}")
        exchange = self._new(remaining_ms)
        first = body
        if len(body) > MAX_PIECE_BYTES // 2:
            first = body[: max(0, MAX_PIECE_BYTES - facts.ByteSize())]
        more = len(first) < len(body)
        frame = RequestFrame(id=exchange.id)  # filled in place: one copy of the facts, not two
        frame.open.remaining_ms = remaining_ms
        frame.open.facts.CopyFrom(facts)
        frame.open.body = first
        frame.open.more = more
        try:
            packed = pack(frame)
        except ValueError:
            self.ended(exchange)
            raise
        upload = self._uploads[exchange.id] = _Upload(body, packed, len(first))
        self._outbox.content(upload.lane, packed)
        if more:
            self._upload(exchange.id, upload)
        return exchange

    def tell(self, frame: RequestFrame) -> None:
        packed = pack(frame)
        if frame.HasField("credit"):
            self._outbox.control(packed)
        else:
            self._outbox.after(self._uploads[frame.id].lane, packed)

    def cancelled(self, exchange: Exchange, frame: RequestFrame) -> None:
        upload = self._uploads[exchange.id]
        unsent = bool(upload.lane) and upload.lane[0] is upload.opening
        self._outbox.drop(upload.lane)
        upload.sent = len(upload.body)
        if unsent:  # the worker is told all the same: every attempt has its record
            self._outbox.control(upload.opening)
        super().cancelled(exchange, frame)

    def ended(self, exchange: Exchange) -> None:
        upload = self._uploads.pop(exchange.id, None)
        if upload is not None:
            self._outbox.drop(upload.lane)
        super().ended(exchange)
        if self._draining and not self._exchanges:
            self._outbox.finish()

    async def drain(self) -> None:
        self._draining = True
        if not self._exchanges:
            self._outbox.finish()
        await self._idle.wait()

    async def _read(self) -> None:
        while (message := await self._stream.read()) is not None:
            try:
                for packed in unpack(message):
                    self._receive(ResponseFrame.FromString(packed))
            except DecodeError as error:
                raise GrammarError(f"not a frame: {error}") from None
        self._outbox.finish()

    async def _write(self) -> None:
        await self._outbox.write_all(self._stream.write)
        await self._stream.done_writing()

    def _receive(self, frame: ResponseFrame) -> None:
        exchange = self._exchanges.get(frame.id)
        if exchange is None:
            if frame.HasField("drain"):
                self._draining = True
                if not self._exchanges:
                    self._outbox.finish()
            else:
                self.unknown_frames += 1
        elif frame.HasField("credit"):
            upload = self._uploads[frame.id]
            upload.window += frame.credit.bytes
            if upload.window > WINDOW_BYTES:
                raise GrammarError("credit beyond the window")
            self._upload(frame.id, upload)
        else:
            exchange.receive(frame)

    def _upload(self, request_id: int, upload: _Upload) -> None:
        """Make frames of the body while the window has room."""
        while upload.sent < len(upload.body):
            piece = upload.body[upload.sent : upload.sent + MAX_PIECE_BYTES]
            cost = len(piece) + OVERHEAD_BYTES
            if cost > upload.window:
                return
            upload.window -= cost
            upload.sent += len(piece)
            frame = Body(body=piece, more=upload.sent < len(upload.body))
            self._outbox.content(upload.lane, pack(RequestFrame(id=request_id, body=frame)))
