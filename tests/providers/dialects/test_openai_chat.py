"""What OpenAI's speakers do differently, and what each of their presets asks for.

Scripted, because the recordings hold each quirk only as often as it happened to be recorded.
"""

import json
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
from services.providers.dialects import openai_chat
from services.providers.presets import PLAIN, PRESETS, preset_of
from services.providers.tool_calls import ToolCalls
from tests import answers

U = Unit


async def _read(*documents: Any, preset: str = "", done: bool = True) -> list[Chunk]:
    events = [Event("", orjson.dumps(document)) for document in documents]
    if done:
        events.append(Event("", b"[DONE]"))
    row = PRESETS.get(preset, PLAIN["openai_chat"])
    return answers.of_events(cast(Dialect, openai_chat), events, row)


def _delta(finish: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _deltas(chunks: list[Chunk]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk.choices]


def _joined(chunks: list[Chunk], key: str) -> str:
    return "".join(delta.get(key) or "" for delta in _deltas(chunks))


async def _counts(usage: Any, preset: str = "") -> dict[int, int] | None:
    chunks = await _read(
        _delta("stop", content="x"), {"choices": [], "usage": usage}, preset=preset
    )
    reported = [chunk.usage for chunk in chunks if chunk.usage]
    return reported[-1].counts if reported else None


# --- usage -------------------------------------------------------------------------------------


async def test_M5_cached_written_and_media_tokens_are_parts_of_the_prompt() -> None:
    details = {
        "cached_tokens": 30,
        "cache_write_tokens": 20,
        "audio_tokens": 10,
        "image_tokens": 5,
        "video_tokens": 4,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": details}
    assert await _counts(usage) == {
        U.UNIT_PROMPT: 31,
        U.UNIT_CACHE_READ: 30,
        U.UNIT_CACHE_WRITE: 20,
        U.UNIT_PROMPT_AUDIO: 10,
        U.UNIT_PROMPT_IMAGE: 5,
        U.UNIT_PROMPT_VIDEO: 4,
        U.UNIT_COMPLETION: 7,
    }


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40},
        {"num_cached_tokens": 60},
        {"cached_tokens": 60},
        {"prompt_tokens_details": {"cached_tokens": 60}},
    ],
)
async def test_M5_cached_tokens_are_found_under_every_name(usage: Any) -> None:
    counts = await _counts({"prompt_tokens": 100, "completion_tokens": 1, **usage})
    assert counts == {U.UNIT_PROMPT: 40, U.UNIT_CACHE_READ: 60, U.UNIT_COMPLETION: 1}


async def test_M5_parts_that_claim_more_than_the_prompt_are_cut() -> None:
    details = {"cached_tokens": 90, "cache_write_tokens": 90}
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details}
    counts = await _counts(usage)
    assert counts is not None
    assert sum(counts.values()) == 101


@pytest.mark.parametrize(
    ("total", "preset", "text", "reasoning"),
    [
        (150, "", 20, 30),  # the total says: inside
        (180, "", 50, 30),  # the total says: outside
        (None, "", 20, 30),
        (None, "xai", 50, 30),  # nothing says: the preset does
        (150, "xai", 20, 30),  # the answer is stronger than the preset
        (977, "", 20, 30),  # a total that fits neither is no reason to charge more
    ],
)
async def test_reasoning_is_within_or_beside_the_completion(
    total: int | None, preset: str, text: int, reasoning: int
) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    if total is not None:
        usage["total_tokens"] = total
    counts = await _counts(usage, preset)
    assert counts is not None
    assert (counts[U.UNIT_COMPLETION], counts[U.UNIT_REASONING]) == (text, reasoning)


async def test_more_reasoning_than_output_is_cut_to_the_output() -> None:
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 10,
        "total_tokens": 11,
        "completion_tokens_details": {"reasoning_tokens": 11},
    }
    counts = await _counts(usage)
    assert counts == {U.UNIT_PROMPT: 1, U.UNIT_COMPLETION: 0, U.UNIT_REASONING: 10}


async def test_usage_under_x_groq_and_on_an_event_without_choices_is_read() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    for last in ({"choices": [], "x_groq": {"usage": usage}}, {"usage": usage}):
        chunks = await _read(_delta("stop", content="x"), last)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.counts == {U.UNIT_PROMPT: 3, U.UNIT_COMPLETION: 2}


async def test_searches_the_provider_made_are_counted() -> None:
    details = {"web_search_requests": 2}
    counts = await _counts(
        {"prompt_tokens": 1, "completion_tokens": 1, "server_tool_use_details": details}
    )
    assert counts is not None
    assert counts[U.UNIT_WEB_SEARCH] == 2


# --- content -----------------------------------------------------------------------------------


async def test_reasoning_under_either_name_comes_out_once() -> None:
    chunks = await _read(
        _delta(role="assistant", reasoning_content="a"),
        _delta(reasoning="b"),
        _delta(reasoning="c", reasoning_content="c"),
        _delta("stop", content="text"),
    )
    assert _joined(chunks, "reasoning") == "abc"
    assert _joined(chunks, "content") == "text"
    assert not any("reasoning_content" in delta for delta in _deltas(chunks))


async def test_S16_a_delta_of_nothing_but_a_signature_passes_on() -> None:
    detail = {"type": "reasoning.text", "signature": "s", "index": 0}
    chunks = await _read(_delta(reasoning_details=[detail]), _delta("stop", content="x"))
    assert _deltas(chunks)[0]["reasoning_details"] == [detail]
    assert chunks[0].has_content


async def test_content_as_a_list_is_text_and_thinking_apart() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "4"},
    ]
    chunks = await _read(_delta("stop", content=parts))
    assert (_joined(chunks, "content"), _joined(chunks, "reasoning")) == ("4", "hm")


async def test_a_refusal_is_content() -> None:
    chunks = await _read(_delta(refusal="no"), _delta("stop"))
    assert chunks[0].has_content
    assert _joined(chunks, "refusal") == "no"


async def test_empty_media_and_calls_are_not_content() -> None:
    empty: dict[str, Any] = {
        "content": "hi",
        "audio": {"id": "", "data": "", "transcript": ""},
        "function_call": {"name": "", "arguments": ""},
        "refusal": "",
        "annotations": None,
        "tool_calls": [],
    }
    chunks = await _read(_delta("stop", **empty))
    assert _deltas(chunks)[0].keys() == {"content", "role"}


async def test_unknown_fields_of_an_answer_do_not_pass() -> None:
    chunks = await _read(
        {"choices": [{**_delta(content="x", channel="analysis")["choices"][0], "token_ids": [1]}]},
        _delta("stop"),
    )
    assert b"channel" not in orjson.dumps(chunks[0].choices)
    assert b"token_ids" not in orjson.dumps(chunks[0].choices)


async def test_S10_events_without_choices_end_nothing() -> None:
    chunks = await _read(
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"type": "ping"},
        _delta(content="a"),
        {"choices": None},
        {"choices": []},
        _delta("stop", content="b"),
    )
    assert _joined(chunks, "content") == "ab"


async def test_a_finish_that_is_repeated_is_given_once() -> None:
    chunks = await _read(
        _delta(content="a"),
        _delta("stop"),
        {
            **_delta("stop", role="assistant", content=""),
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        },
    )
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk.choices]
    assert reasons == [None, "stop"]
    assert chunks[-1].usage is not None


async def test_f18_no_finish_reason_but_an_end_mark_is_a_good_end() -> None:
    chunks = await _read(_delta(content="a"), _delta("", content="b"))
    assert [chunk.finish_reason for chunk in chunks] == ["", "", "stop"]
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    chunks = await _read(_delta(tool_calls=[call]))
    assert chunks[-1].finish_reason == "tool_calls"


async def test_an_error_on_a_choice_is_a_failure() -> None:
    choice = {"index": 0, "message": {"content": "x"}, "error": {"code": 502, "message": "bad"}}
    with pytest.raises(AttemptFailed) as failed:
        await _read({"choices": [choice]})
    assert failed.value.status == 502


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({"error": {"message": "m", "code": 429}, "choices": [{"delta": {}}]}, 429),
        ({"error": {"message": "m", "status_code": 400, "code": "tool_use_failed"}}, 400),
        ({"error": "The model is overloaded"}, 529),
        ({"object": "error", "message": "m", "code": 503}, 503),
        ({"error": {"message": "m", "code": "1302"}}, 502),
    ],
)
async def test_S8_f11_error_objects_of_many_shapes(document: Any, status: int) -> None:
    with pytest.raises(AttemptFailed) as failed:
        await _read(document)
    assert failed.value.status == status


async def test_several_choices_keep_their_index() -> None:
    chunks = await _read(
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    )
    seen = [
        (choice["index"], choice["delta"].get("content"), choice["finish_reason"])
        for chunk in chunks
        for choice in chunk.choices
    ]
    assert seen == [(0, "a", None), (1, "b", None), (1, None, "length"), (0, None, "stop")]


# --- tool calls --------------------------------------------------------------------------------


def _fragment(arguments: str, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {**fields, "function": function}


def test_f22_calls_under_one_index_with_ids_of_their_own_are_told_apart() -> None:
    calls = ToolCalls()
    for index in (0, -1, None):
        calls = ToolCalls()
        first = calls.read([_fragment("{}", index=index, id="a", name="f")])
        second = calls.read([_fragment("{}", index=index, id="b", name="g")])
        assert [part["index"] for part in first + second] == [0, 1]


def test_fragments_without_an_index_continue_the_latest_call() -> None:
    calls = ToolCalls()
    calls.read([_fragment("", id="a", name="f")])
    (part,) = calls.read([_fragment('{"x"')])
    assert part == {"index": 0, "function": {"arguments": '{"x"'}}


def test_an_id_and_name_that_are_repeated_are_given_once() -> None:
    calls = ToolCalls()
    parts = []
    for piece in ('{"x"', ": 1}"):
        parts += calls.read([_fragment(piece, index=0, id="a", name="f", type="function")])
    assert parts == [
        {
            "index": 0,
            "id": "a",
            "type": "function",
            "function": {"name": "f", "arguments": '{"x"'},
        },
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]


def test_f22_what_is_wrong_with_a_call_passes_on() -> None:
    (part,) = ToolCalls().read([_fragment("{not json", index=0, name="unknown")])
    assert part == {
        "index": 0,
        "type": "function",
        "function": {"name": "unknown", "arguments": "{not json"},
    }


def test_arguments_that_are_an_object_become_text() -> None:
    (part,) = ToolCalls().read([{"id": "a", "function": {"name": "f", "arguments": {"x": 1}}}])
    assert json.loads(part["function"]["arguments"]) == {"x": 1}


async def test_the_shape_before_tool_calls_is_read() -> None:
    chunks = await _read(
        _delta(function_call={"name": "f", "arguments": ""}),
        _delta(function_call={"arguments": "{}"}),
        _delta("function_call"),
    )
    parts = [part for delta in _deltas(chunks) for part in delta.get("tool_calls", ())]
    assert "".join(part["function"]["arguments"] for part in parts) == "{}"
    assert chunks[-1].finish_reason == "tool_calls"


# --- the call ----------------------------------------------------------------------------------


def _written(body: Any, preset: str = "", **endpoint: Any) -> Any:
    row = PRESETS.get(preset, PLAIN["openai_chat"])
    to = Endpoint("e", "https://h.example/v1", "openai_chat", row, "m", **endpoint)
    call = Call({"messages": [{"role": "user", "content": "hi"}], **body})
    return orjson.loads(openai_chat.request(call, to, Credential()).content)


def test_usage_is_asked_for_where_the_provider_can_be_asked() -> None:
    assert _written({})["stream_options"] == {"include_usage": True}
    assert "stream_options" not in _written({}, "mistral")


@pytest.mark.parametrize("given", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("preset", "field"), [("openai", "max_completion_tokens"), ("zai", "max_tokens")]
)
def test_the_output_limit_goes_under_the_providers_name(
    given: str, preset: str, field: str
) -> None:
    written = _written({given: 77}, preset)
    assert written[field] == 77
    assert len({"max_tokens", "max_completion_tokens"} & written.keys()) == 1


def test_parameters_are_renamed_and_dropped_by_the_preset() -> None:
    written = _written({"seed": 5, "top_k": 3, "user": "u"}, "mistral")
    assert written["random_seed"] == 5
    assert not {"seed", "top_k", "user"} & written.keys()
    assert _written({"top_k": 3})["top_k"] == 3


def test_unknown_fields_are_ignored_unless_the_endpoint_names_them() -> None:
    assert "frobnicate" not in _written({"frobnicate": 1})
    names = frozenset({"frobnicate"})
    assert _written({"frobnicate": 1}, supported_parameters=names)["frobnicate"] == 1


@pytest.mark.parametrize(
    ("preset", "body", "written"),
    [
        ("openai", {"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ("openai", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ("openai", {"reasoning": {"enabled": False}}, {"reasoning_effort": "none"}),
        ("xai", {"reasoning": {"effort": "minimal"}}, {"reasoning_effort": "low"}),
        ("xai", {"reasoning": {"effort": "medium"}}, {"reasoning_effort": "high"}),
        ("openai", {"reasoning": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        (
            "openai",
            {"reasoning": {"max_tokens": 500}, "max_tokens": 1000},
            {"reasoning_effort": "medium"},
        ),
        ("zai", {"reasoning": {"effort": "high"}}, {"thinking": {"type": "enabled"}}),
        ("zai", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("openrouter", {"reasoning": {"max_tokens": 9}}, {"reasoning": {"max_tokens": 9}}),
        ("openai", {}, {}),
    ],
)
def test_reasoning_is_asked_for_in_the_providers_words(
    preset: str, body: Any, written: Any
) -> None:
    made = _written(body, preset)
    keys = ("reasoning", "reasoning_effort", "thinking")
    assert {key: made[key] for key in keys if key in made} == written


def _messages(message: Any, preset: str = "") -> Any:
    return _written({"messages": [message]}, preset)["messages"][0]


def test_names_become_part_of_the_text_outside_openai() -> None:
    message = {"role": "user", "name": "ann", "content": "hi"}
    assert _messages(message, "openai") == message
    assert _messages(message) == {"role": "user", "content": "ann: hi"}
    parts = {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hi"}]}
    assert _messages(parts)["content"] == [{"type": "text", "text": "ann: hi"}]
    tool = {"role": "tool", "name": "f", "tool_call_id": "c", "content": "x"}
    assert _messages(tool) == {"role": "tool", "tool_call_id": "c", "content": "x"}


def test_S16_echoed_reasoning_reaches_those_who_gave_it() -> None:
    details = [{"type": "reasoning.encrypted", "data": "ÿ+/=", "format": "x"}]
    message = {"role": "assistant", "content": "a", "reasoning": "r", "reasoning_details": details}
    assert _messages(message) == message
    assert _messages(message, "openrouter") == message
    assert _messages(message, "openai") == {"role": "assistant", "content": "a"}
    content = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert _messages(message, "deepseek") == content


def test_marks_for_a_cache_reach_those_who_have_one() -> None:
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    message = {"role": "user", "content": [part]}
    assert _messages(message, "openrouter") == message
    assert _messages(message, "openai")["content"] == [{"type": "text", "text": "hi"}]


def test_tool_ids_fit_providers_that_want_them_short() -> None:
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "f"}}
    asked = _messages({"role": "assistant", "tool_calls": [call]}, "mistral")
    told = _messages({"role": "tool", "tool_call_id": call["id"], "content": "x"}, "mistral")
    assert asked["tool_calls"][0]["id"] == told["tool_call_id"]
    assert len(told["tool_call_id"]) == 9
    assert told["tool_call_id"].isalnum()
    kept = _messages({"role": "tool", "tool_call_id": "abcDEF123", "content": "x"}, "mistral")
    assert kept["tool_call_id"] == "abcDEF123"


def test_developer_becomes_system_where_that_role_is_unknown() -> None:
    message = {"role": "developer", "content": "hi"}
    assert _messages(message, "openai")["role"] == "developer"
    assert _messages(message, "groq")["role"] == "system"


# --- presets -----------------------------------------------------------------------------------


def test_every_preset_is_complete_and_findable() -> None:
    for slug, row in PRESETS.items():
        assert row.slug == slug
        assert row.name
        assert row.base_url.startswith(("https://", "http://127.0.0.1"))
        assert preset_of(slug, row.dialect) is row
        assert row.credential_kind in ("none", "bearer", "header")
        assert bool(row.credential_header) == (row.credential_kind == "header")


def test_a_vendor_with_two_dialects_has_a_preset_for_each() -> None:
    assert preset_of("google", "gemini").slug == "google"
    assert preset_of("google", "openai_chat").slug == "google-openai"
    assert preset_of("anthropic", "openai_chat").slug == "anthropic-openai"
    assert preset_of("nobody", "openai_chat") is PLAIN["openai_chat"]
