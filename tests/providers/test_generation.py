"""One attempt, from its facts to its terminal frame, against a real upstream."""

import asyncio
import gzip

import pytest

from bourse import rating
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Envelope,
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
    UnitCount,
    UnitPrice,
    UsageSource,
)
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.answer import Answer
from services.providers.call import AttemptFailed, Chunk
from services.providers.metering import Meter
from services.providers.watchdog import Patience
from tests.eventually import eventually
from tests.providers.conftest import PATH, MakeWorker
from tests.providers.worker import (
    DONE,
    PATIENT,
    Worker,
    ask,
    cost_nano,
    delta,
    next_frame,
    role,
    sse,
    told,
    usage,
    with_preset,
)
from tests.replay import Replay

ANSWER = [*sse(role(), delta("Hello "), delta("world"), delta(finish="stop"), usage(12, 3)), DONE]


async def test_an_answer_passes_through_and_is_billed_as_reported(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    seen = await worker.run()

    assert seen.kinds[0] == "started"
    assert seen.kinds[-1] == "finished"
    assert seen.text == "Hello world"
    assert seen.choices[0]["delta"]["role"] == "assistant"
    assert seen.finished is not None
    assert seen.finished.charge_nano == cost_nano(12, 3)
    assert seen.finished.commission_nano == cost_nano(12, 3) * 500 // 10_000
    assert seen.finished.usage_source == UsageSource.USAGE_SOURCE_UPSTREAM
    assert seen.finished.finish_reason == "stop"
    event = worker.event()
    assert event.outcome == Outcome.OUTCOME_COMPLETED
    assert event.final
    assert event.upstream_id == seen.finished.upstream_id == "chatcmpl-1"
    assert (event.worker, event.boot, event.seq) == ("worker-0", "boot-1", 1)
    assert list(event.lease_spends) == [LeaseSpend(lease="lease-1", amount_nano=event.charge_nano)]


async def test_M15_frame_event_and_a_second_rating_agree_as_integers(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    seen = await worker.run()
    event = worker.event()
    assert seen.finished is not None
    assert seen.finished.charge_nano == event.charge_nano == event.list_nano
    assert list(seen.finished.cost_lines) == list(event.cost_lines)
    assert rating.rate(event.usage, event.price).total_nano == event.list_nano
    assert event.commission_nano == rating.commission_nano(event.charge_nano, 500)


async def test_the_upstream_gets_the_call_and_the_credential_and_nothing_of_the_edges(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    await worker.run(ask(temperature=0.5))
    (request,) = upstream.requests
    assert request.json["model"] == "upstream-model"
    assert request.json["stream"] is True
    assert request.json["temperature"] == 0.5
    assert request.headers["authorization"] == "Bearer sk-secret"
    assert "traceparent" not in request.headers


async def test_a_whole_reply_to_a_streamed_call_is_served_and_billed_alike(
    worker: Worker, upstream: Replay
) -> None:
    message = {"role": "assistant", "content": "Hello world"}
    upstream.answer(
        PATH,
        body={
            "id": "chatcmpl-2",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
        },
    )
    seen = await worker.run()
    assert seen.text == "Hello world"
    assert worker.event().charge_nano == cost_nano(12, 3)


async def test_a_sampled_attempt_takes_its_trace_into_the_record_and_no_further(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await worker.run(traceparent=traceparent)
    (record,) = worker.spool.unshipped()
    assert Envelope.FromString(record.value).traceparent == traceparent
    assert "traceparent" not in upstream.requests[0].headers


async def test_a_connection_is_used_again_also_when_its_end_comes_after_the_mark(
    worker: Worker, upstream: Replay
) -> None:
    peers = set()
    upstream.answer(PATH, chunks=[*ANSWER, b""], delays_s=[0.0] * len(ANSWER) + [0.05])
    for attempt in (1, 2, 3):
        await worker.run(attempt=attempt)
        await eventually(lambda: not worker.servicer.tasks)
        peers.add(upstream.requests[-1].peer)
    assert len(peers) == 1


async def test_S1_roles_and_pings_do_not_start_an_attempt(worker: Worker, upstream: Replay) -> None:
    error = {"error": {"message": "boom", "code": 503}}
    upstream.answer(PATH, chunks=[b": ping\n\n", *sse(role()), *sse(error), DONE])
    seen = await worker.run()
    assert seen.kinds == ["failed"]
    assert seen.failed.another_may_help
    assert worker.event().charge_nano == 0
    assert not worker.event().had_content


@pytest.mark.parametrize(
    ("status", "answered", "another", "another_model"),
    [
        (401, 502, True, True),
        (402, 502, True, True),
        (403, 502, True, True),
        (404, 404, True, True),
        (429, 429, True, True),
        (500, 502, True, True),
        (503, 503, True, True),
        (529, 529, True, True),
        (400, 400, False, True),
        (422, 422, False, True),
    ],
)
async def test_a_refusal_is_typed_and_says_what_may_help(
    worker: Worker,
    upstream: Replay,
    status: int,
    answered: int,
    another: bool,
    another_model: bool,
) -> None:
    upstream.answer(PATH, status=status, body={"error": {"message": "no"}})
    seen = await worker.run()
    assert seen.kinds == ["failed"]
    assert seen.failed.outcome == Outcome.OUTCOME_FAILED
    assert (seen.failed.status, seen.failed.upstream_status) == (answered, status)
    assert (seen.failed.another_may_help, seen.failed.another_model_may_help) == (
        another,
        another_model,
    )
    event = worker.event()
    assert (event.status, event.charge_nano, event.list_nano) == (status, 0, 0)
    assert event.final is False


async def test_the_last_attempt_is_final_and_promises_nothing(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, status=500, body={"error": {"message": "no"}})
    seen = await worker.run(last=True)
    assert not seen.failed.another_may_help
    assert worker.event().final


async def test_a_rate_limit_says_when_to_come_back(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, status=429, headers={"retry-after": "7"}, body={"error": {}})
    seen = await worker.run()
    assert seen.failed.retry_after_ms == worker.event().retry_after_ms == 7_000


async def test_a_redirect_is_a_failure_and_is_not_followed(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, status=307, headers={"location": f"{upstream.url}/elsewhere"})
    seen = await worker.run()
    assert (seen.failed.status, seen.failed.upstream_status) == (502, 307)
    assert [request.path for request in upstream.requests] == [PATH]


async def test_an_html_page_with_status_200_is_a_failure(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, body="<html>hi</html>", headers={"content-type": "text/html"})
    seen = await worker.run()
    assert seen.failed.status == 502
    assert seen.failed.another_may_help


async def test_a_compressed_answer_is_understood(worker: Worker, upstream: Replay) -> None:
    packed = gzip.compress(b"".join(ANSWER))
    upstream.answer(PATH, chunks=[packed], headers={"content-encoding": "gzip"})
    assert (await worker.run()).text == "Hello world"


async def test_a_line_without_end_is_cut_off(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, chunks=[b"data: " + b"x" * 65_536] * 40)
    seen = await worker.run()
    assert (seen.failed.status, seen.started) == (502, False)


async def test_no_server_is_a_failure_that_another_endpoint_may_mend(
    make_worker: MakeWorker,
) -> None:
    worker = make_worker(base_url="http://127.0.0.1:9/v1")
    seen = await worker.run()
    assert (seen.failed.status, seen.failed.another_may_help) == (502, True)
    assert worker.event().status == 0


async def test_S6_a_cut_before_content_is_silent_and_after_it_a_typed_error(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role()), cut=True)
    upstream.answer(PATH, chunks=sse(role(), delta("Hello")), cut=True)
    before = await worker.run(attempt=1)
    after = await worker.run(attempt=2)

    assert before.kinds == ["failed"]
    assert before.failed.another_may_help
    assert after.kinds == ["started", "chunk", "failed"]
    assert not after.failed.another_may_help
    assert not after.failed.another_model_may_help
    assert [event.charge_nano for event in worker.events()] == [0, 0]
    assert [event.final for event in worker.events()] == [False, True]


async def test_S7_a_stream_that_ends_without_finish_reason_or_mark_is_not_a_success(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("Hello")))
    seen = await worker.run()
    assert seen.failed.outcome == Outcome.OUTCOME_FAILED


async def test_a_cut_after_the_finish_reason_is_a_success_by_house_count(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 40), delta(finish="stop")), cut=True)
    seen = await worker.run()
    assert seen.finished is not None
    assert seen.finished.usage_source == UsageSource.USAGE_SOURCE_HOUSE
    assert seen.finished.charge_nano == cost_nano(10, 10)


async def test_a_stall_after_the_finish_reason_is_a_success_soon(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    patience = Patience(first_byte_s=10, idle_s=60, content_s=60, total_s=60, finished_s=0.05)
    worker = make_worker(patience=patience)
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 40), delta(finish="stop")), hold=True)
    seen = await worker.run()
    assert seen.finished is not None
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


@pytest.mark.parametrize(
    ("chunks", "delays_s", "first_byte_s", "patience"),
    [
        ([], [], 30.0, {"first_byte_s": 0.1}),
        (ANSWER[:1], [30.0], 0.0, {"first_byte_s": 0.1}),
        (ANSWER[:1], [0.0, 30.0], 0.0, {"idle_s": 0.1}),
        ([b": ping\n\n"] * 200, [0.01] * 200, 0.0, {"content_s": 0.3, "first_byte_s": 0.2}),
    ],
    ids=["before headers", "after headers", "after the role", "only pings"],
)
async def test_S3_a_silent_upstream_fails_at_its_deadline_and_is_cut(
    make_worker: MakeWorker,
    upstream: Replay,
    chunks: list[bytes],
    delays_s: list[float],
    first_byte_s: float,
    patience: dict[str, float],
) -> None:
    patient = {"first_byte_s": 9.0, "idle_s": 9.0, "content_s": 9.0, "total_s": 20.0, **patience}
    worker = make_worker(patience=Patience(**patient))
    upstream.answer(PATH, chunks=chunks, delays_s=delays_s, first_byte_s=first_byte_s, hold=True)
    seen = await worker.run()
    assert (seen.kinds, seen.failed.status) == (["failed"], 504)
    assert seen.failed.error_type == "timeout"
    assert seen.failed.another_may_help
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


async def test_S4_a_stall_after_content_is_a_typed_error_that_costs_nothing(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker(patience=Patience(first_byte_s=9, idle_s=0.1, total_s=20))
    upstream.answer(PATH, chunks=sse(role(), delta("Hello")), hold=True)
    seen = await worker.run()
    assert seen.kinds == ["started", "chunk", "failed"]
    assert (seen.failed.status, seen.failed.another_may_help) == (504, False)
    assert worker.event().charge_nano == 0
    await asyncio.wait_for(upstream.requests[0].left.wait(), 5)


async def test_an_endpoint_may_take_longer_to_its_first_byte_than_the_default(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    patience = Patience(first_byte_s=0.05, idle_s=5, total_s=20)
    worker = make_worker(patience=patience, first_byte_timeout_s=10)
    upstream.answer(PATH, chunks=ANSWER, first_byte_s=0.3)
    assert (await worker.run(first_token_remaining_ms=100)).finished is not None


async def test_the_first_token_deadline_ends_an_attempt_without_content(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker(patience=Patience(first_byte_s=60, idle_s=60, content_s=60, total_s=60))
    upstream.answer(PATH, chunks=[b": ping\n\n"] * 500, delays_s=[0.01] * 500)
    seen = await worker.run(first_token_remaining_ms=150)
    assert (seen.failed.status, seen.started) == (504, False)


async def test_a_stream_longer_than_the_total_is_the_providers_and_nobody_pays_it(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker(patience=Patience(first_byte_s=5, idle_s=5, total_s=0.3))
    upstream.answer(PATH, chunks=sse(*[delta("drip")] * 500), delays_s=[0.01] * 500)
    seen = await worker.run()
    assert (seen.failed.outcome, seen.failed.status) == (Outcome.OUTCOME_FAILED, 504)
    event = worker.event()
    assert (event.charge_nano, event.insured_nano, event.final) == (0, 0, True)


async def test_M8_an_error_after_content_costs_nothing(worker: Worker, upstream: Replay) -> None:
    error = {"error": {"message": "the model crashed", "code": 500}}
    upstream.answer(PATH, chunks=[*sse(role(), delta("Hello"), error), DONE])
    seen = await worker.run()
    assert seen.kinds == ["started", "chunk", "failed"]
    assert "crashed" not in seen.text
    event = worker.event()
    assert (event.outcome, event.charge_nano, event.insured_nano) == (
        Outcome.OUTCOME_FAILED,
        0,
        0,
    )
    assert event.list_nano > 0
    assert list(event.lease_spends) == []


async def test_M8_S8_an_error_finish_reason_costs_nothing(worker: Worker, upstream: Replay) -> None:
    upstream.answer(
        PATH, chunks=[*sse(role(), delta("Hel"), delta("lo", "network_error"), usage(12, 3)), DONE]
    )
    seen = await worker.run()
    assert seen.failed.outcome == Outcome.OUTCOME_FAILED
    assert worker.event().charge_nano == 0


@pytest.mark.parametrize(
    "chunks",
    [[DONE], [*sse(role()), DONE], [*sse(role(), usage(12, 0)), DONE], [b": ping\n\n"]],
    ids=["nothing", "a role", "a usage", "a ping"],
)
async def test_M8_an_empty_answer_is_a_failure_and_costs_nothing(
    worker: Worker, upstream: Replay, chunks: list[bytes]
) -> None:
    upstream.answer(PATH, chunks=chunks)
    seen = await worker.run()
    assert seen.kinds == ["failed"]
    assert seen.failed.another_may_help
    assert worker.event().charge_nano == 0


async def test_an_answer_without_words_but_with_a_finish_reason_is_complete(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(role(), delta(finish="length"), usage(12, 0)), DONE])
    seen = await worker.run()
    assert seen.kinds == ["started", "chunk", "finished"]
    assert seen.choices[-1]["finish_reason"] == "length"
    assert worker.event().charge_nano == cost_nano(12, 0)


async def test_usage_that_is_absent_is_counted_by_the_house(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=[*sse(role(), delta("y" * 43), delta(finish="stop")), DONE])
    await worker.run()
    event = worker.event()
    assert event.usage_source == UsageSource.USAGE_SOURCE_HOUSE
    assert (event.prompt_bytes, event.completion_bytes) == (40, 43)
    assert event.charge_nano == cost_nano(10, 10)  # 43 / 4, rounded down


@pytest.mark.parametrize(("prompt", "completion"), [(-5, 3), (12, -3), (-12, -3), (10**12, 3)])
async def test_M10_negative_or_absurd_usage_falls_back_to_the_house_count(
    worker: Worker, upstream: Replay, prompt: int, completion: int
) -> None:
    upstream.answer(
        PATH,
        chunks=[
            *sse(role(), delta("y" * 40), delta(finish="stop"), usage(prompt, completion)),
            DONE,
        ],
    )
    await worker.run()
    event = worker.event()
    assert event.usage_source == UsageSource.USAGE_SOURCE_HOUSE
    assert event.charge_nano == cost_nano(10, 10)
    assert event.usage_refused
    assert all(line.count >= 0 for line in event.usage)


async def test_M10_more_output_than_max_tokens_is_not_believed(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(
        PATH, chunks=[*sse(role(), delta("y" * 40), delta(finish="stop"), usage(12, 5_000)), DONE]
    )
    await worker.run(ask(max_tokens=20))
    assert worker.event().charge_nano == cost_nano(10, 10)


async def test_M10_a_text_prompt_of_far_more_tokens_than_bytes_is_not_believed(
    worker: Worker, upstream: Replay
) -> None:
    report = usage(900_000, 3)
    upstream.answer(
        PATH, chunks=[*sse(role(), delta("y" * 40), delta(finish="stop"), report), DONE]
    )
    await worker.run()
    assert worker.event().charge_nano == cost_nano(10, 10)


async def test_reasoning_outside_the_completion_does_not_break_max_tokens(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker()
    with_preset(worker, reasoning_outside_completion=True)
    await worker.close()
    worker.start("boot-2")
    report = usage(12, 8)
    report["usage"]["completion_tokens_details"] = {"reasoning_tokens": 500}
    report["usage"]["total_tokens"] = 520
    upstream.answer(PATH, chunks=[*sse(role(), delta("yes"), delta(finish="stop"), report), DONE])
    await worker.run(ask(max_tokens=20))
    assert worker.event().charge_nano == cost_nano(12, 508)


async def test_M10_a_report_that_cannot_be_true_takes_the_earlier_one_with_it(
    worker: Worker, upstream: Replay
) -> None:
    chunks = sse(role(), delta("y" * 40), delta(finish="stop"), usage(999, 9), usage(-1, 9))
    upstream.answer(PATH, chunks=[*chunks, DONE])
    await worker.run()
    assert worker.event().charge_nano == cost_nano(10, 10)


def test_M8_an_error_finish_is_a_failure_whatever_the_dialect_makes_of_it() -> None:
    answer = Answer(AttemptFacts(), AttemptFinished())
    meter = Meter(ask(), PriceVersion(), 0, 0.25, 0.25)
    chunk = Chunk([{"index": 0, "delta": {}, "finish_reason": "error"}], finish_reason="error")
    with pytest.raises(AttemptFailed):
        answer.take(chunk, meter)


async def test_M7_a_reported_zero_stays_zero(worker: Worker, upstream: Replay) -> None:
    upstream.answer(
        PATH, chunks=[*sse(role(), delta("Hello"), delta(finish="stop"), usage(0, 0)), DONE]
    )
    await worker.run()
    event = worker.event()
    assert (event.charge_nano, event.usage_source) == (0, UsageSource.USAGE_SOURCE_UPSTREAM)


async def test_a_report_repeated_and_cumulative_counts_once_and_the_last_wins(
    worker: Worker, upstream: Replay
) -> None:
    chunks = sse(
        role(), usage(12, 1), delta("Hello "), usage(12, 2), delta(finish="stop"), usage(12, 3)
    )
    upstream.answer(PATH, chunks=[*chunks, *chunks[-1:], DONE])
    await worker.run()
    assert worker.event().charge_nano == cost_nano(12, 3)


async def test_a_request_and_images_are_billed_where_they_have_a_price(
    worker: Worker, upstream: Replay
) -> None:
    price = PriceVersion(
        id="pr_2",
        entries=[
            UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=1_000),
            UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=1_000),
            UnitPrice(unit=Unit.UNIT_REQUEST, price_pico=5_000_000),
            UnitPrice(unit=Unit.UNIT_IMAGE, price_pico=7_000_000),
        ],
    )
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    upstream.answer(PATH, chunks=ANSWER)
    body = {"messages": [{"role": "user", "content": [image, image]}]}
    await worker.run(body, price=price)
    assert UnitCount(unit=Unit.UNIT_REQUEST, count=1) in worker.event().usage
    assert UnitCount(unit=Unit.UNIT_IMAGE, count=2) in worker.event().usage
    assert worker.event().charge_nano == 12 + 3 + 5_000 + 2 * 7_000


async def test_lease_spends_follow_the_order_of_the_holds(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    charge = cost_nano(12, 3)
    holds = [
        LeaseSpend(lease="first", amount_nano=charge - 10),
        LeaseSpend(lease="second", amount_nano=4),
        LeaseSpend(lease="third", amount_nano=1),
    ]
    await worker.run(ask(max_tokens=1), holds=holds)
    spends = [(spend.lease, spend.amount_nano) for spend in worker.event().lease_spends]
    assert spends == [("first", charge - 10), ("second", 4), ("third", 6)]


async def test_several_choices_all_have_to_finish(worker: Worker, upstream: Replay) -> None:
    def of(index: int, content: str | None = None, finish: str | None = None) -> dict[str, object]:
        made = delta(content, finish)
        made["choices"][0]["index"] = index
        return made

    whole = sse(of(0, "a"), of(1, "b"), of(1, finish="stop"), of(0, finish="stop"))
    upstream.answer(PATH, chunks=[*whole, DONE])
    upstream.answer(PATH, chunks=whole[:3], cut=True)
    assert (await worker.run(attempt=1)).finished is not None
    assert (await worker.run(attempt=2)).failed.outcome == Outcome.OUTCOME_FAILED


async def test_P5_a_stale_connection_costs_one_free_retry(worker: Worker, upstream: Replay) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    upstream.answer(PATH, cut=True, chunks=ANSWER, headers={"connection": "keep-alive"})
    upstream.answer(PATH, chunks=ANSWER)
    for attempt in (1, 2, 3):
        assert (await worker.run(attempt=attempt)).finished is not None


async def test_P2_a_reader_that_stops_stops_its_upstream(worker: Worker, upstream: Replay) -> None:
    piece = "z" * 8_000
    upstream.answer(PATH, chunks=[*sse(*[delta(piece)] * 2_000, delta(finish="stop")), DONE])
    exchange = worker.open(holds=[LeaseSpend(lease="lease-1", amount_nano=10**12)])
    await next_frame(exchange, "started")
    sent = -1
    while upstream.requests[0].sent_bytes != sent:  # until the upstream, too, is stopped
        sent = upstream.requests[0].sent_bytes
        await asyncio.sleep(0.3)
    assert sent < 2_000 * 8_000 / 2
    seen = await told(exchange)
    assert len(seen.text) == 2_000 * 8_000


async def test_a_reader_that_pauses_is_no_stall_of_the_upstream(
    make_worker: MakeWorker, upstream: Replay
) -> None:
    worker = make_worker(patience=Patience(first_byte_s=5, idle_s=0.2, content_s=0.2, total_s=30))
    upstream.answer(PATH, chunks=[*sse(*[delta("z" * 8_000)] * 200, delta(finish="stop")), DONE])
    exchange = worker.open(holds=[LeaseSpend(lease="lease-1", amount_nano=10**12)])
    await next_frame(exchange, "started")
    await asyncio.sleep(0.8)
    assert (await told(exchange)).finished is not None


async def test_a_body_that_is_no_object_is_refused_and_recorded(worker: Worker) -> None:
    seen = await worker.run([])  # type: ignore[arg-type]
    assert (seen.failed.status, seen.failed.another_may_help) == (400, False)
    assert worker.event().outcome == Outcome.OUTCOME_FAILED


async def test_an_endpoint_that_is_not_known_here_may_be_known_elsewhere(worker: Worker) -> None:
    seen = await worker.run(endpoint="ep_unknown")
    assert (seen.failed.status, seen.failed.another_may_help) == (503, True)
    assert worker.event().endpoint == "ep_unknown"


async def test_O2_an_unexpected_exception_fails_one_attempt_as_ours(
    worker: Worker, upstream: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(worker.served.dialect, "request", broken)
        seen = await worker.run(attempt=1)
    assert (seen.failed.status, seen.failed.error_type) == (500, "server")
    assert worker.event().outcome == Outcome.OUTCOME_LOST
    upstream.answer(PATH, chunks=ANSWER)
    assert (await worker.run(attempt=2)).finished is not None


async def test_M11_every_attempt_leaves_one_event_and_the_sequence_has_no_gap(
    worker: Worker, upstream: Replay
) -> None:
    upstream.answer(PATH, chunks=ANSWER)
    upstream.answer(PATH, status=500, body={})
    upstream.answer(PATH, chunks=sse(role(), delta("x")), cut=True)
    upstream.answer(PATH, chunks=[DONE])
    for attempt in range(1, 6):
        await worker.run(attempt=attempt)
    events = worker.events()
    assert [event.attempt for event in events] == [1, 2, 3, 4, 5]
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert worker.records.open_attempts == 0


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages", "gemini"])
async def test_the_sandbox_answers_in_every_dialect(make_worker: MakeWorker, dialect: str) -> None:
    host = dialect.partition("_")[0]
    worker = make_worker(base_url=f"sandbox://{host}", dialect=dialect)
    first = await worker.run(attempt=1)
    again = await worker.run(attempt=2)
    assert first.finished is not None
    assert first.text == again.text == "x" * 40
    assert first.finished.charge_nano > 0
    assert first.finished.usage_source == UsageSource.USAGE_SOURCE_UPSTREAM

    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in ("one", "two")
    ]
    called = await worker.run(ask(tools=tools), attempt=3)
    names = [
        call["function"]["name"]
        for choice in called.choices
        for call in choice["delta"].get("tool_calls") or ()
        if call.get("function", {}).get("name")
    ]
    assert names == ["one", "two"]
    cut = await worker.run(ask(max_tokens=3), attempt=4)
    assert cut.finished is not None
    assert cut.finished.finish_reason == "length"


@pytest.mark.parametrize("dialect", ["openai_chat", "anthropic_messages", "gemini"])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "system", "content": "Be brief."}],
        [],
    ],
)
async def test_the_sandbox_refuses_what_its_dialect_would(
    make_worker: MakeWorker, dialect: str, messages: list[dict[str, object]]
) -> None:
    worker = make_worker(base_url=f"sandbox://{dialect.partition('_')[0]}", dialect=dialect)
    seen = await worker.run({"messages": messages})
    said = messages and (dialect == "openai_chat" or messages[0]["role"] == "system")
    if said and dialect != "anthropic_messages":  # OpenAI takes it; an instruction alone is asked
        assert seen.finished is not None
        return
    assert (seen.failed.status, seen.failed.error_type) == (400, "invalid_request")
    assert worker.event().outcome == Outcome.OUTCOME_FAILED


async def test_a_deadline_of_ours_insures_the_provider(worker: Worker, upstream: Replay) -> None:
    assert PATIENT.idle_s > 0.4
    upstream.answer(PATH, chunks=sse(role(), delta("y" * 40)), hold=True)
    seen = await worker.run(remaining_ms=400)
    assert (seen.failed.outcome, seen.failed.status) == (Outcome.OUTCOME_LOST, 504)
    event = worker.event()
    assert event.charge_nano == 0
    assert event.insured_nano == cost_nano(10, 10) - cost_nano(10, 10) * 500 // 10_000
