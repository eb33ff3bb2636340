"""Whatever a stream does to frames, each attempt gets what was sent, in order, once, and one end.

Hypothesis draws what each request does and what the pipe does to its frames: delays, splits, joins,
and a cut after any of them. The same scripts run over gRPC and directly, without the cut.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bourse.multiplex import Attempt, Broken, Exchange, Left
from bourse.multiplex.frames import MAX_JOINED_BYTES, WINDOW_BYTES
from bourse.v1.events_pb2 import OUTCOME_CLIENT_LEFT, OUTCOME_FAILED, LeaseSpend
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_CLIENT_LEFT,
    Chunk,
    Failed,
    Finished,
    Started,
)
from tests.bourse.multiplex_world import Faults, World, direct, facts, over_grpc, pipe
from tests.eventually import eventually

MINUTE_MS = 60_000


@dataclass
class Script:
    """What one request does at both ends."""

    body_bytes: int
    chunk_bytes: list[int]
    budgets: int = 0  # asked for before the first chunks
    fails: bool = False
    takes_body: bool = True
    cancel_after: int | None = None  # frames received
    never_reads: bool = False

    def body(self, number: int) -> bytes:
        return _bytes(number, self.body_bytes)

    def chunks(self, number: int) -> list[bytes]:
        return [_bytes(number + at, size) for at, size in enumerate(self.chunk_bytes)]


@dataclass
class Seen:
    """What happened to one request."""

    body: bytes | None = None
    started: int = 0
    chunks: list[bytes] = field(default_factory=list)
    terminals: list[Finished | Failed] = field(default_factory=list)
    broken: bool = False
    sent: int = 0
    left: bool = False
    consistent: bool = True


SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from([31 << 10, 32 << 10, 33 << 10, 100_000, WINDOW_BYTES, 700_000]),
)
SCRIPTS = st.lists(
    st.builds(
        Script,
        body_bytes=SIZES,
        chunk_bytes=st.lists(SIZES, max_size=6),
        budgets=st.integers(0, 2),
        fails=st.booleans(),
        takes_body=st.booleans(),
        cancel_after=st.one_of(st.none(), st.integers(0, 5)),
        never_reads=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=8,
)


def _bytes(salt: int, size: int) -> bytes:
    pattern = bytes((salt * 7 + at) % 251 for at in range(251))
    return (pattern * (size // 251 + 1))[:size]


class Play:
    """Runs scripts at both ends and records what each end saw."""

    def __init__(self, scripts: list[Script]) -> None:
        self.scripts = scripts
        self.seen = [Seen() for _ in scripts]

    async def handle(self, attempt: Attempt) -> None:
        number = int(attempt.facts.generation)
        script, seen = self.scripts[number], self.seen[number]
        try:
            await self._serve(attempt, number)
            outcome = OUTCOME_FAILED
        except Left as left:
            seen.left = True
            seen.consistent = (left.reason is None) == attempt.broken
            outcome = OUTCOME_CLIENT_LEFT
        if seen.left or script.fails:
            attempt.finish(Failed(outcome=outcome, message=str(number)))
        else:
            attempt.finish(Finished(upstream_id=str(number)))

    async def _serve(self, attempt: Attempt, number: int) -> None:
        script, seen = self.scripts[number], self.seen[number]
        if script.takes_body:
            seen.body = await attempt.body()
        await attempt.started(Started())
        for asked in range(script.budgets):
            attempt.need_budget()
            assert (await attempt.budget()).holds[0].amount_nano == asked
        for chunk in script.chunks(number):
            await attempt.send(Chunk(choices=chunk))
            seen.sent += 1

    async def run(self, it: World) -> None:
        await asyncio.gather(*(self._read(it, number) for number in range(len(self.scripts))))

    async def _read(self, it: World, number: int) -> None:
        script, seen = self.scripts[number], self.seen[number]
        try:
            exchange = it.link.open(facts(str(number)), script.body(number), MINUTE_MS)
        except Broken:
            seen.broken = True
            return
        try:
            await self._take(exchange, script, seen)
        except Broken:
            seen.broken = True

    async def _take(self, exchange: Exchange, script: Script, seen: Seen) -> None:
        frames = asked = 0
        if script.never_reads:
            await asyncio.sleep(0.01)
            assert exchange.unread_bytes <= WINDOW_BYTES
            exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
        while True:
            if frames == script.cancel_after:
                exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
            assert exchange.unread_bytes <= WINDOW_BYTES
            frame = await anext(exchange, None)
            if frame is None:
                return
            frames += 1
            kind = frame.WhichOneof("kind")
            if kind == "started":
                seen.started += 1
            elif kind == "chunk":
                seen.chunks.append(frame.chunk.choices)
            elif kind == "need_budget":
                exchange.budget([LeaseSpend(lease="l", amount_nano=asked)])
                asked += 1
            else:
                assert kind in ("finished", "failed")
                seen.terminals.append(frame.finished if kind == "finished" else frame.failed)

    def check(self, cut: bool) -> None:
        for number, (script, seen) in enumerate(zip(self.scripts, self.seen, strict=True)):
            sent = script.chunks(number)
            assert seen.chunks == sent[: len(seen.chunks)], "content out of order, lost or doubled"
            assert seen.body in (None, script.body(number))
            assert seen.started <= 1
            assert seen.consistent
            assert len(seen.terminals) == (0 if seen.broken else 1)
            assert not seen.broken or cut
            cancelled = script.never_reads or script.cancel_after is not None
            if cut or cancelled:
                continue
            assert seen.chunks == sent
            assert not seen.left
            assert isinstance(seen.terminals[0], Failed) == script.fails


async def play(
    scripts: list[Script],
    make: Callable[..., AbstractAsyncContextManager[World]],
    faults: Faults | None = None,
) -> None:
    it = Play(scripts)
    async with make(it.handle, faults) as world:
        async with asyncio.timeout(30):
            await it.run(world)
        assert world.link.in_flight == 0
        await eventually(lambda: world.servicer.in_flight == 0)
        for end in (world.edge_end, world.worker_end):
            assert end is None or end.largest <= MAX_JOINED_BYTES
    cut = faults is not None and faults.frames_left is not None
    it.check(cut)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS, st.integers(0, 2**32))
def test_over_a_pipe_that_delays_splits_and_joins(scripts: list[Script], seed: int) -> None:
    asyncio.run(play(scripts, pipe, Faults(seed)))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS, st.integers(0, 2**32), st.integers(1, 60))
def test_over_a_pipe_that_is_cut_anywhere(
    scripts: list[Script], seed: int, cut_after_frames: int
) -> None:
    asyncio.run(play(scripts, pipe, Faults(seed, cut_after_frames)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS)
def test_over_grpc(scripts: list[Script]) -> None:
    asyncio.run(play(scripts, over_grpc))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS)
def test_directly(scripts: list[Script]) -> None:
    asyncio.run(play(scripts, direct))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_at_once_over_a_faulty_pipe(seed: int) -> None:
    scripts = [
        Script(
            body_bytes=number * 37 % 2_000,
            chunk_bytes=[number % 300] * (number % 8),
            budgets=number % 2,
            cancel_after=3 if number % 5 == 0 else None,
        )
        for number in range(1_000)
    ]
    asyncio.run(play(scripts, pipe, Faults(seed)))
