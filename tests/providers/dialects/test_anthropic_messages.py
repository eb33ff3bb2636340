"""Claude's wire: blocks, signatures, caches; and how a canonical call becomes its turns."""

from typing import Any, cast

import orjson
import pytest

from bourse.v1.events_pb2 import Unit
from services.providers.call import (
    AttemptFailed,
    Call,
    Chunk,
    Credential,
    Dialect,
    Endpoint,
    Event,
)
from services.providers.dialects import anthropic_messages
from services.providers.presets import PLAIN, PRESETS
from tests import answers

U = Unit
FORMAT = "anthropic-claude-v1"


async def _read(*documents: Any) -> list[Chunk]:
    events = (Event(document["type"], orjson.dumps(document)) for document in documents)
    return answers.of_events(cast(Dialect, anthropic_messages), events, PLAIN["anthropic_messages"])


def _block(index: int, content: Any, *deltas: Any) -> list[Any]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _end(reason: str = "end_turn", **usage: Any) -> list[Any]:
    return [
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage},
        {"type": "message_stop"},
    ]


def _details(chunks: list[Chunk]) -> list[Any]:
    return [
        detail
        for chunk in chunks
        for choice in chunk.choices
        for detail in choice["delta"].get("reasoning_details", ())
    ]


async def test_M5_fields_that_both_reports_hold_are_never_added() -> None:
    start = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30},
        "output_tokens": 2,
    }
    chunks = await _read(
        {"type": "message_start", "message": {"id": "m", "usage": start}},
        *_block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"}),
        *_end(input_tokens=11, cache_read_input_tokens=101, output_tokens=40),
    )
    assert chunks[0].usage is not None  # what a cut stream is charged by
    assert chunks[0].usage.counts[U.UNIT_PROMPT] == 10
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts == {
        U.UNIT_PROMPT: 11,
        U.UNIT_CACHE_READ: 101,
        U.UNIT_CACHE_WRITE: 20,
        U.UNIT_CACHE_WRITE_1H: 30,
        U.UNIT_COMPLETION: 40,
    }


async def test_M5_writes_told_only_by_age_are_counted_by_age() -> None:
    by_age = {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 30}
    usage: dict[str, Any] = {"input_tokens": 1, "output_tokens": 2, "cache_creation": by_age}
    chunks = await _read({"type": "message_start", "message": {}}, *_end(**usage))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts == {
        U.UNIT_PROMPT: 1,
        U.UNIT_CACHE_WRITE: 20,
        U.UNIT_CACHE_WRITE_1H: 30,
        U.UNIT_COMPLETION: 2,
    }


async def test_thinking_is_within_the_output() -> None:
    chunks = await _read(
        {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
        *_end(output_tokens=40, output_tokens_details={"thinking_tokens": 30}),
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts[U.UNIT_COMPLETION] == 10
    assert chunks[-1].usage.counts[U.UNIT_REASONING] == 30


async def test_S16_thinking_its_signature_and_sealed_thinking_pass_on() -> None:
    chunks = await _read(
        {"type": "message_start", "message": {}},
        *_block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "signature_delta", "signature": "sig"},
        ),
        *_block(1, {"type": "redacted_thinking", "data": "sealed"}),
        *_end(),
    )
    assert _details(chunks) == [
        {"type": "reasoning.text", "text": "hm", "format": FORMAT, "index": 0},
        {"type": "reasoning.text", "signature": "sig", "format": FORMAT, "index": 0},
        {"type": "reasoning.encrypted", "data": "sealed", "format": FORMAT, "index": 1},
    ]


async def test_S16_details_that_were_streamed_come_back_as_blocks() -> None:
    chunks = await _read(
        {"type": "message_start", "message": {}},
        *_block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "h"},
            {"type": "thinking_delta", "thinking": "m"},
            {"type": "signature_delta", "signature": "sig"},
        ),
        *_block(1, {"type": "redacted_thinking", "data": "sealed"}),
        *_end(),
    )
    message = {"role": "assistant", "content": "4", "reasoning_details": _details(chunks)}
    assert _turns([message])[0]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "redacted_thinking", "data": "sealed"},
        {"type": "text", "text": "4"},
    ]


def test_reasoning_that_claude_cannot_verify_is_left_out() -> None:
    details = [
        {"type": "reasoning.text", "text": "unsigned", "format": FORMAT},
        {"type": "reasoning.encrypted", "data": "theirs", "format": "openai-responses-v1"},
    ]
    message = {"role": "assistant", "content": "4", "reasoning_details": details}
    assert _turns([message])[0]["content"] == [{"type": "text", "text": "4"}]


async def test_tools_the_provider_ran_itself_are_not_calls() -> None:
    chunks = await _read(
        {"type": "message_start", "message": {}},
        *_block(
            0,
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "input_json_delta", "partial_json": '{"query": 1}'},
        ),
        *_block(1, {"type": "web_search_tool_result", "content": []}),
        *_block(2, {"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"}),
        *_end(server_tool_use={"web_search_requests": 1}, input_tokens=1, output_tokens=1),
    )
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.choices]
    assert not any("tool_calls" in delta for delta in deltas)
    assert chunks[-1].finish_reason == "stop" or chunks[-2].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts[U.UNIT_WEB_SEARCH] == 1


async def test_arguments_may_all_stand_at_a_blocks_start() -> None:
    chunks = await _read(
        {"type": "message_start", "message": {}},
        *_block(0, {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}),
        *_end("tool_use"),
    )
    parts = [
        part
        for chunk in chunks
        for choice in chunk.choices
        for part in choice["delta"].get("tool_calls", ())
    ]
    assert orjson.loads("".join(part["function"]["arguments"] for part in parts)) == {"x": 1}


async def test_overloaded_within_a_stream_is_529() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(AttemptFailed) as failed:
        await _read({"type": "message_start", "message": {}}, error)
    assert (failed.value.status, failed.value.error_type) == (529, "provider_overloaded")


# --- the call ----------------------------------------------------------------------------------


def _written(body: Any, **endpoint: Any) -> Any:
    to = Endpoint(
        "e",
        "https://h.example",
        "anthropic_messages",
        PLAIN["anthropic_messages"],
        "claude",
        **endpoint,
    )
    call = Call({"messages": [{"role": "user", "content": "hi"}], **body})
    return orjson.loads(anthropic_messages.request(call, to, Credential()).content)


def _turns(messages: list[Any]) -> Any:
    return _written({"messages": messages})["messages"]


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com/v1/messages"),
        ("https://api.anthropic.com/v1", "https://api.anthropic.com/v1/messages"),
        ("https://r.example/anthropic/", "https://r.example/anthropic/v1/messages"),
    ],
)
def test_the_url_is_right_with_and_without_the_version(base: str, url: str) -> None:
    row = PRESETS["anthropic"]
    to = Endpoint("e", base, "anthropic_messages", row, "claude")
    call = Call({"messages": []}, headers={"anthropic-beta": "b1"})
    request = anthropic_messages.request(call, to, Credential("header", "", "key"))
    assert str(request.url) == url
    assert request.headers["x-api-key"] == "key"
    assert request.headers["anthropic-version"]
    assert request.headers["anthropic-beta"] == "b1"


def test_the_mandatory_limit_is_as_asked_else_the_endpoints_else_small() -> None:
    assert _written({"max_tokens": 9})["max_tokens"] == 9
    assert _written({}, max_completion_tokens=64)["max_tokens"] == 64
    assert _written({})["max_tokens"] > 0


@pytest.mark.parametrize(
    ("effort", "max_tokens", "budget"),
    [
        ("max", 10_000, 9_500),
        ("xhigh", 10_000, 9_500),
        ("high", 10_000, 8_000),
        ("medium", 10_000, 5_000),
        ("low", 10_000, 2_000),
        ("minimal", 10_000, 1_024),  # 10 % would be below the least
        ("high", 400_000, 128_000),
        ("high", 1_100, 1_024),
    ],
)
def test_an_effort_is_a_share_of_max_tokens(effort: str, max_tokens: int, budget: int) -> None:
    written = _written({"reasoning": {"effort": effort}, "max_tokens": max_tokens})
    assert written["thinking"] == {"type": "enabled", "budget_tokens": budget}
    assert written["max_tokens"] == max_tokens


def test_thinking_goes_with_neither_temperature_nor_a_forced_tool() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    written = _written(
        {
            "reasoning": {"max_tokens": 2000},
            "max_tokens": 4000,
            "temperature": 0.2,
            "tools": [tool],
            "tool_choice": "required",
        }
    )
    assert "temperature" not in written
    assert written["tool_choice"] == {"type": "auto"}


@pytest.mark.parametrize(
    "body", [{}, {"reasoning_effort": "none"}, {"reasoning": {"effort": "high"}, "max_tokens": 64}]
)
def test_no_thinking_where_none_is_asked_or_none_fits(body: Any) -> None:
    assert "thinking" not in _written(body)


def test_tool_results_follow_their_calls_in_one_turn() -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in ("a", "b")
    ]
    turns = _turns(
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "1"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "2"}]},
            {"role": "user", "content": "and?"},
        ]
    )
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [block["type"] for block in turns[1]["content"]] == ["tool_use", "tool_use"]
    assert turns[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": "1"},
        {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "2"}]},
        {"type": "text", "text": "and?"},
    ]


def test_marks_for_the_cache_stay_on_their_blocks() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    part = {"type": "text", "text": "long", "cache_control": mark}
    tool = {"type": "function", "function": {"name": "f"}, "cache_control": mark}
    written = _written(
        {"messages": [{"role": "system", "content": [part]}, {"role": "user", "content": [part]}]}
        | {"tools": [tool], "cache_control": mark}
    )
    assert written["system"][0]["cache_control"] == mark
    assert written["messages"][0]["content"][0]["cache_control"] == mark
    assert written["tools"][0]["cache_control"] == mark
    assert written["cache_control"] == mark


def test_media_go_as_their_sources() -> None:
    pdf = {"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": {"url": "https://h.example/i.png"}},
        {"type": "file", "file": pdf},
        {"type": "file", "file": {"file_id": "f1"}},
    ]
    blocks = _turns([{"role": "user", "content": content}])[0]["content"]
    assert [block["source"]["type"] for block in blocks] == ["base64", "url", "base64", "file"]
    assert blocks[0]["source"] == {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    assert blocks[2]["source"]["media_type"] == "application/pdf"


def test_what_claude_cannot_hear_is_refused_by_name() -> None:
    content = [
        {"type": "text", "text": "listen"},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
    ]
    with pytest.raises(AttemptFailed) as failed:
        _turns([{"role": "user", "content": content}])
    assert failed.value.field == "messages[0].content[1]"


def test_a_prefill_keeps_its_text_but_not_its_last_space() -> None:
    turns = _turns([{"role": "user", "content": "go"}, {"role": "assistant", "content": "Once \n"}])
    assert turns[-1] == {"role": "assistant", "content": [{"type": "text", "text": "Once"}]}


@pytest.mark.parametrize(
    ("choice", "parallel", "written"),
    [
        ("auto", None, {"type": "auto"}),
        ("required", None, {"type": "any"}),
        ("none", False, {"type": "none"}),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "f"}}, None, {"type": "tool", "name": "f"}),
    ],
)
def test_tool_choice_is_translated(choice: Any, parallel: Any, written: Any) -> None:
    body: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": choice,
    }
    if parallel is not None:
        body["parallel_tool_calls"] = parallel
    assert _written(body)["tool_choice"] == written


def test_a_schema_is_asked_for() -> None:
    schema = {"type": "object", "properties": {}}
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    written = _written({"response_format": shape})
    assert written["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
