"""Malformed requests: each gets a typed 4xx that names the field, and none a 500."""

from typing import Any

import orjson
import pytest

from services.edge.call import Call, parse
from services.edge.errors import ApiError
from tests.edge.world import MODEL, world

USER = {"role": "user", "content": "Hi"}


def ask(**body: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER], **body}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [USER, fields]}


MALFORMED: list[tuple[str, Any, str]] = [
    ("not JSON", b"{", "body"),
    ("empty", b"", "body"),
    ("bad UTF-8", b'{"model":"\xff\xfe"}', "body"),
    ("lone surrogate", b'{"model":"\\ud800"}', "body"),
    ("NaN", b'{"model":"m","temperature":NaN}', "body"),
    ("an array", [], "body"),
    ("nested too deeply", b'{"messages":' + b"[" * 1500 + b"]" * 1500 + b"}", "body"),
    ("deeper than can be written", ask(metadata=None, x=orjson.Fragment(b"[" * 400 + b"]" * 400)),
     "body"),
    ("no messages", {"model": MODEL}, "messages"),
    ("messages is null", ask(messages=None), "messages"),
    ("messages is a string", ask(messages="Hi"), "messages"),
    ("no message", ask(messages=[]), "messages"),
    ("a message is a string", ask(messages=["Hi"]), "messages[0]"),
    ("no role", message(content="x"), "messages[1].role"),
    ("unknown role", message(role="wizard", content="x"), "messages[1].role"),
    ("role is a number", message(role=1, content="x"), "messages[1].role"),
    ("user without content", message(role="user"), "messages[1].content"),
    ("content is a number", message(role="user", content=1), "messages[1].content"),
    ("a part is a string", message(role="user", content=["x"]), "messages[1].content[0]"),
    ("a part without type", message(role="user", content=[{}]), "messages[1].content[0].type"),
    ("unknown part", message(role="user", content=[{"type": "smell"}]),
     "messages[1].content[0].type"),
    ("text part without text", message(role="user", content=[{"type": "text"}]),
     "messages[1].content[0].text"),
    ("image without URL", message(role="user", content=[{"type": "image_url", "image_url": {}}]),
     "messages[1].content[0].image_url.url"),
    ("image is null", message(role="user", content=[{"type": "image_url"}]),
     "messages[1].content[0].image_url"),
    ("tool result without id", message(role="tool", content="x"), "messages[1].tool_call_id"),
    ("tool calls is an object", message(role="assistant", tool_calls={}),
     "messages[1].tool_calls"),
    ("tool call without id", message(role="assistant", tool_calls=[{"type": "function"}]),
     "messages[1].tool_calls[0].id"),
    ("arguments are an object", message(role="assistant", tool_calls=[
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}]),
     "messages[1].tool_calls[0].function.arguments"),
    ("no model", {"messages": [USER]}, "model"),
    ("model is a number", ask(model=1), "model"),
    ("model is empty", ask(model=""), "model"),
    ("model too long", ask(model="m" * 300), "model"),
    ("online variant", ask(model="a/b:online"), "model"),
    ("models is a string", ask(models="a/b"), "models"),
    ("a model is null", ask(models=[None]), "models[0]"),
    ("negative max_tokens", ask(max_tokens=-1), "max_tokens"),
    ("zero max_tokens", ask(max_tokens=0), "max_tokens"),
    ("max_tokens is a string", ask(max_tokens="10"), "max_tokens"),
    ("max_tokens is a fraction", ask(max_tokens=1.5), "max_tokens"),
    ("max_tokens is true", ask(max_tokens=True), "max_tokens"),
    ("enormous max_tokens", ask(max_completion_tokens=10**15), "max_completion_tokens"),
    ("max_tokens beyond 64 bits",
     b'{"messages":[{"role":"user","content":"x"}],"max_tokens":99999999999999999999999}',
     "max_tokens"),
    ("temperature is a string", ask(temperature="hot"), "temperature"),
    ("temperature too high", ask(temperature=9), "temperature"),
    ("top_p is true", ask(top_p=True), "top_p"),
    ("stream is a string", ask(stream="yes"), "stream"),
    ("stream_options is a list", ask(stream_options=[]), "stream_options"),
    ("seed is a string", ask(seed="1"), "seed"),
    ("n is zero", ask(n=0), "n"),
    ("stop is a number", ask(stop=3), "stop"),
    ("a stop is null", ask(stop=["x", None]), "stop[1]"),
    ("logit bias is a list", ask(logit_bias=[]), "logit_bias"),
    ("a bias is a string", ask(logit_bias={"5": "x"}), "logit_bias.5"),
    ("tools is an object", ask(tools={}), "tools"),
    ("a tool without type", ask(tools=[{}]), "tools[0].type"),
    ("a function without name", ask(tools=[{"type": "function", "function": {}}]),
     "tools[0].function.name"),
    ("parameters is a string", ask(tools=[
        {"type": "function", "function": {"name": "f", "parameters": "x"}}]),
     "tools[0].function.parameters"),
    ("unknown tool choice", ask(tool_choice="maybe"), "tool_choice"),
    ("unknown response format", ask(response_format={"type": "xml"}), "response_format.type"),
    ("schema without name", ask(response_format={"type": "json_schema", "json_schema": {}}),
     "response_format.json_schema.name"),
    ("unknown effort", ask(reasoning={"effort": "heroic"}), "reasoning.effort"),
    ("efforts differ", ask(reasoning={"effort": "low"}, reasoning_effort="high"),
     "reasoning_effort"),
    ("plugins is an object", ask(plugins={}), "plugins"),
    ("a plugin that is not offered", ask(plugins=[{"id": "web"}]), "plugins[0].id"),
    ("session id too long", ask(session_id="s" * 257), "session_id"),
    ("too much metadata", ask(metadata={str(n): "x" for n in range(17)}), "metadata"),
    ("metadata is not text", ask(metadata={"a": 1}), "metadata.a"),
    ("provider is a string", ask(provider="openai"), "provider"),
    ("order is a string", ask(provider={"order": "openai"}), "provider.order"),
    ("unknown sort", ask(provider={"sort": "beauty"}), "provider.sort"),
    ("allow_fallbacks is a string", ask(provider={"allow_fallbacks": "no"}),
     "provider.allow_fallbacks"),
    ("data_collection is a boolean", ask(provider={"data_collection": False}),
     "provider.data_collection"),
    ("a hard filter that is not offered", ask(provider={"max_price": {"prompt": 1}}),
     "provider.max_price"),
    ("unknown service tier", ask(service_tier="golden"), "service_tier"),
    ("audio is a string", ask(audio="alloy"), "audio"),
    ("store is a string", ask(store="yes"), "store"),
    ("web_search_options is a boolean", ask(web_search_options=True), "web_search_options"),
    ("functions is an object", ask(functions={}), "functions"),
    ("a function is a string", ask(functions=["f"]), "functions[0]"),
    ("a function without name of old", ask(functions=[{}]), "functions[0].name"),
    ("function_call is a number", ask(function_call=1), "function_call"),
    ("function_call without name", ask(function_call={}), "function_call.name"),
    ("preset is an object", ask(preset={}), "preset"),
    ("safety_identifier is a number", ask(safety_identifier=1), "safety_identifier"),
    ("a name is a number", message(role="user", content="x", name=7), "messages[1].name"),
    ("a name is an object", message(role="assistant", content="x", name={}), "messages[1].name"),
    ("a tool of another type", ask(tools=[{"type": "telepathy"}]), "tools[0].type"),
    ("tool choice of another type", ask(tool_choice={"type": "json_schema"}), "tool_choice"),
    ("a throughput is a string", ask(provider={"preferred_min_throughput": "fast"}),
     "provider.preferred_min_throughput"),
    ("a throughput is negative", ask(provider={"preferred_min_throughput": -1}),
     "provider.preferred_min_throughput"),
    ("a latency is a list", ask(provider={"preferred_max_latency": []}),
     "provider.preferred_max_latency"),
    ("a percentile is a string", ask(provider={"preferred_max_latency": {"p90": "1"}}),
     "provider.preferred_max_latency.p90"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "field"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
async def test_a_malformed_request_is_a_typed_4xx_that_names_the_field(
    body: Any, field: str
) -> None:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with world() as edge:
        async with edge.client() as client:
            answer = await client.post("/api/v1/chat/completions", content=data)
        assert edge.worker.attempts == []
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert error["metadata"]["field"] == field
    assert error["metadata"]["error_type"] in ("invalid_request", "string_too_long")
    assert edge.leases.held_nano == 0


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_413_before_it_is_parsed(announced: bool) -> None:
    async with world(body_limit_bytes=1_000) as edge, edge.client() as client:

        async def parts() -> Any:
            for _ in range(100):
                yield b"[" * 100

        content: Any = b"[" * 10_000 if announced else parts()
        answer = await client.post("/v1/chat/completions", content=content)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 413
    assert error["metadata"] == {"error_type": "payload_too_large", "field": "body"}


def call(**body: Any) -> Call:
    return parse(orjson.dumps(ask(**body)), {})


def test_unknown_fields_are_accepted_and_nulls_count_as_absent() -> None:
    asked = call(verbose=7, temperature=None, tools=None, max_tokens=None, provider=None)
    assert asked.parameters == ()
    assert asked.max_tokens == 0


def test_known_fields_of_the_right_type_are_accepted() -> None:
    asked = call(
        audio={"voice": "alloy"},
        store=False,
        web_search_options={},
        functions=[{"name": "f"}],
        function_call={"name": "f"},
        preset="p",
        safety_identifier="s",
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        provider={"preferred_min_throughput": {"p50": 10, "p90": 1.5}, "preferred_max_latency": 2},
        messages=[{"role": "user", "content": "Hi", "name": "Ann"}],
    )
    assert asked.models == (MODEL,)
    assert call(function_call="auto").models == (MODEL,)


def test_what_a_request_uses_is_what_endpoints_must_support() -> None:
    asked = call(
        max_completion_tokens=5,
        reasoning_effort="low",
        tools=[{"type": "function", "function": {"name": "f"}}],
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    )
    assert asked.parameters == (
        "max_tokens", "reasoning", "response_format", "structured_outputs", "tools",
    )  # fmt: skip


def test_media_count_as_media_and_not_as_text() -> None:
    image = "data:image/png;base64," + "A" * 400_000
    asked = call(
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it"},
                    {"type": "image_url", "image_url": {"url": image}},
                ],
            }
        ]
    )
    assert asked.input_modalities == ("image",)
    assert asked.prompt_tokens < 5_000


def test_plan_keys_are_equal_for_requests_that_differ_only_in_what_filters_ignore() -> None:
    assert call(temperature=0.1).plan_key() == call(temperature=0.9).plan_key()
    assert call().plan_key() != call(temperature=0.9).plan_key()
    assert call().plan_key() != call(max_tokens=7).plan_key()
    assert call().plan_key() != call(provider={"only": ["x"]}).plan_key()


def test_a_size_is_rounded_up_by_at_most_an_eighth() -> None:
    for length in (10, 300, 2_100, 3_600, 5_000, 40_000, 123_456, 900_001):
        asked = call(messages=[{"role": "user", "content": "x" * length}])
        exact = asked.prompt_tokens
        assert exact <= asked.prompt_tokens_bucket <= max(exact * 9 // 8 + 1, 64)


def test_headers_say_what_the_body_does_not() -> None:
    headers = {
        b"x-session-id": b"from-header",
        b"http-referer": b"https://app.example",
        b"x-title": b"App",
        b"x-openrouter-title": b"Newer",
    }
    asked = parse(orjson.dumps(ask()), headers)
    assert (asked.session_id, asked.app, asked.app_title) == (
        "from-header", "https://app.example", "Newer",
    )  # fmt: skip
    assert parse(orjson.dumps(ask(session_id="body")), headers).session_id == "body"
    with pytest.raises(ApiError) as refused:
        parse(orjson.dumps(ask()), {b"x-session-id": b"s" * 257})
    assert refused.value.field == "session_id"
