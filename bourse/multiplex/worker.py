"""The worker's end of the streams."""

import asyncio
import logging
from typing import Protocol

from google.protobuf.message import DecodeError

from bourse.multiplex.attempt import Attempt
from bourse.multiplex.attempts import Attempts, Handler
from bourse.multiplex.frames import MAX_MESSAGE_BYTES, GrammarError, Outbox, pack, unpack
from bourse.rpc import Context, RpcError, StatusCode, Stream
from bourse.v1.generation_pb2 import Drain, RequestFrame, ResponseFrame

log = logging.getLogger(__name__)


class WorkerStream(Stream, Protocol):
    """The stream of one session."""

    peer: str
    """The other end's address."""

    async def accept(self) -> None: ...


class Session(Attempts):
    """The attempts of one stream."""

    def __init__(
        self, stream: WorkerStream, handler: Handler, tasks: "set[asyncio.Task[None]]"
    ) -> None:
        super().__init__(handler, tasks)
        self._stream = stream
        self._outbox = Outbox()
        self.peer = stream.peer

    async def run(self) -> None:
        """Serve until the edge has closed its end and everything is answered.

        Raises RpcError when the stream breaks or its grammar is broken; what was open is then
        left, and its handlers go on to their end.
        """
        failure: BaseException | None = None
        try:
            await self._stream.accept()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._read())
                both.create_task(self._outbox.write_all(self._stream.write))
        except* (RpcError, GrammarError) as errors:
            failure = errors.exceptions[0]
        finally:
            self.broke()
        if isinstance(failure, GrammarError):
            log.error("an edge broke the grammar of its stream: %s", failure)
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(failure))
        if failure is not None:
            raise failure

    def drain(self) -> None:
        """Ask the edge to open nothing new; it closes its end when the rest is done."""
        self._outbox.control(pack(ResponseFrame(drain=Drain())))

    def tell(self, attempt: Attempt, frame: ResponseFrame) -> None:
        packed = pack(frame)
        if frame.HasField("credit"):
            self._outbox.control(packed)
        else:
            self._outbox.after(attempt.lane, packed)

    def tell_content(self, attempt: Attempt, frame: ResponseFrame) -> None:
        self._outbox.content(attempt.lane, pack(frame))

    def drop(self, attempt: Attempt) -> None:
        self._outbox.drop(attempt.lane)

    async def _read(self) -> None:
        while (message := await self._stream.read()) is not None:
            if len(message) > MAX_MESSAGE_BYTES:
                raise GrammarError(f"a message of {len(message)} bytes")
            try:
                for packed in unpack(message):
                    self.receive(RequestFrame.FromString(packed))
            except DecodeError as error:
                raise GrammarError(f"not a frame: {error}") from None
        await self.none_open()
        self._outbox.finish()


class GenerationServicer:
    """Serves the Generation service: streams of attempts, each given to the handler.

    Register it with `network.serve(GenerationStub, …)`. A subclass may add `async def
    Probe(self, request, context)`.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.tasks: set[asyncio.Task[None]] = set()
        """The handlers that run, also for direct links."""
        self.draining = False
        self.sessions: set[Session] = set()
        self._session_ended = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self.tasks)

    @property
    def unknown_frames(self) -> int:
        """Frames on the open streams for attempts that are not open."""
        return sum(session.unknown_frames for session in self.sessions)

    async def Generate(self, stream: WorkerStream, context: Context) -> None:
        if self.draining:
            raise RpcError(StatusCode.UNAVAILABLE, "draining")
        session = Session(stream, self.handler, self.tasks)
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)
            self._session_ended.set()

    async def drain(self) -> None:
        """Take nothing new; return when every stream is closed and every handler has ended.

        The caller bounds it.
        """
        self.draining = True
        for session in self.sessions:
            session.drain()
        while self.sessions or self.tasks:
            if self.tasks:
                await asyncio.wait(set(self.tasks))
            else:  # the edges close their ends
                self._session_ended.clear()
                await self._session_ended.wait()
