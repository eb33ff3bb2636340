"""What a provider cannot do by what it answers: be paid for nothing, or break the exchange."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from bourse.v1.events_pb2 import (
    AttemptFinished,
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
    UsageSource,
)
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.answer import Answer
from services.providers.call import Chunk, Usage
from services.providers.metering import Meter
from services.providers.records import Records
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
    usage,
    with_preset,
)
from tests.replay import Replay

STOP = delta(finish="stop")


async def test_M12_bytes_that_break_the_reading_are_the_providers_failure(
    worker: Worker, upstream: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("content of theirs")

    for attempt, name in enumerate(("read", "end"), 1):
        upstream.answer(PATH, chunks=[*sse(role(), delta("y" * 40), STOP, usage(9_999, 9_999))])
        with monkeypatch.context() as patch:
            reading = type(worker.served.dialect.reading(worker.served.endpoint.preset))
            patch.setattr(reading, name, broken)
            seen = await worker.run(attempt=attempt)
        event = worker.events()[-1]
        if name == "read":
            assert (seen.failed.status, seen.failed.another_may_help) == (502, True)
            assert event.outcome == Outcome.OUTCOME_FAILED
        assert event.insured_nano == 0


async def test_M12_a_value_too_deep_to_be_written_again_is_malformed(
    worker: Worker, upstream: Replay
) -> None:
    value = b"[" * 400 + b"]" * 400
    deep = b'data: {"choices":[{"index":0,"delta":{"images":[{"x":%b}]}}]}\n\n' % value
    upstream.answer(PATH, chunks=[*sse(role(), delta("y" * 40), usage(12, 900)), deep, DONE])
    seen = await worker.run()
    event = worker.event()
    assert (seen.failed.outcome, seen.failed.status) == (Outcome.OUTCOME_FAILED, 502)
    assert (event.charge_nano, event.insured_nano) == (0, 0)


async def test_M12_an_error_body_that_breaks_the_reading_is_a_failure_of_its_status(
    worker: Worker, upstream: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    upstream.answer(PATH, status=429, body={})
    monkeypatch.setattr(worker.served.dialect, "failure", broken)
    seen = await worker.run()
    assert (seen.failed.outcome, seen.failed.status) == (Outcome.OUTCOME_FAILED, 429)


async def test_M12_what_is_insured_is_never_more_than_was_held(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 4_000), usage(12, 4_000)), hold=True)
    exchange = worker.open(ask(max_tokens=4_000), holds=[LeaseSpend(lease="l", amount_nano=1_000)])
    await next_frame(exchange, "need_budget")
    await worker.servicer.close()
    event = worker.event()
    assert event.outcome == Outcome.OUTCOME_LOST
    assert event.list_nano > 1_000
    assert event.insured_nano == share_nano(1_000)


async def test_M12_an_attempt_of_a_killed_worker_is_insured_up_to_what_was_held(
    make_worker: MakeWorker, upstream: Replay, tmp_path: Path
) -> None:
    worker = make_worker(checkpoint_s=0.0)
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 4_000)), hold=True)
    exchange = worker.open(holds=[LeaseSpend(lease="l", amount_nano=1_000)])
    await next_frame(exchange, "need_budget")
    left = tmp_path / "left"
    shutil.copytree(worker.directory, left, ignore=shutil.ignore_patterns("lock"))
    after = make_worker(directory=left, boot="boot-2")
    (event,) = after.events()
    assert event.outcome == Outcome.OUTCOME_LOST
    assert (event.list_nano > 1_000, event.insured_nano) == (True, share_nano(1_000))


@pytest.mark.parametrize("where", [Answer, Records])
async def test_M11_an_attempt_that_cannot_be_settled_is_answered_and_costs_nothing(
    worker: Worker, upstream: Replay, monkeypatch: pytest.MonkeyPatch, where: type
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    upstream.answer(PATH, chunks=[*sse(role(), delta("Hello"), STOP, usage(12, 3)), DONE])
    with monkeypatch.context() as patch:
        patch.setattr(where, "settle", broken)
        seen = await worker.run()
    assert (seen.failed.outcome, seen.failed.status) == (Outcome.OUTCOME_LOST, 500)
    if where is Answer:
        event = worker.event()
        assert event.outcome == Outcome.OUTCOME_LOST
        money = (event.list_nano, event.charge_nano, event.insured_nano, event.commission_nano)
        assert money == (0, 0, 0, 0)
        assert not event.usage
        assert not event.lease_spends
        assert worker.records.open_attempts == 0


async def test_M10_without_max_tokens_a_report_is_bounded_by_what_came(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(role(), delta("y" * 40), STOP, usage(12, 30_000)), DONE])
    await worker.run()
    event = worker.event()
    assert event.usage_refused
    assert event.usage_source == UsageSource.USAGE_SOURCE_HOUSE
    assert event.charge_nano == cost_nano(10, 10)


@pytest.mark.parametrize("tokens", [900_000, 200_001])
async def test_M10_reasoning_that_was_not_shown_is_bounded_too(
    make_worker: MakeWorker, upstream: Replay, tokens: int
) -> None:
    worker = make_worker()
    with_preset(worker, reasoning_outside_completion=True)
    await worker.close()
    worker.start("boot-2")
    report = usage(12, 8)
    report["usage"]["completion_tokens_details"] = {"reasoning_tokens": tokens}
    report["usage"]["total_tokens"] = 20 + tokens
    upstream.answer(PATH, chunks=[*sse(role(), delta("y" * 40), STOP, report), DONE])
    await worker.run()
    assert worker.event().charge_nano == cost_nano(10, 10)


def _counted(
    reported: dict[int, int],
    *,
    body: dict[str, Any] | None = None,
    delta: dict[str, Any] | None = None,
    **endpoint: Any,
) -> Meter:
    meter = Meter(body or ask(), PriceVersion(), 0, 0.25, 0.25, **endpoint)
    meter.answered = True
    given = delta if delta is not None else {"content": "y" * 4_000}
    choices = [{"index": 0, "delta": given, "finish_reason": None}]
    answer = Answer(AttemptFacts(), AttemptFinished())
    answer.take(Chunk(choices), meter)
    answer.take(Chunk([], Usage({Unit.UNIT_PROMPT: 10, **reported})), meter)
    meter.counts()
    return meter


@pytest.mark.parametrize(
    ("reported", "more", "refused"),
    [
        ({Unit.UNIT_COMPLETION: 4_000}, {}, False),
        ({Unit.UNIT_COMPLETION: 5_000}, {}, True),
        ({Unit.UNIT_COMPLETION: 2_000}, {"max_completion_tokens": 1_000}, True),
        ({Unit.UNIT_COMPLETION: 2_000}, {"context_length": 1_000}, True),
        ({Unit.UNIT_COMPLETION: 2_000}, {"context_length": 8_000}, False),
        (
            {Unit.UNIT_COMPLETION: 1_900},
            {"max_completion_tokens": 1_000, "body": ask(n=2)},
            False,
        ),
        ({Unit.UNIT_COMPLETION: 10, Unit.UNIT_REASONING: 30_000}, {}, False),
        ({Unit.UNIT_COMPLETION: 10, Unit.UNIT_REASONING: 30_000}, {"context_length": 8_000}, True),
        (
            {Unit.UNIT_COMPLETION: 10, Unit.UNIT_REASONING: 30_000},
            {"body": ask(max_tokens=100)},
            True,
        ),
        ({Unit.UNIT_COMPLETION: 20_000}, {"delta": {"reasoning": "a summary"}}, False),
        ({Unit.UNIT_COMPLETION: 300_000}, {"delta": {"reasoning": "a summary"}}, True),
        ({Unit.UNIT_COMPLETION: 9, Unit.UNIT_COMPLETION_IMAGE: 1_290}, {}, True),
        (
            {Unit.UNIT_COMPLETION: 9, Unit.UNIT_COMPLETION_IMAGE: 1_290},
            {"delta": {"images": [{"type": "image_url", "image_url": {"url": "data:,"}}]}},
            False,
        ),
        ({Unit.UNIT_COMPLETION: 9, Unit.UNIT_WEB_SEARCH: 10**6}, {}, True),
    ],
)
def test_M10_what_an_upstream_may_report_of_its_output(
    reported: dict[int, int], more: dict[str, Any], refused: bool
) -> None:
    assert _counted(reported, **more).refused is refused


def test_M10_a_prompt_with_media_is_bounded_by_the_context() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    reported: dict[int, int] = {Unit.UNIT_PROMPT_IMAGE: 900_000_000, Unit.UNIT_COMPLETION: 5}
    assert _counted(reported, body=body, context_length=100_000).refused
    assert _counted({**reported, Unit.UNIT_PROMPT_IMAGE: 90_000}, body=body).refused is False
