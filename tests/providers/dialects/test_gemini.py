"""Gemini's wire: parts, signatures, cumulative usage; and how a canonical call becomes contents."""

from collections.abc import Iterable
from typing import Any, cast

import orjson
import pytest

from bourse.v1.events_pb2 import Unit
from services.providers import refusals
from services.providers.call import (
    AttemptFailed,
    Call,
    Chunk,
    Credential,
    Dialect,
    Endpoint,
    Event,
)
from services.providers.decoding import Decoder
from services.providers.dialects import gemini
from services.providers.presets import PLAIN, PRESETS
from tests import answers

U = Unit
FORMAT = "google-gemini-v1"


async def _read(*documents: Any, name: str = "") -> list[Chunk]:
    events = (Event(name, orjson.dumps(document)) for document in documents)
    return answers.of_events(cast(Dialect, gemini), events, PLAIN["gemini"])


def _document(*parts: Any, finish: str | None = "STOP", **fields: Any) -> Any:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "responseId": "r1", **fields}


def _text(chunk: Chunk) -> str:
    return "".join(choice["delta"].get("content", "") for choice in chunk.choices)


def _deltas(chunks: list[Chunk]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk.choices]


async def _counts(usage: Any) -> dict[int, int]:
    chunks = await _read(_document({"text": "x"}, usageMetadata=usage))
    assert chunks[-1].usage is not None
    return chunks[-1].usage.counts


async def test_M5_thoughts_and_tool_prompts_are_beside_prompt_and_candidates() -> None:
    usage = {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 50,
        "toolUsePromptTokenCount": 20,
        "totalTokenCount": 177,
    }
    counts = await _counts(usage)
    assert counts == {
        U.UNIT_PROMPT: 40,
        U.UNIT_CACHE_READ: 60,
        U.UNIT_TOOL_PROMPT: 20,
        U.UNIT_COMPLETION: 7,
        U.UNIT_REASONING: 50,
    }
    assert sum(counts.values()) == usage["totalTokenCount"]


async def test_M5_cached_media_are_counted_once() -> None:
    counts = await _counts(
        {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 60,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 20},
                {"modality": "AUDIO", "tokenCount": 50},
                {"modality": "IMAGE", "tokenCount": 30},
            ],
            "cacheTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 40},
                {"modality": "IMAGE", "tokenCount": 20},
            ],
        }
    )
    assert counts == {
        U.UNIT_CACHE_READ: 20,
        U.UNIT_CACHE_READ_AUDIO: 40,
        U.UNIT_PROMPT_AUDIO: 10,
        U.UNIT_PROMPT_IMAGE: 10,
        U.UNIT_PROMPT: 20,
        U.UNIT_COMPLETION: 0,
    }


async def test_usage_is_cumulative_and_the_last_wins() -> None:
    chunks = await _read(
        _document(
            {"text": "a"},
            finish=None,
            usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 1},
        ),
        _document({"text": "b"}, usageMetadata={"promptTokenCount": 9, "candidatesTokenCount": 2}),
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts == {U.UNIT_PROMPT: 9, U.UNIT_COMPLETION: 2}


async def test_calls_without_ids_get_the_same_ones_every_time() -> None:
    parts = [{"functionCall": {"name": "f", "args": {"x": 1}}}] * 2
    first, second = [await _read(_document(*parts)) for _ in range(2)]
    calls = _deltas(first)[0]["tool_calls"]
    assert calls == _deltas(second)[0]["tool_calls"]
    assert calls[0]["id"] != calls[1]["id"]
    assert first[-1].finish_reason == "tool_calls"
    assert first[-1].native_finish_reason == "STOP"


async def test_ids_of_the_provider_are_kept() -> None:
    chunks = await _read(_document({"functionCall": {"name": "f", "id": "own"}}))
    assert _deltas(chunks)[0]["tool_calls"][0]["id"] == "own"
    assert _deltas(chunks)[0]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_thoughts_are_reasoning_and_not_text() -> None:
    chunks = await _read(_document({"text": "hm", "thought": True}, {"text": "4"}))
    delta = _deltas(chunks)[0]
    assert (delta["reasoning"], delta["content"]) == ("hm", "4")


async def test_S16_signatures_come_back_where_they_belong() -> None:
    chunks = await _read(
        _document(
            {"text": "look", "thoughtSignature": "s0"},
            {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s1"},
            {"functionCall": {"name": "g", "args": {}}},
        )
    )
    delta = _deltas(chunks)[0]
    message = {"role": "assistant", **delta}
    parts = _written({"messages": [{"role": "user", "content": "hi"}, message]})["contents"][1]
    assert parts["parts"] == [
        {"text": "look", "thoughtSignature": "s0"},
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s1"},
        {"functionCall": {"name": "g", "args": {}}},
    ]


async def test_a_prompt_that_was_blocked_is_a_policy_failure() -> None:
    with pytest.raises(AttemptFailed) as failed:
        await _read({"promptFeedback": {"blockReason": "SAFETY"}}, name="json")
    failure = failed.value
    assert (failure.status, failure.error_type) == (400, "content_policy_violation")
    assert failure.provider_code == "SAFETY"
    assert failure.another_model_may_help
    assert not failure.counts_against_uptime


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SOMETHING_NEW", "stop"),
    ],
)
async def test_finish_words_are_mapped(finish: str, reason: str) -> None:
    chunks = await _read(_document({"text": "x"}, finish=finish))
    assert (chunks[-1].finish_reason, chunks[-1].native_finish_reason) == (reason, finish)


async def test_a_call_of_a_tool_not_offered_passes_on_but_a_malformed_one_fails() -> None:
    call = {"functionCall": {"name": "f"}}
    chunks = await _read(_document(call, finish="UNEXPECTED_TOOL_CALL"))
    assert chunks[-1].finish_reason == "tool_calls"
    for finish in ("UNEXPECTED_TOOL_CALL", "MALFORMED_FUNCTION_CALL"):
        with pytest.raises(AttemptFailed):
            await _read(_document(finish=finish))


async def test_images_come_as_data_urls() -> None:
    chunks = await _read(_document({"inlineData": {"mimeType": "image/png", "data": "QUJD"}}))
    (image,) = _deltas(chunks)[0]["images"]
    assert image["image_url"]["url"] == "data:image/png;base64,QUJD"
    assert chunks[0].has_content


async def test_citations_that_are_repeated_come_once() -> None:
    grounding = {
        "webSearchQueries": ["q1", "q2"],
        "groundingChunks": [{"web": {"uri": "https://a.example", "title": "A"}}],
    }
    document = _document({"text": "x"}, usageMetadata={"promptTokenCount": 1})
    document["candidates"][0]["groundingMetadata"] = grounding
    chunks = await _read(document, document)
    cited = [item for delta in _deltas(chunks) for item in delta.get("annotations", ())]
    assert [item["url_citation"]["url"] for item in cited] == ["https://a.example"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.counts[U.UNIT_WEB_SEARCH] == 2


async def test_f05_a_break_after_the_finish_reason_takes_nothing_away() -> None:
    def read(finish: str | None) -> list[Chunk]:
        reading = gemini.reading(PLAIN["gemini"])
        event = Event("", orjson.dumps(_document({"text": "x"}, finish=finish)))
        return [*reading.read(event), *reading.end(refusals.cut())]

    assert read("STOP")[-1].finish_reason == "stop"
    with pytest.raises(AttemptFailed) as failed:
        read(None)
    assert failed.value.reason == "cut"


async def _array(pieces: Iterable[bytes]) -> list[Chunk]:
    dialect = cast(Dialect, gemini)
    return answers.of_reads(dialect, "application/json", pieces, PLAIN["gemini"])


async def test_a_json_array_is_a_stream_at_every_cut() -> None:
    tricky = 'a "quoted" \\ back } ] [ { slash\n'
    documents = [
        _document({"text": tricky}, finish=None),
        _document({"text": "b"}, usageMetadata={"promptTokenCount": 1, "candidatesTokenCount": 2}),
    ]
    body = orjson.dumps(documents, option=orjson.OPT_INDENT_2)
    whole = await _array([body])
    assert "".join(delta.get("content", "") for delta in _deltas(whole)) == tricky + "b"
    for step in (1, 2, 5, 17):
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        assert await _array(pieces) == whole


async def test_elements_of_an_array_are_given_out_as_they_come() -> None:
    decoder = Decoder("application/json", gemini.reading(PLAIN["gemini"]))
    first, last = (
        orjson.dumps(_document({"text": text}, finish=finish))
        for text, finish in (("x", None), ("y", "STOP"))
    )
    assert [_text(chunk) for chunk in decoder.feed(b"[" + first)] == ["x"]
    assert [_text(chunk) for chunk in decoder.feed(b"," + last + b"]")] == ["y"]


# --- the call ----------------------------------------------------------------------------------


def _request(body: Any, preset: str = "", streamed: bool = True, base: str = "") -> Any:
    row = PRESETS.get(preset, PLAIN["gemini"])
    to = Endpoint("e", base or "https://h.example/v1beta", "gemini", row, "gemini-x")
    call = Call({"messages": [{"role": "user", "content": "hi"}], **body}, streamed)
    return gemini.request(call, to, Credential("header", "", "key"))


def _written(body: Any) -> Any:
    return orjson.loads(_request(body).content)


def test_the_url_names_model_and_verb() -> None:
    streamed = _request({})
    assert streamed.url.path == "/v1beta/models/gemini-x:streamGenerateContent"
    assert streamed.url.params["alt"] == "sse"
    assert streamed.headers["x-goog-api-key"] == "key"
    whole = _request({}, streamed=False)
    assert whole.url.path == "/v1beta/models/gemini-x:generateContent"
    assert not whole.url.params


def test_vertex_has_project_and_location_in_its_base() -> None:
    base = "https://aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google"
    path = _request({}, "vertex", base=base).url.path
    assert path.endswith("/locations/l/publishers/google/models/gemini-x:streamGenerateContent")


def test_results_name_the_function_they_are_of() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    contents = _written(
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
                {"role": "tool", "tool_call_id": "c1", "content": '{"temp": 20}'},
            ]
        }
    )["contents"]
    assert [turn["role"] for turn in contents] == ["user", "model", "user"]
    assert contents[1]["parts"] == [{"functionCall": {"name": "f", "args": {"x": 1}}}]
    assert contents[2]["parts"] == [
        {"functionResponse": {"name": "f", "response": {"result": "sunny"}}},
        {"functionResponse": {"name": "f", "response": {"temp": 20}}},
    ]


def test_instructions_and_parameters_have_their_own_places() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    written = _written(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
            ],
            "temperature": 0.5,
            "max_tokens": 1000,
            "stop": "END",
            "n": 1,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
            "reasoning": {"effort": "low"},
        }
    )
    assert written["systemInstruction"] == {"parts": [{"text": "be brief"}]}
    assert written["generationConfig"] == {
        "temperature": 0.5,
        "maxOutputTokens": 1000,
        "stopSequences": ["END"],
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
        "thinkingConfig": {"thinkingBudget": 200, "includeThoughts": True},
    }


@pytest.mark.parametrize(
    ("choice", "written"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "f"}},
            {"mode": "ANY", "allowedFunctionNames": ["f"]},
        ),
    ],
)
def test_tool_choice_is_translated(choice: Any, written: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    made = _written({"tools": tools, "tool_choice": choice})
    assert made["toolConfig"] == {"functionCallingConfig": written}
    assert made["tools"] == [{"functionDeclarations": [{"name": "f"}]}]


def test_media_go_inline_or_by_uri() -> None:
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": {"url": "https://h.example/i.webp?x=1"}},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
    ]
    parts = _written({"messages": [{"role": "user", "content": content}]})["contents"][0]["parts"]
    assert parts == [
        {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
        {"fileData": {"fileUri": "https://h.example/i.webp?x=1", "mimeType": "image/webp"}},
        {"inlineData": {"mimeType": "audio/mpeg", "data": "QUJD"}},
    ]


def test_f14_a_retry_delay_in_the_body_is_read() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [info]}}
    failure = gemini.failure(429, {}, orjson.dumps(body))
    assert failure.retry_after_ms == 34_500
