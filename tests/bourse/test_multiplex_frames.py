"""How frames are joined, which go first, and what ends a stream because its grammar is broken."""

import asyncio
from collections import deque

import pytest

from bourse.multiplex import Attempt, Broken, GenerationServicer, StreamLink
from bourse.multiplex.frames import (
    MAX_JOINED_BYTES,
    MAX_MESSAGE_BYTES,
    WINDOW_BYTES,
    GrammarError,
    Lane,
    Outbox,
    pack,
    unpack,
    wrap,
)
from bourse.rpc import Context, RpcError
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_CLIENT_LEFT,
    CANCEL_REASON_DEADLINE,
    Body,
    Cancel,
    Chunk,
    Credit,
    Failed,
    Finished,
    GenerateRequest,
    GenerateResponse,
    NeedBudget,
    Open,
    RequestFrame,
    ResponseFrame,
    Started,
)
from tests.bourse.multiplex_world import End, Faults, facts
from tests.eventually import eventually


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 32 << 10, 400_000])
def test_packed_frames_are_what_protobuf_would_write(size: int) -> None:
    frames = [ResponseFrame(id=1, chunk=Chunk(choices=b"x" * size)), ResponseFrame(id=2)]
    message = b"".join(map(pack, frames))
    assert message == GenerateResponse(frames=frames).SerializeToString()
    assert [ResponseFrame.FromString(frame) for frame in unpack(message)] == frames


def test_a_frame_too_large_for_any_message_is_refused() -> None:
    with pytest.raises(ValueError, match="the limit is"):
        pack(ResponseFrame(id=1, chunk=Chunk(choices=b"x" * MAX_MESSAGE_BYTES)))


@pytest.mark.parametrize(
    "message", [b"\x12\x00", b"\x0a", b"\x0a\x05abc", b"\x0a\x80", b"\x0a\x80\x80\x80\x80\x80\x01"]
)
def test_a_message_that_is_no_list_of_frames_breaks_the_grammar(message: bytes) -> None:
    with pytest.raises(GrammarError):
        list(unpack(message))


def frame(name: str, size: int = 10) -> bytes:
    return wrap(name.encode().ljust(size, b" "))


def names(message: bytes) -> list[str]:
    return [packed.decode().strip() for packed in unpack(message)]


async def test_what_waits_is_joined_into_one_message() -> None:
    outbox = Outbox()
    lane: Lane = deque()
    for number in range(5):
        outbox.content(lane, frame(str(number)))
    assert names(outbox.take()) == ["0", "1", "2", "3", "4"]
    assert outbox.take() == b""


async def test_joining_stops_before_the_limit() -> None:
    outbox = Outbox()
    lane: Lane = deque()
    for number in range(5):
        outbox.content(lane, frame(str(number), 30_000))
    taken = [outbox.take() for _ in range(3)]
    assert [names(message) for message in taken] == [["0", "1"], ["2", "3"], ["4"]]
    assert all(len(message) <= MAX_JOINED_BYTES for message in taken)


async def test_the_writer_goes_round_the_requests() -> None:
    outbox = Outbox()
    one, other, late = deque[bytes](), deque[bytes](), deque[bytes]()
    for number in range(4):
        outbox.content(one, frame(f"a{number}", 20_000))
    outbox.content(other, frame("b0", 20_000))
    outbox.content(late, frame("c0", 20_000))
    outbox.content(late, frame("c1", 20_000))
    written = [name for _ in range(3) for name in names(outbox.take())]
    assert written == ["a0", "b0", "c0", "a1", "c1", "a2", "a3"]


async def test_control_frames_do_not_wait_for_other_requests_content() -> None:
    outbox = Outbox()
    one, other, empty = deque[bytes](), deque[bytes](), deque[bytes]()
    for number in range(8):
        outbox.content(one, frame(f"a{number}", 30_000))
    outbox.content(other, frame("b0"))
    outbox.after(empty, frame("end of c"))  # no content of its own waits
    outbox.after(other, frame("end of b"))  # its own content goes first
    outbox.control(frame("cancel"))
    first = names(outbox.take())
    assert first[:2] == ["end of c", "cancel"]
    rest = first[2:] + [name for _ in range(8) for name in names(outbox.take())]
    assert rest.index("b0") < rest.index("end of b") < rest.index("a2")


async def test_what_is_dropped_is_not_written() -> None:
    outbox = Outbox()
    one, other = deque[bytes](), deque[bytes]()
    outbox.content(one, frame("a"))
    outbox.content(other, frame("b"))
    outbox.drop(one)
    outbox.after(one, frame("end of a"))
    assert names(outbox.take()) == ["end of a", "b"]


async def test_one_writer_joins_what_comes_while_it_writes() -> None:
    outbox = Outbox()
    written: list[list[str]] = []
    release = asyncio.Event()

    async def write(message: bytes) -> None:
        written.append(names(message))
        await release.wait()

    writer = asyncio.create_task(outbox.write_all(write))
    outbox.control(frame("1"))
    await eventually(lambda: written)
    outbox.control(frame("2"))
    outbox.control(frame("3"))
    release.set()
    outbox.finish()
    async with asyncio.timeout(10):
        await writer
    assert written == [["1"], ["2", "3"]]


async def finish_at_once(attempt: Attempt) -> None:
    attempt.finish(Finished())


async def never(attempt: Attempt) -> None:
    await attempt.left()
    attempt.finish(Finished())


def request(*frames: RequestFrame) -> bytes:
    return GenerateRequest(frames=frames).SerializeToString()


OPEN = RequestFrame(id=1, open=Open(remaining_ms=60_000, facts=facts()))
PIECE = b"x" * 30_000


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (request(OPEN, OPEN), "cannot be opened"),
        (request(RequestFrame(open=Open())), "cannot be opened"),
        (request(OPEN, RequestFrame(id=1)), "unexpected frame"),
        (request(RequestFrame(id=1)), "no kind"),
        (request(OPEN, RequestFrame(id=1, body=Body(body=b"x"))), "body after its end"),
        (request(OPEN, RequestFrame(id=1, credit=Credit(bytes=1))), "credit beyond"),
        (
            request(
                RequestFrame(id=1, open=Open(remaining_ms=60_000, more=True)),
                *[RequestFrame(id=1, body=Body(body=PIECE, more=True))] * 9,
            ),
            "body beyond the window",
        ),
        (b"\x0a\x03abc", "not a frame"),
        (b"nonsense", "not a list of frames"),
    ],
)
async def test_an_edge_that_breaks_the_grammar_loses_its_stream(
    message: bytes, reason: str
) -> None:
    edge, worker = pipe_ends()
    servicer = GenerationServicer(never)
    serving = asyncio.create_task(servicer.Generate(worker, Context(None, "")))
    await edge.deliver(message)
    async with asyncio.timeout(10):
        with pytest.raises(RpcError, match=reason):
            await serving
    # What it had open is left, and its handlers come to their end.
    await eventually(lambda: servicer.in_flight == 0)


async def test_an_edge_that_speaks_of_unknown_attempts_is_only_counted() -> None:
    edge, worker = pipe_ends()
    servicer = GenerationServicer(finish_at_once)
    serving = asyncio.create_task(servicer.Generate(worker, Context(None, "")))
    await edge.deliver(request(OPEN))
    answer = await edge.read()
    assert answer is not None
    late = [RequestFrame(id=1, cancel=Cancel()), RequestFrame(id=1, credit=Credit(bytes=9))]
    await edge.deliver(request(*late))
    await edge.deliver(request(RequestFrame(id=2, open=OPEN.open)))
    assert await edge.read() is not None
    assert servicer.unknown_frames == 2
    await edge.done_writing()
    async with asyncio.timeout(10):
        await serving


async def test_an_edge_that_has_closed_its_end_still_gets_its_answers() -> None:
    edge, worker = pipe_ends()
    release = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        await release.wait()
        attempt.finish(Finished(upstream_id=str(attempt.has_left)))

    servicer = GenerationServicer(handle)
    serving = asyncio.create_task(servicer.Generate(worker, Context(None, "")))
    await edge.deliver(request(OPEN))
    await edge.done_writing()
    await eventually(lambda: servicer.in_flight == 1)
    release.set()
    async with asyncio.timeout(10):
        answer = await edge.read()
        await serving
    assert answer is not None
    (frame,) = map(ResponseFrame.FromString, unpack(answer))
    assert frame.finished.upstream_id == "False"


async def test_a_worker_keeps_the_deadline_when_its_edge_does_not() -> None:
    edge, worker = pipe_ends()

    async def handle(attempt: Attempt) -> None:
        await attempt.left()
        attempt.finish(Failed(status=attempt.cancel_reason or 0))

    servicer = GenerationServicer(handle)
    serving = asyncio.create_task(servicer.Generate(worker, Context(None, "")))
    await edge.deliver(request(RequestFrame(id=1, open=Open(remaining_ms=20, facts=facts()))))
    async with asyncio.timeout(10):
        answer = await edge.read()
        await edge.done_writing()
        await serving
    assert answer is not None
    (frame,) = map(ResponseFrame.FromString, unpack(answer))
    assert frame.failed.status == CANCEL_REASON_DEADLINE


async def test_a_cancel_is_written_once_and_before_content() -> None:
    edge, worker = pipe_ends()
    link = StreamLink(edge, "worker")
    running = asyncio.create_task(link.run())
    await eventually(lambda: link.usable)
    exchange = link.open(facts(), b"x" * 100_000, 60_000)
    for _ in range(3):
        exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
    frames: list[RequestFrame] = []
    async with asyncio.timeout(10):
        while len(frames) < 2:
            message = await worker.read()
            assert message is not None
            frames += map(RequestFrame.FromString, unpack(message))
    assert [frame.WhichOneof("kind") for frame in frames] == ["open", "cancel"]
    await link.close()
    await running


def response(*frames: ResponseFrame) -> bytes:
    return GenerateResponse(frames=frames).SerializeToString()


STARTED = ResponseFrame(id=1, started=Started())
CHUNK = ResponseFrame(id=1, chunk=Chunk(choices=PIECE))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (response(CHUNK), "chunk before started"),
        (response(STARTED, STARTED), "started twice"),
        (response(STARTED, *[CHUNK] * (WINDOW_BYTES // len(PIECE) + 1)), "beyond the window"),
        (response(ResponseFrame(id=1)), "unexpected frame"),
        (response(ResponseFrame(id=1, credit=Credit(bytes=1 << 40))), "credit beyond"),
        (b"\x0a\x03abc", "not a frame"),
        (b"nonsense", "not a list of frames"),
    ],
)
async def test_a_worker_that_breaks_the_grammar_loses_its_stream(
    message: bytes, reason: str
) -> None:
    edge, worker = pipe_ends()
    link = StreamLink(edge, "worker")
    running = asyncio.create_task(link.run())
    await eventually(lambda: link.usable)
    exchange = link.open(facts(), b"", 60_000)
    await worker.deliver(message)
    async with asyncio.timeout(10):
        assert reason in await running
        with pytest.raises(Broken, match=reason):
            async for _ in exchange:
                pass
    assert not link.usable


async def test_a_worker_that_speaks_of_unknown_requests_is_only_counted() -> None:
    edge, worker = pipe_ends()
    link = StreamLink(edge, "worker")
    running = asyncio.create_task(link.run())
    await eventually(lambda: link.usable)
    exchange = link.open(facts(), b"", 60_000)
    finished = ResponseFrame(id=1, finished=Finished())
    need = ResponseFrame(id=7, need_budget=NeedBudget())
    await worker.deliver(response(need, finished, finished, CHUNK))
    async with asyncio.timeout(10):
        assert [f.WhichOneof("kind") async for f in exchange] == ["finished"]
    await eventually(lambda: link.unknown_frames == 3)
    await link.close()
    assert await running == "closed"


def pipe_ends() -> tuple[End, End]:
    faults = Faults()
    one, other = End(faults), End(faults)
    one.other, other.other = other, one
    return one, other


async def test_what_had_arrived_before_a_stream_broke_is_read_first() -> None:
    edge, worker = pipe_ends()
    link = StreamLink(edge, "worker")
    running = asyncio.create_task(link.run())
    await eventually(lambda: link.usable)
    whole, cut_off = link.open(facts(), b"", 60_000), link.open(facts(), b"", 60_000)
    finished = ResponseFrame(id=1, finished=Finished())
    started = ResponseFrame(id=2, started=Started())
    await worker.deliver(response(STARTED, CHUNK, finished, started))
    await eventually(lambda: link.in_flight == 1)
    worker.cut()
    await running
    assert [f.WhichOneof("kind") async for f in whole] == ["started", "chunk", "finished"]
    assert (await anext(cut_off)).HasField("started")
    with pytest.raises(Broken, match="the pipe was cut"):
        await anext(cut_off)


async def test_content_that_waits_when_its_cancel_arrives_is_not_written() -> None:
    edge, worker = pipe_ends()
    sent = []

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        for _ in range(8):
            await attempt.send(Chunk(choices=PIECE))
        sent.append(attempt.id)
        await attempt.left()
        attempt.finish(Finished())

    servicer = GenerationServicer(handle)
    serving = asyncio.create_task(servicer.Generate(worker, Context(None, "")))
    # Nobody reads, so the pipe is full of the first ones' content, and the last one's waits.
    for number in range(1, 5):
        await edge.deliver(request(RequestFrame(id=number, open=OPEN.open)))
    await eventually(lambda: len(sent) == 4)
    await edge.deliver(request(RequestFrame(id=4, cancel=Cancel(reason=CANCEL_REASON_CLIENT_LEFT))))
    await eventually(lambda: servicer.in_flight == 3)
    frames: list[ResponseFrame] = []
    async with asyncio.timeout(10):
        while not any(frame.id == 4 and frame.HasField("finished") for frame in frames):
            message = await edge.read()
            assert message is not None
            frames += map(ResponseFrame.FromString, unpack(message))
    assert sum(frame.id == 4 and frame.HasField("chunk") for frame in frames) < 8
    edge.cut()
    with pytest.raises(RpcError):
        await serving
    await eventually(lambda: servicer.in_flight == 0)
