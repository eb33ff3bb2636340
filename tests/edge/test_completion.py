"""Completions through the real application, with its neighbours replaced at the rpc seam."""

import asyncio
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from bourse.multiplex import Attempt
from bourse.telemetry.spans import trace_with
from bourse.v1.events_pb2 import Outcome
from bourse.v1.generation_pb2 import CancelReason, Chunk, Failed, Finished, Started
from tests.edge.world import (
    MODEL,
    answers,
    candidate,
    eventually,
    fails,
    fails_after,
    finished,
    hangs,
    price,
    quick,
    text,
    world,
)


async def test_a_whole_answer_has_what_official_clients_require() -> None:
    async with world() as edge:
        answer = await edge.ask()
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-generation-id"] == body["id"]
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    assert body["model"] == MODEL
    assert body["provider"] == "Provider a"
    assert body["system_fingerprint"] is None
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello world"
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 10
    assert body["usage"]["total_tokens"] == 15


async def test_chunks_that_came_together_are_sent_together_and_the_first_alone_at_once() -> None:
    release = asyncio.Event()

    async def bursts(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("first"))
        await release.wait()
        for piece in ("a", "b", "c"):
            await attempt.send(text(piece))
        attempt.finish(finished(attempt))

    async with world() as edge:
        edge.worker.scripts["a"] = bursts
        asked = edge.begin(stream=True)
        await asked.until(lambda: asked.body)
        assert [c["choices"][0]["delta"]["content"] for c in asked.events] == ["first"]
        release.set()
        await asked.over()
    *chunks, usage, done = asked.events
    assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["first", "a", "b", "c"]
    assert usage["usage"]["total_tokens"] == 15
    assert done == "data: [DONE]"
    head, first, burst, end = asked.messages
    assert (head["status"], first["more_body"], burst["more_body"]) == (200, True, True)
    assert end["more_body"] is False


async def test_a_stream_ends_with_one_usage_chunk_and_the_end_mark() -> None:
    async with world() as edge:
        asked = await edge.begin(stream=True).over()
    assert asked.status == 200
    assert asked.headers["content-type"] == "text/event-stream"
    *chunks, usage, done = asked.events
    assert done == "data: [DONE]"
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == "Hello world"
    assert usage["choices"] == []
    assert [c for c in chunks if "usage" in c] == []
    assert {c["id"] for c in [*chunks, usage]} == {asked.headers["x-generation-id"]}
    assert all(c["object"] == "chat.completion.chunk" for c in [*chunks, usage])
    assert all(c["provider"] == "Provider a" for c in [*chunks, usage])
    assert all("system_fingerprint" not in c for c in [*chunks, usage])


async def test_M15_cost_is_the_workers_integer_in_both_shapes() -> None:
    async with world() as edge:
        edge.worker.scripts["a"] = answers("x", prompt=333, completion=77)
        whole = (await edge.ask()).text
        streamed = (await edge.begin(stream=True).over()).body.decode()
    # 333 * 1e6 + 77 * 4e6 pico = 641_000 nano
    assert '"cost":0.000641,' in whole
    assert '"cost":0.000641,' in streamed
    assert '"upstream_inference_prompt_cost":0.000333,' in whole
    assert '"upstream_inference_completions_cost":0.000308' in whole


async def test_the_call_to_the_worker_is_the_clients_without_the_edges_fields() -> None:
    async with world() as edge:
        await edge.ask(
            stream=False,
            provider={"order": ["x"]},
            session_id="s",
            user="someone@example.org",
            metadata={"a": "b"},
            temperature=0.5,
            tools=[{"type": "function", "function": {"name": "f", "x-vendor": 1}}],
            x_unknown={"kept": True},
        )
    (body,) = edge.worker.bodies
    assert set(body) == {"messages", "user", "temperature", "tools", "x_unknown"}
    assert body["user"] != "someone@example.org"
    assert len(body["user"]) == 64
    assert body["tools"][0]["function"]["x-vendor"] == 1
    facts = edge.worker.attempts[0].facts
    assert facts.session_id == "s"
    assert facts.attempt == 1
    assert facts.last
    assert facts.price.id == "price-1"
    assert sum(hold.amount_nano for hold in facts.holds) > 0


async def test_S1_a_failure_before_the_first_content_fails_over_in_silence() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = fails(529)
        answer = await edge.ask()
        streamed = await edge.begin(stream=True).over()
    assert answer.status_code == 200
    assert answer.json()["provider"] == "Provider b"
    assert streamed.status == 200
    assert streamed.events[0]["provider"] == "Provider b"
    first, second = edge.worker.attempts[:2]
    assert (first.facts.attempt, first.facts.last) == (1, False)
    assert (second.facts.attempt, second.facts.last) == (2, True)
    assert first.facts.generation == second.facts.generation


async def test_the_last_error_is_returned_with_those_before_it() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = fails(502, provider_code="oops")
        edge.worker.scripts["b"] = fails(
            429, error_type="rate_limit_exceeded", retry_after_ms=7_000
        )
        answer = await edge.ask()
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 429
    assert answer.headers["retry-after"] == "7"
    assert error["metadata"]["headers"] == {"Retry-After": "7"}
    assert error["metadata"]["error_type"] == "rate_limit_exceeded"
    assert error["metadata"]["provider_name"] == "Provider b"
    assert error["metadata"]["previous_errors"] == [
        {"provider": "Provider a", "code": "oops", "status": 502}
    ]
    assert answer.headers["x-generation-id"].startswith("gen-")


async def test_a_clients_fault_is_not_tried_elsewhere_but_the_next_model_is() -> None:
    async with world() as edge:
        edge.routing.candidates = [
            candidate("a"),
            candidate("b", tier=1),
            candidate("c", tier=2, model="acme/two", model_index=1),
        ]
        edge.worker.scripts["a"] = fails(
            400, error_type="invalid_request", another_may_help=False, field="messages"
        )
        answer = await edge.ask(models=["acme/two"])
    assert [one.facts.endpoint for one in edge.worker.attempts] == ["a", "c"]
    assert answer.json()["model"] == "acme/two"


async def test_too_long_for_one_endpoint_goes_to_a_larger_one() -> None:
    async with world() as edge:
        edge.routing.candidates = [
            candidate("a", context_length=8_000),
            candidate("b", tier=1, context_length=8_000),
            candidate("c", tier=2, context_length=32_000),
        ]
        edge.worker.scripts["a"] = fails(400, error_type="context_length_exceeded")
        answer = await edge.ask()
    assert answer.status_code == 200
    assert [one.facts.endpoint for one in edge.worker.attempts] == ["a", "c"]


async def test_at_most_five_endpoints_of_a_model_are_tried() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate(f"e{n}", tier=n) for n in range(8)]
        for n in range(8):
            edge.worker.scripts[f"e{n}"] = fails(503)
        answer = await edge.ask()
    assert len(edge.worker.attempts) == 5
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_S7_after_content_nothing_is_switched_and_the_stream_says_so() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = fails_after("par", "tial", provider_code="cut")
        asked = await edge.begin(stream=True).over()
    assert asked.status == 200
    assert [one.facts.endpoint for one in edge.worker.attempts] == ["a"]
    *_, error, done = asked.events
    assert done == "data: [DONE]"
    assert error["error"]["code"] == 502
    assert error["error"]["metadata"]["error_type"] == "provider_unavailable"
    assert error["error"]["metadata"]["provider_code"] == "cut"
    assert error["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]
    assert error["usage"]["cost"] == 0
    assert sum("usage" in event for event in asked.events if isinstance(event, dict)) == 1


async def test_a_whole_answer_that_breaks_midway_is_a_plain_error() -> None:
    async with world() as edge:
        edge.worker.scripts["a"] = fails_after("par")
        answer = await edge.ask()
    assert answer.status_code == 502
    assert answer.json()["error"]["metadata"]["error_type"] == "provider_unavailable"


async def test_a_401_of_an_upstream_is_never_the_callers() -> None:
    async with world() as edge:
        edge.worker.scripts["a"] = fails(401, error_type="provider_unavailable")
        answer = await edge.ask()
    assert answer.status_code == 502


async def test_no_status_is_sent_before_content_until_the_hold_back_ends() -> None:
    gate = asyncio.Event()

    async def slow(attempt: Attempt) -> None:
        await gate.wait()
        await answers("late")(attempt)

    async with world(bounds=quick(hold_back_s=0.15)) as edge:
        edge.worker.scripts["a"] = slow
        asked = edge.begin(stream=True)
        await asyncio.sleep(0.05)
        assert asked.messages == []
        await asked.until(lambda: b"PROCESSING" in asked.body)
        assert asked.status == 200
        assert asked.events == [": OPENROUTER PROCESSING"]
        await asked.until(lambda: asked.body.count(b"PROCESSING") >= 2)
        gate.set()
        await asked.over()
    assert asked.events[-1] == "data: [DONE]"
    assert asked.events[-2]["usage"]["cost"] > 0


async def test_failing_over_stays_silent_after_the_hold_back() -> None:
    async def late_failure(attempt: Attempt) -> None:
        await asyncio.sleep(0.3)
        await fails(503)(attempt)

    async with world(bounds=quick()) as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = late_failure
        served = await edge.begin(stream=True).over()
        edge.worker.scripts["b"] = fails(503)
        edge.edge.breakers.succeeded("a")
        failed = await edge.begin(stream=True).over()
    assert served.events[-2]["provider"] == "Provider b"
    assert failed.status == 200
    assert failed.events[-2]["error"]["code"] == 503
    assert failed.events[-1] == "data: [DONE]"


async def test_S18_whitespace_keeps_a_whole_answer_alive_only_after_its_first_content() -> None:
    first, gate = asyncio.Event(), asyncio.Event()

    async def slow(attempt: Attempt) -> None:
        await first.wait()
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("slow"))
        await gate.wait()
        attempt.finish(finished(attempt))

    async with world(bounds=quick(hold_back_s=0.05)) as edge:
        edge.worker.scripts["a"] = slow
        asked = edge.begin()
        await asyncio.sleep(0.3)
        assert asked.messages == []
        first.set()
        await asked.until(lambda: asked.body.startswith(b" "))
        gate.set()
        await asked.over()
    assert asked.status == 200
    assert asked.headers["content-type"] == "application/json"
    assert b'"content":"slow"' in asked.body
    assert asked.body.strip().startswith(b"{")


async def test_a_failure_after_whitespace_is_an_envelope_with_an_error_finish() -> None:
    gate = asyncio.Event()

    async def slow(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("slow"))
        await gate.wait()
        await fails(502)(attempt)

    async with world(bounds=quick()) as edge:
        edge.worker.scripts["a"] = slow
        asked = edge.begin()
        await asked.until(lambda: asked.body.startswith(b" "))
        gate.set()
        await asked.over()
    assert asked.status == 200
    body = orjson.loads(asked.body)
    assert body["error"]["code"] == 502
    assert body["choices"][0]["finish_reason"] == "error"


@pytest.mark.parametrize("stream", [True, False])
async def test_M6_a_client_that_leaves_cancels_the_worker_and_is_charged_what_it_says(
    stream: bool,
) -> None:
    async def endless(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("some"))
        try:
            await hangs(attempt)
        except BaseException:
            spent = finished(attempt, prompt=10, completion=2)
            attempt.finish(Failed(outcome=Outcome.OUTCOME_CLIENT_LEFT, status=499, spent=spent))
            raise

    async with world(bounds=quick(keep_alive_s=0.05)) as edge:
        edge.worker.scripts["a"] = endless
        asked = edge.begin(stream=stream)
        await asked.until(lambda: asked.messages)
        asked.leave()
        await asked.over()
        await edge.leases.shutdown()
    assert edge.worker.left == [("a", CancelReason.CANCEL_REASON_CLIENT_LEFT)]
    (closed,) = edge.billing.closed.values()
    assert (closed.charged_attempts, closed.charged_nano) == (1, 18_000)
    assert list(closed.in_doubt) == []


async def test_a_client_that_leaves_before_content_is_cancelled_too() -> None:
    async with world(bounds=quick()) as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = hangs
        asked = edge.begin()
        await eventually(lambda: edge.worker.attempts)
        asked.leave()
        await asked.over()
    assert asked.messages == []
    assert [one.facts.endpoint for one in edge.worker.attempts] == ["a"]


async def test_S3_one_first_token_deadline_over_all_attempts() -> None:
    async with world(bounds=quick(first_token_deadline_s=0.2)) as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = hangs
        answer = await edge.ask()
    assert answer.status_code == 504
    assert answer.json()["error"]["metadata"]["error_type"] == "timeout"
    assert edge.worker.left == [("a", CancelReason.CANCEL_REASON_DEADLINE)]


async def test_a_worker_lost_before_content_is_in_doubt_and_the_next_attempt_serves() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]

        async def dies(attempt: Attempt) -> None:
            edge.edge.workers.choose()._break("the worker died")  # type: ignore[attr-defined]

        edge.worker.scripts["a"] = dies
        answer = await edge.ask()
        generation = answer.json()["id"].removeprefix("gen-")
        await edge.leases.shutdown()
    assert answer.json()["provider"] == "Provider b"
    (closed,) = edge.billing.closed.values()
    assert list(closed.in_doubt) == [f"{generation}:attempt:1"]


async def test_S7_a_worker_lost_after_content_is_a_typed_error_of_ours() -> None:
    async with world() as edge:

        async def dies(attempt: Attempt) -> None:
            await attempt.started(Started(first_token_ms=1))
            await attempt.send(text("half"))
            edge.edge.workers.choose()._break("the worker died")  # type: ignore[attr-defined]

        edge.worker.scripts["a"] = dies
        asked = await edge.begin(stream=True).over()
    assert asked.events[-2]["error"]["code"] == 500
    assert asked.events[-2]["error"]["metadata"] == {"error_type": "server"}
    assert asked.events[-1] == "data: [DONE]"


async def test_O2_an_unforeseen_fault_of_ours_is_a_typed_500_of_one_request() -> None:
    async def broken_choices(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(Chunk(choices=b"not json"))
        attempt.finish(finished(attempt))

    async with world() as edge:
        edge.worker.scripts["a"] = broken_choices
        answer = await edge.ask()
        edge.worker.scripts["a"] = answers("fine")
        after = await edge.ask()
    assert answer.status_code == 500
    assert answer.json()["error"]["metadata"] == {"error_type": "server"}
    assert after.status_code == 200
    assert edge.leases.held_nano == 0


async def test_a_long_answer_gets_more_budget_from_other_requests_credit() -> None:
    budgets = []

    async def hungry(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        for _ in range(3):
            attempt.need_budget()
            budgets.append(await attempt.budget())
        attempt.finish(finished(attempt))

    async with world() as edge:
        edge.worker.scripts["a"] = hungry
        assert (await edge.ask()).status_code == 200
    quantum_nano = 256 * 4_000_000 // 1_000
    assert [sum(h.amount_nano for h in b.holds) for b in budgets] == [quantum_nano] * 3
    assert edge.leases.held_nano == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_credit_that_runs_out_midway_ends_in_a_402_with_its_cost(stream: bool) -> None:
    async def hungry(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("so far"))
        attempt.need_budget()
        budget = await attempt.budget()
        assert not budget.holds
        attempt.finish(
            Failed(
                outcome=Outcome.OUTCOME_CREDIT_EXHAUSTED,
                status=402,
                error_type="payment_required",
                message="The credit ran out.",
                spent=finished(attempt, prompt=10, completion=20),
            )
        )

    async with world(balance_nano=200_000) as edge:
        edge.worker.scripts["a"] = hungry
        asked = await edge.begin(stream=stream).over()
        await edge.leases.shutdown()
    if stream:
        error = asked.events[-2]
        assert asked.events[-1] == "data: [DONE]"
    else:
        error = orjson.loads(asked.body)
        assert asked.status == 402
        assert error["choices"][0]["message"]["content"] == "so far"
    assert error["error"]["code"] == 402
    assert error["error"]["metadata"]["reason"] == "insufficient_credits"
    assert error["choices"][0]["finish_reason"] == "error"
    assert error["usage"]["cost"] == 0.00009
    assert sum(one.charged_nano for one in edge.billing.closed.values()) == 90_000


async def test_M16_max_tokens_is_clamped_to_what_the_balance_covers() -> None:
    async with world(balance_nano=1_000_000) as edge:  # 250 output tokens
        answer = await edge.ask(max_tokens=4_000)
    assert answer.status_code == 200
    clamped = int(answer.headers["x-bourse-clamped-max-tokens"])
    assert 16 <= clamped < 250
    assert edge.worker.bodies[0]["max_tokens"] == clamped


async def test_M16_refused_only_below_the_prompt_and_sixteen_tokens() -> None:
    async with world(balance_nano=50_000) as edge:
        answer = await edge.ask(max_tokens=4_000)
    error = answer.json()["error"]
    assert answer.status_code == 402
    assert error["metadata"]["error_type"] == "payment_required"
    assert error["metadata"]["requested_tokens"] == 4_000
    assert error["metadata"]["affordable_tokens"] < 16
    assert error["metadata"]["available_usd"] == "0.00005"
    assert edge.worker.attempts == []


async def test_an_affordable_request_is_not_clamped() -> None:
    async with world() as edge:
        answer = await edge.ask(max_tokens=4_000)
    assert "x-bourse-clamped-max-tokens" not in answer.headers
    assert edge.worker.bodies[0]["max_tokens"] == 4_000


async def test_a_free_model_holds_nothing() -> None:
    async with world(balance_nano=0) as edge:
        edge.routing.candidates = [candidate("a", at=price(0, 0))]
        answer = await edge.ask()
    assert answer.status_code == 200
    assert edge.billing.lease_calls == 0
    assert answer.json()["usage"]["cost"] == 0


async def test_billing_away_and_no_lease_is_a_503_that_says_when_to_come_back() -> None:
    async with world() as edge:
        edge.billing.down = True
        refused = await edge.ask()
        edge.billing.down = False
        await edge.ask()
        edge.billing.down = True
        served = await edge.ask()
        edge.billing.down = False
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert served.status_code == 200


async def test_routing_away_is_a_503() -> None:
    async with world() as edge:
        edge.routing.down = True
        answer = await edge.ask()
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_tool_calls_of_chunks_become_those_of_a_message() -> None:
    def call(index: int, arguments: str, **extra: object) -> Chunk:
        function = {"arguments": arguments, **({"name": extra["name"]} if extra else {})}
        piece = {"index": index, "function": function}
        if extra:
            piece |= {"id": extra["id"], "type": "function"}
        return Chunk(
            choices=orjson.dumps(
                [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]
            )
        )

    async def calls(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(call(0, "", id="call-0", name="sum"))
        await attempt.send(call(1, "", id="call-1", name="mul"))
        await attempt.send(call(0, '{"a"'))
        await attempt.send(call(1, "{}"))
        await attempt.send(call(0, ":1}"))
        done: Finished = finished(attempt)
        done.finish_reason = "tool_calls"
        attempt.finish(done)

    async with world() as edge:
        edge.worker.scripts["a"] = calls
        (choice,) = (await edge.ask()).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call-0", "type": "function", "function": {"name": "sum", "arguments": '{"a":1}'}},
        {"id": "call-1", "type": "function", "function": {"name": "mul", "arguments": "{}"}},
    ]


async def test_metadata_is_returned_to_who_asks_for_it() -> None:
    async with world() as edge:
        edge.routing.candidates = [candidate("a"), candidate("b", tier=1)]
        edge.worker.scripts["a"] = fails(503)
        async with edge.client() as client:
            answer = await client.post(
                "/v1/chat/completions",
                json={"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
                headers={"X-OpenRouter-Metadata": "enabled"},
            )
    metadata = answer.json()["openrouter_metadata"]
    assert metadata["requested"] == MODEL
    assert metadata["endpoints"]["total"] == 2
    assert [one["status"] for one in metadata["attempts"]] == [503, 200]


async def test_a_sampled_request_continues_the_callers_trace_in_one_span() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_ON)  # what comes here was sampled at the edge
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace = "0af7651916cd43dd8448eb211c80319c"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    trace_with(provider.get_tracer("test"))
    try:
        async with world(trace_sample_ratio=1.0) as edge, edge.client() as client:
            for model in (MODEL, "missing"):
                edge.routing.candidates = [candidate("a")] if model == MODEL else []
                await client.post(
                    "/v1/chat/completions",
                    json={**body, "model": model},
                    headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
                )
        async with world() as unsampled:
            await unsampled.ask()
    finally:
        trace_with(None)
    served, refused = spans.get_finished_spans()
    assert served.context is not None
    assert format(served.context.trace_id, "032x") == trace
    (attempt,) = edge.worker.attempts
    assert attempt.facts.traceparent == f"00-{trace}-{served.context.span_id:016x}-01"
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 400
    assert refused.status.is_unset  # a caller's mistake is no error of the server's
    assert unsampled.worker.attempts[0].facts.traceparent == ""


async def test_S10_usage_is_the_only_chunk_without_choices() -> None:
    async with world() as edge:
        asked = await edge.begin(stream=True, stream_options={"include_usage": False}).over()
    chunks = [event for event in asked.events if isinstance(event, dict)]
    assert [chunk["choices"] == [] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_S14_a_503_of_our_own_marks_no_provider() -> None:
    async with world() as edge:
        links = edge.edge.workers.choose()
        await links.close()
        for _ in range(20):
            answer = await edge.ask()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert edge.edge.breakers.usable("a")
        assert edge.leases.held_nano == 0


ODD: list[Any] = [None, 7, 1.5, True, "odd", [], ["odd", 7, None, []], {}, {"x": {"y": []}}, [{}]]


async def odd_choices(attempt: Attempt) -> None:
    """Every field of a chunk as something else than it should be, before and after a good one."""
    await attempt.started(Started(first_token_ms=1))
    details = [{"type": "reasoning.text", "index": 0, "text": "think"}]
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    good = {
        "content": "Hello",
        "reasoning": "think",
        "reasoning_details": details,
        "annotations": [{"type": "url_citation"}],
        "images": [{"type": "image_url"}],
        "audio": {"data": "AA", "transcript": "hm"},
        "tool_calls": [call],
    }
    logprobs = {"content": [{"token": "Hello"}]}
    pieces: list[Any] = []
    for odd in ODD:
        pieces += [
            odd,
            [odd],
            [{"index": odd, "delta": {}}],
            [{"index": 0, "delta": odd, "message": odd, "logprobs": odd}],
            [{"index": 0, "delta": dict.fromkeys([*good, "role"], odd)}],
            [{"index": 0, "delta": {"tool_calls": [{"index": odd, "id": odd, "function": odd}]}}],
            [{"index": 0, "delta": {"tool_calls": [
                {"index": 0, "function": {"name": odd, "arguments": odd}}]}}],
            [{"index": 0, "delta": {"reasoning_details": [{**details[0], "text": odd}]}}],
            [{"index": 0, "delta": {"audio": {"data": odd, "transcript": odd}}}],
            [{"index": 0, "logprobs": {"content": odd}}],
        ]  # fmt: skip
    whole = [{"index": 0, "delta": good, "logprobs": logprobs}]
    for choices in [*pieces, whole, *pieces]:
        await attempt.send(Chunk(choices=orjson.dumps(choices)))
    attempt.finish(finished(attempt))


async def test_oddly_typed_pieces_of_an_answer_are_left_out_of_the_whole_one() -> None:
    async with world() as edge:
        edge.worker.scripts["a"] = odd_choices
        answer = await edge.ask()
        await eventually(lambda: edge.leases.held_nano == 0)
        assert edge.worker.left == []
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] == 15
    message = answer.json()["choices"][0]["message"]
    assert "Hello" in message["content"]
    assert {"type": "image_url"} in message["images"]
    assert {"type": "url_citation"} in message["annotations"]
    assert any(one.get("text", "").startswith("think") for one in message["reasoning_details"])
    assert "{}" in message["tool_calls"][0]["function"]["arguments"]


async def test_a_fault_while_merging_is_a_typed_error_and_nothing_stays_held() -> None:
    async def garbles(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(Chunk(choices=b"{not json"))
        await hangs(attempt)

    async with world() as edge:
        edge.worker.scripts["a"] = garbles
        answer = await edge.ask()
        await eventually(lambda: edge.leases.held_nano == 0)
        await eventually(lambda: edge.worker.left)
    assert answer.status_code == answer.json()["error"]["code"] == 500
    assert answer.json()["error"]["metadata"]["error_type"] == "server"


async def test_a_short_prompt_is_asked_for_by_its_own_size() -> None:
    async with world() as edge:
        await edge.ask(messages=[{"role": "user", "content": "x" * 400}])
    (asked,) = edge.routing.requests
    assert 100 <= asked.prompt_tokens <= 150
