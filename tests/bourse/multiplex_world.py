"""Both ends of the multiplexed stream, joined by a faulty pipe, by gRPC, or directly."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from bourse.multiplex import (
    DirectLink,
    Exchange,
    GenerationServicer,
    Handler,
    StreamLink,
    WorkerLink,
    WorkerPool,
)
from bourse.multiplex.frames import unpack, wrap
from bourse.rpc import Context, Network, RpcError, StatusCode
from bourse.v1.generation_pb2 import (
    AttemptFacts,
    Failed,
    Finished,
)
from bourse.v1.generation_pb2_grpc import GenerationStub
from tests.eventually import eventually

PIPE_MESSAGES = 4
"""What a direction of the pipe holds before its writer has to wait."""


class Faults:
    """What the pipe does to messages: all of it, drawn from one seed."""

    def __init__(self, seed: int = 0, cut_after_frames: int | None = None) -> None:
        self.random = random.Random(seed)
        self.frames_left = cut_after_frames


class End:
    """One end of the pipe, with the interface of a stream at either end."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue(PIPE_MESSAGES)
        self._waiting: list[bytes] = []
        self._cut = asyncio.Event()
        self.other: End = self
        self.peer = "pipe"
        self.largest = 0
        """Bytes of the largest message written here."""

    async def accept(self) -> None: ...

    async def read(self) -> bytes | None:
        await self._pause()
        return await self._until_cut(self._incoming.get())

    async def write(self, message: bytes) -> None:
        """Deliver the frames in order, joined with others or split apart, each after a while."""
        self.largest = max(self.largest, len(message))
        frames = [wrap(frame) for frame in unpack(message)]
        while frames:
            count = self._faults.random.randint(1, len(frames))
            piece, frames = frames[:count], frames[count:]
            await self._pause()
            await self._carry(piece)

    async def done_writing(self) -> None:
        await self._until_cut(self.other._incoming.put(None))

    def cut(self) -> None:
        """Lose everything under way, in both directions."""
        self._cut.set()
        self.other._cut.set()

    async def deliver(self, message: bytes) -> None:
        """Hand a message to the other end as it is."""
        await self._until_cut(self.other._incoming.put(message))

    async def _carry(self, frames: list[bytes]) -> None:
        left = self._faults.frames_left
        if left is not None:
            frames = frames[:left]
            self._faults.frames_left = left - len(frames)
        if frames:
            await self.deliver(b"".join(frames))
        if self._faults.frames_left == 0:
            # What was delivered may still be read or not: both happen.
            await self._pause()
            self.cut()
        self._check()

    async def _pause(self) -> None:
        for _ in range(self._faults.random.choice((0, 0, 1, 3))):
            await asyncio.sleep(0)
        self._check()

    async def _until_cut(self, operation: Coroutine[Any, Any, bytes | None]) -> bytes | None:
        running = asyncio.ensure_future(operation)
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({running, cut}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            raise RpcError(StatusCode.UNAVAILABLE, "the pipe was cut")
        finally:
            running.cancel()
            cut.cancel()

    def _check(self) -> None:
        if self._cut.is_set():
            raise RpcError(StatusCode.UNAVAILABLE, "the pipe was cut")


class World:
    """A link, and the servicer at its other end."""

    def __init__(self, link: WorkerLink, servicer: GenerationServicer) -> None:
        self.link = link
        self.servicer = servicer
        self.edge_end: End | None = None
        self.worker_end: End | None = None


@asynccontextmanager
async def pipe(handler: Handler, faults: Faults | None = None) -> AsyncIterator[World]:
    faults = faults or Faults()
    edge_end, worker_end = End(faults), End(faults)
    edge_end.other, worker_end.other = worker_end, edge_end
    servicer = GenerationServicer(handler)
    serving = asyncio.create_task(servicer.Generate(worker_end, Context(None, "")))
    link = StreamLink(edge_end, "pipe")

    async def carry() -> None:
        await link.run()
        edge_end.cut()  # as the end of a link closes its connection

    running = asyncio.create_task(carry())
    await eventually(lambda: link.usable)
    world = World(link, servicer)
    world.edge_end, world.worker_end = edge_end, worker_end
    try:
        yield world
    finally:
        edge_end.cut()
        await running
        with suppress(RpcError):
            await serving


@asynccontextmanager
async def over_grpc(handler: Handler, faults: Faults | None = None) -> AsyncIterator[World]:
    server, client = Network(), Network()
    servicer = GenerationServicer(handler)
    server.serve(GenerationStub, servicer)
    port = await server.listen("127.0.0.1:0")
    pool = WorkerPool(client, f"grpc://127.0.0.1:{port}")
    await pool.start()
    try:
        await eventually(lambda: pool.usable)
        yield World(pool.choose(), servicer)
    finally:
        await pool.close()
        await server.close()
        await client.close()


@asynccontextmanager
async def direct(handler: Handler, faults: Faults | None = None) -> AsyncIterator[World]:
    servicer = GenerationServicer(handler)
    link = DirectLink(servicer)
    try:
        yield World(link, servicer)
    finally:
        await link.close()


WORLDS = {"pipe": pipe, "grpc": over_grpc, "direct": direct}


def facts(name: str = "g", attempt: int = 1) -> AttemptFacts:
    return AttemptFacts(generation=name, attempt=attempt)


async def collect(exchange: Exchange) -> tuple[list[bytes], Finished | Failed]:
    """Return the content and the terminal frame. Raises Broken."""
    content = []
    terminal: Finished | Failed | None = None
    async for frame in exchange:
        assert terminal is None, "a frame after the terminal one"
        if frame.HasField("chunk"):
            content.append(frame.chunk.choices)
        elif frame.HasField("finished"):
            terminal = frame.finished
        elif frame.HasField("failed"):
            terminal = frame.failed
    assert terminal is not None
    return content, terminal
