"""Attempts that end before their upstream does: clients leave, credit ends, streams break."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bourse.v1.events_pb2 import (
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
    UnitPrice,
    UsageSource,
)
from bourse.v1.generation_pb2 import CancelReason
from tests.eventually import eventually
from tests.providers.conftest import PATH, MakeWorker
from tests.providers.worker import (
    DONE,
    Worker,
    ask,
    cost_nano,
    delta,
    next_frame,
    role,
    share_nano,
    sse,
    told,
    usage,
)
from tests.replay import Replay

LEFT = CancelReason.CANCEL_REASON_CLIENT_LEFT
HEDGE_LOST = CancelReason.CANCEL_REASON_HEDGE_LOST
QUANTUM_BYTES = 256 * 4
QUANTUM_NANO = cost_nano(0, 256)
PROMPT_NANO = cost_nano(10, 0)


def hold(amount_nano: int, lease: str = "lease-1") -> list[LeaseSpend]:
    return [LeaseSpend(lease=lease, amount_nano=amount_nano)]


async def test_M6_M7_leaving_midway_bills_the_prompt_and_what_was_received(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 41), delta("z" * 7)), hold=True)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    await next_frame(exchange, "chunk")
    exchange.cancel(LEFT)
    seen = await told(exchange)

    assert seen.failed.outcome == Outcome.OUTCOME_CLIENT_LEFT
    event = worker.event()
    assert event.usage_source == UsageSource.USAGE_SOURCE_HOUSE
    assert event.charge_nano == cost_nano(10, 12)  # 48 bytes received
    assert seen.failed.spent.charge_nano == event.charge_nano
    assert event.final
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


async def test_M6_leaving_after_the_200_and_before_content_bills_the_prompt(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[b": ping\n\n"], hold=True)
    exchange = worker.open()
    await upstream.received(1)
    await eventually(lambda: upstream.requests[0].sent_bytes)
    await asyncio.sleep(0.1)  # the answer's first bytes are on their way
    exchange.cancel(LEFT)
    seen = await told(exchange)
    assert (seen.kinds, seen.failed.outcome) == (["failed"], Outcome.OUTCOME_CLIENT_LEFT)
    assert worker.event().charge_nano == PROMPT_NANO


async def test_M7_leaving_before_the_200_is_free(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, first_byte_s=30, chunks=[])
    exchange = worker.open()
    await upstream.received(1)
    exchange.cancel(LEFT)
    await told(exchange)
    event = worker.event()
    assert (event.outcome, event.charge_nano) == (Outcome.OUTCOME_CLIENT_LEFT, 0)
    assert list(event.usage) == []


@pytest.mark.parametrize("reported", [(12, 9), None], ids=["reported", "not reported"])
async def test_M6_leaving_after_the_last_token_bills_all(
    worker: Worker, upstream: Replay, reported: tuple[int, int] | None
) -> None:
    last = sse(usage(*reported)) if reported else []
    chunks = sse(role(), delta("y" * 40))
    upstream.answer(PATH, chunks=[*chunks, *last, *sse(delta("z" * 0, None))], hold=True)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    await asyncio.sleep(0.2)  # the report, if any, comes
    exchange.cancel(LEFT)
    await told(exchange)
    assert worker.event().charge_nano == cost_nano(*(reported or (10, 10)))


async def test_M7_a_report_before_the_last_content_does_not_count_the_output(
    worker: Worker, upstream: Replay
) -> None:
    chunks = sse(role(), usage(12, 4_000), delta("y" * 40))
    upstream.answer(PATH, chunks=chunks, hold=True)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    exchange.cancel(LEFT)
    await told(exchange)
    assert worker.event().charge_nano == cost_nano(12, 10)


class Endless(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """An upstream that says one thing and then nothing, and knows when it was let go."""

    def __init__(self) -> None:
        self.closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"".join(sse(role(), delta("y")))
        await asyncio.sleep(3_600)

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("reason", [LEFT, HEDGE_LOST, CancelReason.CANCEL_REASON_DEADLINE])
async def test_f23_the_upstream_is_closed_before_the_terminal_frame(
    make_worker: MakeWorker, reason: CancelReason.ValueType
) -> None:
    endless = Endless()
    worker = make_worker(transport=endless)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    exchange.cancel(reason)
    async for _ in exchange:
        break  # the terminal frame, and nothing after it has run yet
    assert endless.closed
    assert worker.records.open_attempts == 0


async def test_a_cancel_that_crosses_the_end_changes_nothing(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(delta("Hi"), delta(finish="stop"), usage(12, 1)), DONE])
    exchange = worker.open()
    await eventually(lambda: worker.spool.depth)
    exchange.cancel(LEFT)
    seen = await told(exchange)
    assert seen.finished is not None
    assert worker.event().outcome == Outcome.OUTCOME_COMPLETED


async def test_S_a_broken_stream_is_lost_and_insured(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 40)), hold=True)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    await worker.link.close()
    await eventually(lambda: worker.spool.depth)
    event = worker.event()
    assert (event.outcome, event.charge_nano) == (Outcome.OUTCOME_LOST, 0)
    assert event.insured_nano == share_nano(cost_nano(10, 10))
    assert list(event.lease_spends) == []
    assert event.final
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


async def test_a_worker_that_ends_settles_what_still_runs_as_lost(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 40)), hold=True)
    exchange = worker.open()
    await next_frame(exchange, "chunk")
    await worker.servicer.close()
    event = worker.event()
    assert (event.outcome, event.charge_nano) == (Outcome.OUTCOME_LOST, 0)
    assert event.insured_nano == share_nano(cost_nano(10, 10))
    assert (await told(exchange)).failed.outcome == Outcome.OUTCOME_LOST
    assert worker.records.open_attempts == 0


async def test_a_hedged_attempt_waits_to_be_accepted(worker: Worker, upstream: Replay) -> None:
    chunks = [*sse(delta("y" * 40), delta(finish="stop"), usage(10, 10)), DONE]
    upstream.answer(PATH, chunks=chunks)
    won, lost = worker.open(hedged=True, attempt=1), worker.open(hedged=True, attempt=2)
    await upstream.received(2)
    await asyncio.gather(*(request.served.wait() for request in upstream.requests))
    await asyncio.sleep(0.1)
    assert worker.spool.depth == 0
    won.accept()
    lost.cancel(HEDGE_LOST)
    assert (await told(won)).finished is not None
    assert (await told(lost)).failed.outcome == Outcome.OUTCOME_HEDGE_LOST
    by_attempt = {event.attempt: event for event in worker.events()}
    assert by_attempt[1].charge_nano == cost_nano(10, 10)
    assert (by_attempt[2].charge_nano, by_attempt[2].insured_nano) == (
        0,
        share_nano(cost_nano(10, 10)),
    )
    assert not by_attempt[2].final


async def test_more_budget_is_asked_for_when_less_than_a_quantum_is_left(
    worker: Worker, upstream: Replay
) -> None:
    quantum = "y" * QUANTUM_BYTES
    upstream.answer(
        PATH,
        chunks=[*sse(*[delta(quantum)] * 3, delta(finish="stop"), usage(10, 768)), DONE],
    )
    exchange = worker.open(holds=hold(PROMPT_NANO + 2 * QUANTUM_NANO))
    await next_frame(exchange, "need_budget")
    exchange.budget(hold(5 * QUANTUM_NANO, "lease-2"))
    seen = await told(exchange)
    assert seen.finished is not None
    assert seen.finished.charge_nano == cost_nano(10, 768)
    spends = {spend.lease: spend.amount_nano for spend in worker.event().lease_spends}
    assert spends == {"lease-1": PROMPT_NANO + 2 * QUANTUM_NANO, "lease-2": QUANTUM_NANO}


async def test_no_budget_is_asked_for_when_max_tokens_is_held(
    worker: Worker, upstream: Replay
) -> None:
    chunks = [*sse(delta("y" * 400), delta(finish="length"), usage(10, 100)), DONE]
    upstream.answer(PATH, chunks=chunks)
    seen = await worker.run(ask(max_tokens=100), holds=hold(cost_nano(10, 100)))
    assert "need_budget" not in seen.kinds


async def test_at_zero_the_upstream_is_not_read_until_the_answer(
    worker: Worker, upstream: Replay
) -> None:
    chunks = sse(*[delta("y" * QUANTUM_BYTES)] * 4_000)
    upstream.answer(PATH, chunks=[*chunks, *sse(delta(finish="stop")), DONE])
    exchange = worker.open(holds=hold(PROMPT_NANO + QUANTUM_NANO))
    await next_frame(exchange, "need_budget")
    sent = -1
    while upstream.requests[0].sent_bytes != sent:
        sent = upstream.requests[0].sent_bytes
        await asyncio.sleep(0.3)
    assert sent < len(b"".join(chunks))  # the rest waits at the provider
    exchange.budget([], "insufficient_credits")
    seen = await told(exchange)
    assert seen.failed.status == 402


async def test_M1_exhausted_credit_cuts_the_upstream_and_bills_what_came(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(*[delta("y" * QUANTUM_BYTES)] * 2), hold=True)
    exchange = worker.open(holds=hold(PROMPT_NANO + 2 * QUANTUM_NANO))
    await next_frame(exchange, "need_budget")
    exchange.budget([], "key_limit")
    seen = await told(exchange)
    assert (seen.failed.status, seen.failed.error_type) == (402, "payment_required")
    assert seen.failed.outcome == Outcome.OUTCOME_CREDIT_EXHAUSTED
    assert seen.failed.spent.charge_nano == cost_nano(10, 512)
    event = worker.event()
    assert event.charge_nano == cost_nano(10, 512)
    assert sum(spend.amount_nano for spend in event.lease_spends) == event.charge_nano
    assert event.final
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


async def test_leaving_while_budget_is_awaited_bills_what_came(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(*[delta("y" * QUANTUM_BYTES)] * 2), hold=True)
    exchange = worker.open(holds=hold(PROMPT_NANO + QUANTUM_NANO))
    await next_frame(exchange, "need_budget")
    await next_frame(exchange, "chunk")
    exchange.cancel(LEFT)
    await told(exchange)
    assert worker.event().outcome == Outcome.OUTCOME_CLIENT_LEFT
    assert worker.event().charge_nano == cost_nano(10, 256)


async def test_a_free_model_needs_no_budget(worker: Worker, upstream: Replay) -> None:
    price = PriceVersion(
        id="pr_free",
        entries=[
            UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=0),
            UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=0),
        ],
    )
    upstream.answer(PATH, chunks=[*sse(delta("y" * 5_000), delta(finish="stop")), DONE])
    seen = await worker.run(price=price, holds=[])
    assert seen.finished is not None
    assert "need_budget" not in seen.kinds


def snapshot(worker: Worker, to: Path) -> Path:
    """The spool as a process killed now would leave it."""
    shutil.copytree(worker.directory, to, ignore=shutil.ignore_patterns("lock"))
    return to


async def test_M12_an_attempt_open_at_a_kill_is_lost_at_its_last_checkpoint(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    first = make_worker()
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 2_000), delta("z" * 40)), hold=True)
    exchange = first.open(holds=hold(10**9, "lease-7"), last=True)
    await next_frame(exchange, "chunk")
    await next_frame(exchange, "chunk")
    left = snapshot(first, tmp_path / "left")

    second = make_worker(directory=left, boot="boot-2")
    assert second.recovered == 1
    event = second.event()
    assert (event.outcome, event.charge_nano) == (Outcome.OUTCOME_LOST, 0)
    assert event.generation == "01J00000000000000000000001"
    assert (event.account, event.provider) == ("acct-1", "acme")
    assert event.list_nano == cost_nano(10, 500)  # the 40 bytes came after the checkpoint
    assert event.insured_nano == share_nano(cost_nano(10, 500))
    assert (event.boot, event.seq, event.final) == ("boot-2", 1, True)
    exchange.cancel(LEFT)
    await told(exchange)


async def test_M12_an_intent_without_a_checkpoint_is_lost_without_a_sum(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    first = make_worker()
    upstream.answer(PATH, first_byte_s=30, chunks=[])
    exchange = first.open()
    await upstream.received(1)
    second = make_worker(directory=snapshot(first, tmp_path / "left"), boot="boot-2")
    event = second.event()
    assert (event.outcome, event.charge_nano, event.insured_nano) == (
        Outcome.OUTCOME_LOST,
        0,
        0,
    )
    assert not event.final
    exchange.cancel(LEFT)
    await told(exchange)


async def test_M12_a_settled_event_survives_a_kill_and_is_not_settled_again(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    first = make_worker()
    upstream.answer(PATH, chunks=[*sse(delta("Hi"), delta(finish="stop"), usage(12, 1)), DONE])
    await first.run()
    second = make_worker(directory=snapshot(first, tmp_path / "left"), boot="boot-2")
    assert second.recovered == 0
    assert second.event() == first.event()


async def test_a_third_start_finds_nothing_left_to_do(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    first = make_worker()
    upstream.answer(PATH, first_byte_s=30, chunks=[])
    exchange = first.open()
    await upstream.received(1)
    second = make_worker(directory=snapshot(first, tmp_path / "left"), boot="boot-2")
    third = make_worker(directory=snapshot(second, tmp_path / "again"), boot="boot-3")
    assert (second.recovered, third.recovered) == (1, 0)
    exchange.cancel(LEFT)
    await told(exchange)


async def test_leases_are_reported_from_the_intent_until_the_event_is_shipped(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    worker = make_worker()
    upstream.answer(PATH, chunks=sse(*[delta("y" * QUANTUM_BYTES)] * 2), hold=True)
    exchange = worker.open(holds=hold(PROMPT_NANO + QUANTUM_NANO, "lease-a"))
    await next_frame(exchange, "need_budget")
    assert worker.records.leases() == {"lease-a"}
    exchange.budget(hold(QUANTUM_NANO * 9, "lease-b"))
    await next_frame(exchange, "chunk")
    await next_frame(exchange, "chunk")
    await eventually(lambda: worker.records.leases() == {"lease-a", "lease-b"})
    left = snapshot(worker, tmp_path / "left")
    exchange.cancel(LEFT)
    await told(exchange)
    assert worker.records.leases() == {"lease-a", "lease-b"}
    worker.spool.mark_shipped(worker.spool.unshipped())
    assert worker.records.leases() == set()

    after = make_worker(directory=left, boot="boot-2")
    assert after.event().outcome == Outcome.OUTCOME_LOST  # charges nothing: no lease is waited for
    assert after.records.leases() == set()


async def test_leases_of_unshipped_events_are_reported_after_a_restart(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    first = make_worker()
    upstream.answer(PATH, chunks=[*sse(delta("Hi"), delta(finish="stop"), usage(12, 1)), DONE])
    await first.run(holds=hold(10**9, "lease-z"))
    second = make_worker(directory=snapshot(first, tmp_path / "left"), boot="boot-2")
    assert second.records.leases() == {"lease-z"}
    assert second.records.unshipped_nano == cost_nano(12, 1)


async def test_P3_too_much_that_is_not_shipped_refuses_new_work_and_loses_nothing(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker(max_unshipped_nano=cost_nano(12, 1))
    upstream.answer(PATH, chunks=[*sse(delta("Hi"), delta(finish="stop"), usage(12, 1)), DONE])
    assert (await worker.run(attempt=1)).finished is not None
    assert (await worker.run(attempt=2)).finished is not None
    refused = await worker.run(attempt=3)
    assert (refused.failed.status, refused.failed.another_may_help) == (503, True)
    assert len(worker.events()) == 2
    assert len(upstream.requests) == 2
    worker.spool.mark_shipped(worker.spool.unshipped())
    assert (await worker.run(attempt=4)).finished is not None


async def test_the_checkpoint_comes_after_a_second_too(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    worker = make_worker(checkpoint_s=0.05)
    upstream.answer(PATH, chunks=sse(*[delta("y" * 4)] * 20), delays_s=[0.02] * 20, hold=True)
    exchange = worker.open()
    for _ in range(20):
        await next_frame(exchange, "chunk")
    after = make_worker(directory=snapshot(worker, tmp_path / "left"), boot="boot-2")
    assert after.event().completion_bytes > 4
    exchange.cancel(LEFT)
    await told(exchange)
