"""Whatever JSON an upstream answers with, chunks have the right types or the attempt fails."""

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bourse.v1.events_pb2 import AttemptFinished, PriceVersion
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.answer import Answer
from services.providers.call import AttemptFailed, Chunk
from services.providers.decoding import Decoder
from services.providers.endpoints import dialect_named, dialect_names
from services.providers.metering import Meter
from services.providers.presets import PLAIN
from tests.providers.worker import ask

TOKEN = {"token": "a", "logprob": -0.1, "bytes": [97]}
CITATION = {"type": "url_citation", "url_citation": {"url": "https://x.example/", "title": "t"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
THOUGHT = {"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0, "format": "f"}
OPENAI_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
    "server_tool_use": {"web_search_requests": 1},
}


def _openai(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "delta": delta,
        "finish_reason": finish,
        "native_finish_reason": finish,
        "logprobs": {"content": [{**TOKEN, "top_logprobs": [TOKEN]}], "refusal": None},
    }
    return {
        "id": "c1",
        "model": "m",
        "service_tier": "default",
        "system_fingerprint": "fp",
        "choices": [choice],
        **more,
    }


ANSWERS: dict[str, list[dict[str, Any]]] = {
    "openai_chat": [
        _openai({"role": "assistant", "content": ""}),
        _openai({"content": "Hello"}),
        _openai({"content": [{"type": "text", "text": "a"}, {"thinking": [{"text": "b"}]}]}),
        _openai({"reasoning": "hm", "reasoning_details": [THOUGHT]}),
        _openai({"refusal": "no", "audio": {"id": "a", "data": "AA", "transcript": "a"}}),
        _openai({"images": [IMAGE], "annotations": [CITATION]}),
        _openai(
            {
                "tool_calls": [
                    {
                        "index": 0,
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{"},
                    },
                    {"index": 1, "id": "call_2", "custom": {"name": "g", "input": "x"}},
                ]
            }
        ),
        _openai({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        _openai({"function_call": {"name": "h", "arguments": "{}"}}),
        _openai({}, "tool_calls", usage=OPENAI_USAGE, x_groq={"usage": OPENAI_USAGE}),
        {"id": "c1", "choices": [], "usage": OPENAI_USAGE},
    ],
    "anthropic_messages": [
        {
            "type": "message_start",
            "message": {
                "id": "m1",
                "model": "m",
                "usage": {"input_tokens": 9, "output_tokens": 1, "service_tier": "standard"},
            },
        },
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "h", "signature": "s"},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "thinking_delta", "thinking": "m"},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "signature_delta", "signature": "s"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {
                "type": "text",
                "text": "a",
                "citations": [{"url": "https://x.example/", "title": "t", "cited_text": "c"}],
            },
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "text_delta", "text": "Hello"},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "citations_delta", "citation": {"url": "u", "title": "t"}},
        },
        {
            "type": "content_block_start",
            "index": 2,
            "content_block": {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 2,
            "delta": {"type": "input_json_delta", "partial_json": "{}"},
        },
        {
            "type": "content_block_start",
            "index": 3,
            "content_block": {"type": "redacted_thinking", "data": "d"},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {
                "output_tokens": 7,
                "cache_creation": {"ephemeral_1h_input_tokens": 1},
                "server_tool_use": {"web_search_requests": 1},
            },
        },
        {"type": "message_stop"},
    ],
    "gemini": [
        {
            "responseId": "r1",
            "modelVersion": "m",
            "candidates": [
                {
                    "index": 0,
                    "content": {
                        "role": "model",
                        "parts": [
                            {"text": "hm", "thought": True},
                            {"text": "Hello", "thoughtSignature": "s"},
                            {"functionCall": {"name": "f", "args": {"a": 1}, "id": "c1"}},
                            {"inlineData": {"mimeType": "image/png", "data": "AA"}},
                            {"inlineData": {"mimeType": "audio/wav", "data": "AA"}},
                        ],
                    },
                    "groundingMetadata": {
                        "webSearchQueries": ["q"],
                        "groundingChunks": [{"web": {"uri": "https://x.example/", "title": "t"}}],
                    },
                    "logprobsResult": {
                        "chosenCandidates": [{"token": "a", "logProbability": -0.1}],
                        "topCandidates": [{"candidates": [{"token": "a"}]}],
                    },
                }
            ],
        },
        {
            "candidates": [{"index": 0, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": 9,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 2,
                "cachedContentTokenCount": 1,
                "serviceTier": "standard",
                "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
            },
        },
    ],
}

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 5, -1, 2**63, 2**64 - 1, 10**30, 1.5, 1e300]),
    st.sampled_from(["", "x", "\0", "assistant", [], [5], [[]], [None], {}, {"a": 5}, [{"a": []}]]),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _read(name: str, documents: list[Any]) -> list[Chunk]:
    """The chunks of these documents, as far as they come; each as the answer takes it."""
    decoder = Decoder("text/event-stream", dialect_named(name).reading(PLAIN[name]))
    meter = Meter(ask(), PriceVersion(), 0, 0.25, 0.25)
    meter.answered = True
    answer = Answer(AttemptFacts(), AttemptFinished())
    chunks = []
    try:
        for document in documents:
            text = orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)
            for chunk in decoder.feed(b"data: " + text + b"\n\n"):
                answer.take(chunk, meter)
                chunks.append(chunk)
            if decoder.done:
                break
        else:
            for chunk in decoder.end():
                answer.take(chunk, meter)
                chunks.append(chunk)
    except AttemptFailed:
        pass
    meter.counts()
    return chunks


def _check(chunk: Chunk) -> None:
    for word in (
        chunk.finish_reason,
        chunk.native_finish_reason,
        chunk.upstream_id,
        chunk.model,
        chunk.service_tier,
        chunk.system_fingerprint,
    ):
        assert type(word) is str
    if chunk.usage is not None:
        assert all(type(count) is int and count >= 0 for count in chunk.usage.counts.values())
    orjson.dumps(chunk.choices)
    for choice in chunk.choices:
        assert type(choice["index"]) is int
        assert 0 <= choice["index"] < 128
        reason = choice["finish_reason"]
        assert reason in (None, "stop", "length", "tool_calls", "content_filter")
        assert type(choice.get("native_finish_reason", "")) is str
        logprobs = choice.get("logprobs") or {}
        for tokens in logprobs.values():
            assert tokens is None or all(type(token) is dict for token in tokens)
        for key, value in choice["delta"].items():
            _check_delta(key, value)


def _check_delta(key: str, value: Any) -> None:
    if key in ("content", "reasoning", "refusal", "role"):
        assert type(value) is str
    elif key == "audio":
        assert type(value) is dict
    else:
        assert key in ("tool_calls", "reasoning_details", "annotations", "images")
        assert type(value) is list
        assert all(type(item) is dict for item in value)
    if key == "reasoning_details":
        for detail in value:
            assert all(type(detail.get(name, "")) in (str, type(None)) for name in ("type", "text"))
    if key == "tool_calls":
        for call in value:
            assert type(call["index"]) is int
            assert type(call.get("id", "")) is str
            assert type(call.get("type", "")) is str
            for inner in (call.get("function") or {}, call.get("custom") or {}):
                assert all(type(text) is str for text in inner.values())


def test_every_dialect_has_an_answer_here_and_all_of_it_is_read() -> None:
    assert set(ANSWERS) == dialect_names()
    for name, documents in ANSWERS.items():
        chunks = _read(name, documents)
        for chunk in chunks:
            _check(chunk)
        assert any(chunk.finish_reason for chunk in chunks)


@pytest.mark.parametrize("name", sorted(ANSWERS))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_f08_values_of_any_type_anywhere_become_typed_chunks_or_a_failure(
    name: str, data: st.DataObject
) -> None:
    documents = copy.deepcopy(ANSWERS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(_places(documents))
        path = data.draw(st.sampled_from(places))
        inside: Any = documents
        for key in path[:-1]:
            inside = inside[key]
        odd = data.draw(ODD)
        # A whole number beyond 64 bits is not written by the writer here: as its digits then.
        inside[path[-1]] = float(odd) if odd == 10**30 else copy.deepcopy(odd)
    for chunk in _read(name, documents):
        _check(chunk)


@pytest.mark.parametrize("index", [b"1" + b"0" * 30, b"-1", b"2147483648", b'"x"', b"[]"])
def test_f08_an_index_of_no_choice_is_malformed(index: bytes) -> None:
    line = b'data: {"choices":[{"index":%b,"delta":{"content":"x"}}]}\n\n' % index
    decoder = Decoder(
        "text/event-stream", dialect_named("openai_chat").reading(PLAIN["openai_chat"])
    )
    with pytest.raises(AttemptFailed) as failure:
        list(decoder.feed(line))
    assert failure.value.reason == "malformed"
