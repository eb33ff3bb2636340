"""The official OpenAI client with another base URL, and nothing else changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.story.shop import Shop, events, open_shop, posted, recorded, tagged, text_of
from tests.world import World

HELLO: Any = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Shop]:
    async with open_shop(world) as opened:
        yield opened


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**event, 'choices': [choice]})}\n\n"


USAGE = (
    'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    '"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}\n\ndata: [DONE]\n\n'
)


async def test_a_plain_answer_is_the_recorded_one_and_costs_what_is_posted(shop: Shop) -> None:
    record = recorded(tagged(stream=False, without=("tools", "structured", "reasoning", "image")))
    shop.recorded(record)
    answer = await shop.client().chat.completions.create(model=shop.model, messages=HELLO)
    assert answer.choices[0].message.content == text_of(record)
    assert answer.choices[0].finish_reason == record["body"]["choices"][0]["finish_reason"]
    assert answer.model == shop.model
    assert answer.id.startswith("gen-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == record["body"]["usage"]["prompt_tokens"]
    assert answer.usage.completion_tokens == record["body"]["usage"]["completion_tokens"]
    cost = answer.usage.model_extra["cost"]  # type: ignore[index]
    # USD 1 per million tokens, in and out
    assert Decimal(str(cost)) == Decimal(answer.usage.total_tokens) / 1_000_000
    record_of = await posted(shop, answer.id)
    assert Decimal(str(record_of["total_cost"])) == Decimal(str(cost))
    assert record_of["native_tokens_prompt"] == answer.usage.prompt_tokens


async def test_a_stream_is_the_recorded_text_then_one_usage(shop: Shop) -> None:
    record = recorded(
        lambda r: (
            tagged(stream=True, without=("tools", "structured"))(r) and bool(r.get("chunk_lens"))
        )
    )
    shop.recorded(record)
    text = ""
    usages: list[Any] = []
    ids = set()
    stream = await shop.client().chat.completions.create(
        model=shop.model, messages=HELLO, stream=True
    )
    async for part in stream:
        ids.add(part.id)
        if part.usage is not None:
            usages.append(part)
        elif part.choices:
            text += part.choices[0].delta.content or ""
    assert text == text_of(record)
    assert len(usages) == 1
    assert usages[0].choices == []
    (generation,) = ids
    recorded_usage = next(e["usage"] for e in reversed(events(record)) if e.get("usage"))
    assert usages[0].usage.completion_tokens == recorded_usage["completion_tokens"]
    found = await posted(shop, generation)
    assert Decimal(str(found["total_cost"])) == Decimal(str(usages[0].usage.cost))
    assert shop.upstream.requests[0].json["stream"] is True


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_comes_as_recorded_and_its_result_goes_back(
    shop: Shop, stream: bool
) -> None:
    record = recorded(tagged("tool_call", stream=False, without=("structured", "reasoning")))
    shop.recorded(record)
    client = shop.client()
    wanted = record["body"]["choices"][0]["message"]["tool_calls"]
    call: Any = {"model": shop.model, "messages": HELLO, "tools": [WEATHER]}
    if stream:
        async with client.chat.completions.stream(**call) as running:
            message: Any = (await running.get_final_completion()).choices[0].message
    else:
        message = (await client.chat.completions.create(**call)).choices[0].message
    got = [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
    assert got == [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in wanted]
    assert shop.upstream.requests[0].json["tools"][0]["function"]["name"] == "get_weather"

    results: Any = [{"role": "tool", "tool_call_id": c[0], "content": "22 C"} for c in got]
    echoed: Any = {"role": "assistant", "content": None, "tool_calls": wanted}
    await client.chat.completions.create(
        model=shop.model, messages=[*HELLO, echoed, *results], tools=[WEATHER]
    )
    sent = shop.upstream.requests[1].json["messages"]
    assert [m["tool_call_id"] for m in sent if m["role"] == "tool"] == [c[0] for c in got]
    assert sent[1]["tool_calls"] == wanted


@pytest.mark.parametrize("recorded_as_stream", [False, True])
async def test_parallel_tool_calls_keep_their_places(shop: Shop, recorded_as_stream: bool) -> None:
    def several(record: Any) -> bool:
        if not tagged("tool_call", stream=recorded_as_stream)(record):
            return False
        if not recorded_as_stream:
            return len(record["body"]["choices"][0]["message"].get("tool_calls") or []) > 1
        return any(
            call["index"] == 1
            for event in events(record)
            for choice in event["choices"]
            for call in choice["delta"].get("tool_calls") or []
        )

    record = recorded(several)
    shop.recorded(record)
    async with shop.client().chat.completions.stream(
        model=shop.model, messages=HELLO, tools=[WEATHER], parallel_tool_calls=True
    ) as running:
        message: Any = (await running.get_final_completion()).choices[0].message
    ids: dict[int, str] = {}
    arguments: dict[int, str] = {}
    if recorded_as_stream:
        for event in events(record):
            for choice in event["choices"]:
                for call in choice["delta"].get("tool_calls") or []:
                    ids.setdefault(call["index"], call.get("id") or "")
                    piece = call["function"].get("arguments") or ""
                    arguments[call["index"]] = arguments.get(call["index"], "") + piece
    else:
        for at, call in enumerate(record["body"]["choices"][0]["message"]["tool_calls"]):
            ids[at], arguments[at] = call["id"], call["function"]["arguments"]
    assert [c.id for c in message.tool_calls] == [ids[at] for at in sorted(ids)]
    assert [c.function.arguments for c in message.tool_calls] == [
        arguments[at] for at in sorted(arguments)
    ]
    assert shop.upstream.requests[0].json["parallel_tool_calls"] is True


async def test_a_json_schema_goes_up_and_its_document_comes_back(shop: Shop) -> None:
    record = recorded(tagged("structured", stream=False, without=("tools", "reasoning")))
    shop.recorded(record)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "place", "strict": True, "schema": schema},
    }
    answer = await shop.client().chat.completions.create(
        model=shop.model, messages=HELLO, response_format=wanted
    )
    assert answer.choices[0].message.content == text_of(record)
    assert shop.upstream.requests[0].json["response_format"] == wanted


async def test_an_image_reaches_the_model(shop: Shop) -> None:
    shop.recorded(recorded(tagged("image", stream=False, without=("tools", "structured"))))
    parts: Any = [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    ]
    answer = await shop.client().chat.completions.create(
        model=shop.model, messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content
    assert shop.upstream.requests[0].json["messages"][0]["content"] == parts


async def test_each_kind_of_failure_is_the_client_library_s_own_exception(shop: Shop) -> None:
    client = shop.client()

    async def ask(**changes: Any) -> None:
        await client.chat.completions.create(**{"model": shop.model, "messages": HELLO, **changes})

    with pytest.raises(openai.BadRequestError) as bad:
        await ask(max_tokens=-1)
    assert bad.value.body["metadata"]["field"] == "max_tokens"  # type: ignore[index]
    with pytest.raises(openai.BadRequestError):
        await ask(model="nobody/nothing")
    with pytest.raises(openai.NotFoundError):
        await ask(extra_body={"provider": {"only": ["nobody"]}})
    with pytest.raises(openai.AuthenticationError):
        await shop.client(api_key="wrong").chat.completions.create(model=shop.model, messages=HELLO)
    with pytest.raises(openai.PermissionDeniedError):
        await shop.client(api_key=shop.world.management_key).chat.completions.create(
            model=shop.model, messages=HELLO
        )


@pytest.mark.parametrize(
    ("status", "body", "exception", "error_type"),
    [
        (429, {"error": {"message": "slow down"}}, openai.RateLimitError, "rate_limit_exceeded"),
        (503, {"error": {"message": "busy"}}, openai.InternalServerError, "provider_unavailable"),
        (529, {"error": {"message": "busy"}}, openai.InternalServerError, "provider_overloaded"),
        (
            400,
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ],
)
async def test_an_upstream_s_failure_is_typed_and_in_our_words(
    shop: Shop, status: int, body: Any, exception: type[openai.APIStatusError], error_type: str
) -> None:
    shop.upstream.answer(shop.path, status=status, body=body)
    with pytest.raises(exception) as failed:
        await shop.client().chat.completions.create(model=shop.model, messages=HELLO)
    error: Any = failed.value.body
    assert error["metadata"]["error_type"] == error_type
    assert body["error"]["message"] not in error["message"]
    assert failed.value.response.headers["x-generation-id"].startswith("gen-")
    if status in (429, 503, 529):
        assert int(failed.value.response.headers["retry-after"]) >= 1


async def test_S7_a_stream_that_is_cut_raises_and_costs_nothing(shop: Shop) -> None:
    shop.upstream.answer(shop.path, chunks=[chunk({"content": "one "})], cut=True)
    stream = await shop.client().chat.completions.create(
        model=shop.model, messages=HELLO, stream=True
    )
    first = await anext(stream)
    assert first.choices[0].delta.content == "one "
    with pytest.raises(openai.APIError):
        await anext(stream)
    found = await posted(shop, first.id)
    assert found["total_cost"] == 0
    assert found["finish_reason"] == "error"


async def test_a_client_s_timeout_cancels_the_upstream(shop: Shop) -> None:
    shop.upstream.answer(shop.path, chunks=[chunk({"role": "assistant"})], hold=True)
    with pytest.raises(openai.APITimeoutError):
        await shop.client(timeout=0.5).chat.completions.create(model=shop.model, messages=HELLO)
    async with asyncio.timeout(10):
        await shop.upstream.requests[0].left.wait()


async def test_f23_M6_M7_leaving_midway_cancels_the_upstream_and_bills_what_came(
    shop: Shop,
) -> None:
    words = [chunk({"content": f"word{number} "}) for number in range(8)]
    shop.upstream.answer(shop.path, chunks=words, hold=True)
    stream = await shop.client().chat.completions.create(
        model=shop.model, messages=HELLO, stream=True
    )
    text = generation = ""
    async for part in stream:
        generation = part.id
        text += part.choices[0].delta.content or ""
        if "word7" in text:
            break
    await stream.close()
    async with asyncio.timeout(10):
        await shop.upstream.requests[0].left.wait()
    found = await posted(shop, generation)
    assert found["cancelled"] is True
    received = found["native_tokens_completion"]
    assert 0 < received <= len(text)
    # USD 1 per million tokens, in and out
    total = Decimal(found["native_tokens_prompt"] + received) / 1_000_000
    assert Decimal(str(found["total_cost"])) == total > 0


async def test_a_second_endpoint_serves_when_the_first_is_overloaded(world: World) -> None:
    async with (
        open_shop(world, price="1") as first,
        open_shop(world, model=first.model, price="3") as second,
    ):
        first.upstream.answer(first.path, status=529, body={"error": {"message": "busy"}})
        second.upstream.answer(
            second.path, chunks=[chunk({"content": "hi"}), chunk({}, "stop"), USAGE]
        )
        answer: Any = await first.client().chat.completions.create(
            model=first.model,
            messages=HELLO,
            extra_body={"provider": {"order": [first.slug, second.slug]}},
        )
        assert answer.choices[0].message.content == "hi"
        assert answer.provider == second.slug.title()
        found = await posted(first, answer.id)
        assert [r["status"] for r in found["provider_responses"]] == [529, 200]
        assert Decimal(str(found["total_cost"])) == Decimal(14 * 3) / 1_000_000
