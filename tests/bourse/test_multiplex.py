"""What edge and worker rely on, the same over a stream (a faulty pipe, gRPC) and directly."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

import pytest

from bourse.multiplex import (
    Attempt,
    Broken,
    Exchange,
    Handler,
    Left,
    StreamLink,
    attempts,
    exchange,
)
from bourse.multiplex.frames import WINDOW_BYTES
from bourse.v1.events_pb2 import (
    OUTCOME_CLIENT_LEFT,
    OUTCOME_FAILED,
    OUTCOME_LOST,
    LeaseSpend,
)
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_CLIENT_LEFT,
    CANCEL_REASON_DEADLINE,
    CANCEL_REASON_HEDGE_LOST,
    Chunk,
    Failed,
    Finished,
    Started,
)
from tests.bourse.multiplex_world import WORLDS, World, collect, facts
from tests.eventually import eventually

MINUTE_MS = 60_000
Make = Callable[[Handler], AbstractAsyncContextManager[World]]


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> Make:
    return WORLDS[request.param]


async def echo(attempt: Attempt) -> None:
    """Answer with the body, as one chunk."""
    body = await attempt.body()
    await attempt.started(Started())
    await attempt.send(Chunk(choices=body))
    attempt.finish(Finished(finish_reason="stop"))


async def wait_until_left(attempt: Attempt) -> None:
    """Produce nothing, as a silent upstream; say how it ended."""
    try:
        async with attempt.until_left():
            await asyncio.Event().wait()
    except Left as left:
        attempt.finish(Failed(outcome=OUTCOME_CLIENT_LEFT, status=left.reason or 0))


async def test_an_answer_is_what_was_sent_then_one_terminal_frame(world: Make) -> None:
    async with world(echo) as it:
        content, terminal = await collect(it.link.open(facts(), b"hello", MINUTE_MS))
        assert content == [b"hello"]
        assert isinstance(terminal, Finished)
        assert terminal.finish_reason == "stop"
        assert it.link.in_flight == 0


async def test_a_large_body_and_a_large_chunk_arrive_whole(world: Make) -> None:
    body = bytes(range(256)) * 10_000
    async with world(echo) as it:
        content, _ = await collect(it.link.open(facts(), body, MINUTE_MS))
        assert content == [body]


async def test_the_facts_and_the_remaining_time_arrive(world: Make) -> None:
    seen: list[Attempt] = []

    async def handle(attempt: Attempt) -> None:
        seen.append(attempt)
        attempt.finish(Finished())

    async with world(handle) as it:
        await collect(it.link.open(facts("g1", 3), b"", 1_234))
    assert (seen[0].facts.generation, seen[0].facts.attempt) == ("g1", 3)
    assert seen[0].remaining_ms == 1_234


async def test_a_thousand_requests_at_once_get_each_its_own_answer(world: Make) -> None:
    async def handle(attempt: Attempt) -> None:
        body = await attempt.body()
        await attempt.started(Started())
        for at in range(0, len(body), 100):
            await attempt.send(Chunk(choices=body[at : at + 100]))
            await asyncio.sleep(0)
        attempt.finish(Finished(finish_reason=attempt.facts.generation))

    async with world(handle) as it:
        bodies = [f"{number} ".encode() * 200 for number in range(1_000)]
        answers = await asyncio.gather(
            *(
                collect(it.link.open(facts(str(number)), body, MINUTE_MS))
                for number, body in enumerate(bodies)
            )
        )
        assert it.link.in_flight == 0
    for number, (content, terminal) in enumerate(answers):
        assert b"".join(content) == bodies[number]
        assert isinstance(terminal, Finished)
        assert terminal.finish_reason == str(number)


async def test_a_reader_that_never_reads_gets_no_more_than_its_window(world: Make) -> None:
    sent: dict[str, int] = {}

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        try:
            while True:
                await attempt.send(Chunk(choices=b"x" * 1_000))
                sent[attempt.facts.generation] = sent.get(attempt.facts.generation, 0) + 1_000
        except Left:
            attempt.finish(Failed(outcome=OUTCOME_CLIENT_LEFT))

    async with world(handle) as it:
        stalled = [it.link.open(facts(str(number)), b"", MINUTE_MS) for number in range(3)]
        await eventually(lambda: len(sent) == 3 and min(sent.values()) > WINDOW_BYTES - 20_000)
        # Others are not held up, and that they were served shows that the stalled ones wait.
        other = it.link.open(facts("other"), b"", MINUTE_MS)
        taken = 0
        async for frame in other:
            if frame.HasField("chunk"):
                taken += len(frame.chunk.choices)
                if taken > 4 * WINDOW_BYTES:
                    other.cancel(CANCEL_REASON_CLIENT_LEFT)
        assert all(sent[str(number)] <= WINDOW_BYTES for number in range(3))
        for exchange in stalled:
            exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
            content, terminal = await collect(exchange)
            assert len(b"".join(content)) <= WINDOW_BYTES
            assert isinstance(terminal, Failed)


async def test_a_slow_reader_gets_everything_in_the_end(world: Make) -> None:
    pieces = [str(number).encode() * 300 for number in range(2_000)]

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        for piece in pieces:
            await attempt.send(Chunk(choices=piece))
        attempt.finish(Finished())

    async with world(handle) as it:
        seen = []
        async for frame in it.link.open(facts(), b"", MINUTE_MS):
            await asyncio.sleep(0)
            if frame.HasField("chunk"):
                seen.append(frame.chunk.choices)
        assert seen == pieces


async def test_cancel_reaches_a_handler_that_waits_for_its_upstream(world: Make) -> None:
    async with world(wait_until_left) as it:
        exchange = it.link.open(facts(), b"", MINUTE_MS)
        await eventually(lambda: it.servicer.in_flight == 1)
        exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
        exchange.cancel(CANCEL_REASON_HEDGE_LOST)  # does nothing any more
        _, terminal = await collect(exchange)
        assert isinstance(terminal, Failed)
        assert (terminal.outcome, terminal.status) == (
            OUTCOME_CLIENT_LEFT,
            CANCEL_REASON_CLIENT_LEFT,
        )
        exchange.cancel(CANCEL_REASON_CLIENT_LEFT)  # after the end: nothing


async def test_cancel_right_after_opening_still_ends_with_the_workers_word(world: Make) -> None:
    async with world(wait_until_left) as it:
        for body in (b"", b"x" * 3_000_000):
            exchange = it.link.open(facts(), body, MINUTE_MS)
            exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
            _, terminal = await collect(exchange)
            assert isinstance(terminal, Failed)
            assert terminal.outcome == OUTCOME_CLIENT_LEFT


async def test_cancel_may_cross_a_finish_that_then_counts(world: Make) -> None:
    release = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        await attempt.left()
        await release.wait()
        attempt.finish(Finished(finish_reason="was spooled already"))

    async with world(handle) as it:
        exchange = it.link.open(facts(), b"", MINUTE_MS)
        exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
        release.set()
        _, terminal = await collect(exchange)
        assert isinstance(terminal, Finished)


async def test_a_deadline_is_told_to_the_handler_and_answered(world: Make) -> None:
    async with world(wait_until_left) as it:
        _, terminal = await collect(it.link.open(facts(), b"", 20))
        assert isinstance(terminal, Failed)
        assert terminal.status == CANCEL_REASON_DEADLINE


async def test_a_worker_that_does_not_answer_a_cancel_is_given_up(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "CANCEL_WAIT_S", 0.02)
    release = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        await release.wait()
        attempt.finish(Finished())

    async with world(handle) as it:
        open_exchange = it.link.open(facts(), b"", 20)
        with pytest.raises(Broken, match="did not end"):
            await collect(open_exchange)
        assert it.link.in_flight == 0
        release.set()
        await eventually(lambda: it.servicer.in_flight == 0)
        # The late terminal frame harms nobody.
        assert isinstance((await collect(it.link.open(facts(), b"", MINUTE_MS)))[1], Finished)


async def test_a_handler_that_ignores_being_left_is_cut(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "HANDLER_GRACE_S", 0.02)

    async def handle(attempt: Attempt) -> None:
        await asyncio.Event().wait()

    async with world(handle) as it:
        open_exchange = it.link.open(facts(), b"", MINUTE_MS)
        open_exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
        _, terminal = await collect(open_exchange)
        assert isinstance(terminal, Failed)
        assert terminal.outcome == OUTCOME_LOST


@pytest.mark.parametrize("started", [False, True])
async def test_a_handler_that_fails_is_lost_as_our_fault(world: Make, started: bool) -> None:
    async def handle(attempt: Attempt) -> None:
        if started:
            await attempt.started(Started())
        raise KeyError("bug")

    async with world(handle) as it:
        _, terminal = await collect(it.link.open(facts(), b"", MINUTE_MS))
        assert isinstance(terminal, Failed)
        assert (terminal.outcome, terminal.status) == (OUTCOME_LOST, 500)
        assert "bug" not in terminal.message


async def test_a_handler_that_forgets_to_finish_is_lost(world: Make) -> None:
    async def handle(attempt: Attempt) -> None: ...

    async with world(handle) as it:
        _, terminal = await collect(it.link.open(facts(), b"", MINUTE_MS))
        assert isinstance(terminal, Failed)
        assert terminal.outcome == OUTCOME_LOST


async def test_misuse_by_a_handler_is_refused_and_harms_nobody(world: Make) -> None:
    refused = []

    async def handle(attempt: Attempt) -> None:
        with suppress(RuntimeError):
            await attempt.send(Chunk(choices=b"too early"))
            refused.append("never")
        await attempt.started(Started())
        with suppress(RuntimeError):
            await attempt.started(Started())
            refused.append("never")
        with suppress(ValueError):
            attempt.finish(Finished(finish_reason="x" * 1_000_000))
            if not it.servicer.in_flight:
                refused.append("never")
        if not attempt.ended:
            attempt.finish(Finished())
        with suppress(RuntimeError):
            attempt.finish(Finished())
            refused.append("never")

    async with world(handle) as it:
        content, terminal = await collect(it.link.open(facts(), b"", MINUTE_MS))
        assert (content, refused) == ([], [])
        assert isinstance(terminal, Finished)


async def test_budget_is_asked_for_and_given_in_the_middle_of_content(world: Make) -> None:
    given = []

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        for _ in range(2):
            await attempt.send(Chunk(choices=b"x"))
            attempt.need_budget()
            given.append(await attempt.budget())
        attempt.finish(Finished())

    async with world(handle) as it:
        open_exchange = it.link.open(facts(), b"", MINUTE_MS)
        kinds = []
        async for frame in open_exchange:
            kinds.append(frame.WhichOneof("kind"))
            if kinds[-1] == "need_budget":
                if kinds.count("need_budget") == 1:
                    open_exchange.budget([LeaseSpend(lease="l", amount_nano=7)])
                else:
                    open_exchange.budget([], "insufficient_credits")
    assert kinds == ["started", "chunk", "need_budget", "chunk", "need_budget", "finished"]
    assert (given[0].holds[0].amount_nano, given[1].reason) == (7, "insufficient_credits")


async def test_a_hedged_attempt_waits_for_its_verdict(world: Make) -> None:
    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        if await attempt.accepted():
            attempt.finish(Finished())
        else:
            attempt.finish(Failed(outcome=OUTCOME_FAILED, status=attempt.cancel_reason or 0))

    async with world(handle) as it:
        one, other = (it.link.open(facts(), b"", MINUTE_MS) for _ in range(2))
        for hedged in (one, other):
            assert (await anext(hedged)).HasField("started")
        one.accept()
        other.cancel(CANCEL_REASON_HEDGE_LOST)
        _, won = await collect(one)
        _, lost = await collect(other)
        assert isinstance(won, Finished)
        assert isinstance(lost, Failed)
        assert lost.status == CANCEL_REASON_HEDGE_LOST


async def test_waiting_calls_of_a_handler_end_when_it_is_left(world: Make) -> None:
    ended: list[tuple[str, object]] = []

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        for name, call in (
            ("budget", attempt.budget),
            ("send", lambda: attempt.send(Chunk(choices=b"x"))),
            ("started", lambda: attempt.started(Started())),
        ):
            try:
                await call()
            except Left as left:
                ended.append((name, left.reason))
        ended.append(("accepted", await attempt.accepted()))
        await attempt.left()
        attempt.finish(Failed())

    async with world(handle) as it:
        open_exchange = it.link.open(facts(), b"", MINUTE_MS)
        assert (await anext(open_exchange)).HasField("started")
        open_exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
        await collect(open_exchange)
    reason = CANCEL_REASON_CLIENT_LEFT
    assert ended == [
        ("budget", reason),
        ("send", reason),
        ("started", reason),
        ("accepted", False),
    ]


async def test_draining_under_load_loses_nothing(world: Make) -> None:
    release = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        body = await attempt.body()
        await attempt.started(Started())
        await release.wait()
        await attempt.send(Chunk(choices=body))
        attempt.finish(Finished())

    async with world(handle) as it:
        opened: list[Exchange] = [
            it.link.open(facts(), str(number).encode(), MINUTE_MS) for number in range(200)
        ]
        draining = asyncio.create_task(it.servicer.drain())
        # Told to drain, the edge opens nothing new; what was open, or crossed, is served.
        while it.link.usable:
            opened.append(it.link.open(facts(), str(len(opened)).encode(), MINUTE_MS))
            await asyncio.sleep(0)
        with pytest.raises(Broken):
            it.link.open(facts(), b"", MINUTE_MS)
        release.set()
        answers = await asyncio.gather(*(collect(exchange) for exchange in opened))
        assert [content for content, _ in answers] == [
            [str(number).encode()] for number in range(len(opened))
        ]
        async with asyncio.timeout(20):
            await draining


async def test_the_edge_drains_by_itself_too(world: Make) -> None:
    async with world(echo) as it:
        opened = [it.link.open(facts(), b"x", MINUTE_MS) for _ in range(50)]
        async with asyncio.timeout(20):
            draining = asyncio.create_task(it.link.drain())
            answers = await asyncio.gather(*map(collect, opened))
            await draining
        assert [content for content, _ in answers] == [[b"x"]] * 50
        assert not it.link.usable


async def test_closing_a_link_breaks_what_is_open_at_both_ends(world: Make) -> None:
    broken = []

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        await attempt.left()
        broken.append((attempt.broken, attempt.cancel_reason))
        attempt.finish(Failed(outcome=OUTCOME_LOST))

    async with world(handle) as it:
        opened = [it.link.open(facts(), b"", MINUTE_MS) for _ in range(5)]
        for open_exchange in opened:
            assert (await anext(open_exchange)).HasField("started")
        await it.link.close()
        for open_exchange in opened:
            with pytest.raises(Broken):
                await anext(open_exchange)
            open_exchange.cancel(CANCEL_REASON_CLIENT_LEFT)  # harmless
            open_exchange.budget([])
            open_exchange.accept()
        await eventually(lambda: it.servicer.in_flight == 0)
        assert broken == [(True, None)] * 5
        assert it.link.in_flight == 0
        if not isinstance(it.link, StreamLink):
            with pytest.raises(Broken):
                it.link.open(facts(), b"", MINUTE_MS)


async def test_what_runs_while_draining_keeps_its_windows_budget_and_cancel(world: Make) -> None:
    body = b"x" * (2 * WINDOW_BYTES)
    release = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        await release.wait()
        attempt.need_budget()
        await attempt.budget()
        await attempt.send(Chunk(choices=body))
        await wait_until_left(attempt)

    async with world(handle) as it:
        open_exchange = it.link.open(facts(), b"", MINUTE_MS)
        assert (await anext(open_exchange)).HasField("started")
        draining = asyncio.create_task(it.servicer.drain())
        await eventually(lambda: not it.link.usable)
        release.set()
        kinds = []
        async with asyncio.timeout(20):
            async for frame in open_exchange:
                kinds.append(frame.WhichOneof("kind"))
                if kinds[-1] == "need_budget":
                    open_exchange.budget([])
                elif kinds[-1] == "chunk":
                    assert frame.chunk.choices == body
                    open_exchange.cancel(CANCEL_REASON_CLIENT_LEFT)
            await draining
    assert kinds == ["need_budget", "chunk", "failed"]
