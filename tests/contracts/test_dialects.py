"""One contract for every file in `services/providers/dialects/`.

A dialect that is added must be given a wire below; the suite then holds for it too. What it cannot
show is that the wires here are what providers write: that is what the recordings are for.
"""

import ast
import copy
import importlib
import inspect
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bourse.rating import COMPLETION_UNITS, PROMPT_UNITS
from bourse.v1.events_pb2 import Unit
from services.providers import dialects
from services.providers.call import AttemptFailed, Call, Chunk, Credential, Endpoint
from services.providers.presets import PLAIN, PRESETS
from tests import answers

FOLDER = Path(dialects.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))

TEXT = ["Grüße", " aus ", "Zürich 🏔️", "!"]
SSE = "text/event-stream"
JSON = "application/json"


def _sse(*documents: Any, names: bool = False, end: bytes = b"") -> bytes:
    lines = []
    for document in documents:
        name = f"event: {document['type']}\n" if names else ""
        lines.append(f"{name}data: {json.dumps(document, ensure_ascii=False)}\n\n".encode())
    return b"".join(lines) + end


class OpenAI:
    """Wires of `openai_chat`."""

    @staticmethod
    def piece(text: str) -> Any:
        return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}

    @classmethod
    def stream(
        cls, pieces: Iterable[str], finish: str | None, usage: Any, end: bool = True
    ) -> bytes:
        documents = [
            {"id": "c1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            *map(cls.piece, pieces),
        ]
        if finish is not None:
            documents.append(
                {"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
            )
        if usage is not None:
            documents.append({"id": "c1", "choices": [], "usage": usage})
        return _sse(*documents, end=b"data: [DONE]\n\n" if end else b"")

    @staticmethod
    def whole(text: str, finish: str | None, usage: Any) -> bytes:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return json.dumps({"id": "c1", "choices": [choice], "usage": usage}).encode()

    @staticmethod
    def usage(prompt: int, output: int) -> Any:
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
        }

    @staticmethod
    def tools(calls: list[tuple[str, dict[str, Any]]]) -> bytes:
        documents = []
        for index, (name, arguments) in enumerate(calls):
            text = json.dumps(arguments)
            for at, function in enumerate(
                ({"name": name, "arguments": ""}, {"arguments": text[:5]}, {"arguments": text[5:]})
            ):
                call = {"index": index, "function": function}
                if at == 0:
                    call |= {"id": f"call_{index}", "type": "function"}
                documents.append({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
        documents.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        return _sse(*documents, end=b"data: [DONE]\n\n")

    error = _sse({"error": {"message": "secret words", "code": "rate_limit_exceeded"}})
    stop, length, unknown = "stop", "length", "all_good"
    bad = "network_error"


class Anthropic:
    """Wires of `anthropic_messages`."""

    @staticmethod
    def stream(pieces: Iterable[str], finish: str | None, usage: Any, end: bool = True) -> bytes:
        usage = usage or {}
        start = {**usage, "output_tokens": 1} if usage else {}
        documents: list[Any] = [
            {"type": "message_start", "message": {"id": "c1", "model": "m", "usage": start}},
            {"type": "ping"},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
        ]
        for text in pieces:
            delta = {"type": "text_delta", "text": text}
            documents.append({"type": "content_block_delta", "index": 0, "delta": delta})
        if end:
            documents.append({"type": "content_block_stop", "index": 0})
        if finish is not None:
            documents.append(
                {"type": "message_delta", "delta": {"stop_reason": finish}, "usage": usage}
            )
        if end:
            documents.append({"type": "message_stop"})
        return _sse(*documents, names=True)

    @staticmethod
    def whole(text: str, finish: str | None, usage: Any) -> bytes:
        content = [{"type": "text", "text": text}] if text else []
        document = {"type": "message", "id": "c1", "content": content, "stop_reason": finish}
        return json.dumps({**document, "usage": usage}).encode()

    @staticmethod
    def usage(prompt: int, output: int) -> Any:
        return {"input_tokens": prompt, "output_tokens": output}

    @staticmethod
    def tools(calls: list[tuple[str, dict[str, Any]]]) -> bytes:
        documents: list[Any] = [{"type": "message_start", "message": {"id": "c1", "usage": {}}}]
        for index, (name, arguments) in enumerate(calls):
            block = {"type": "tool_use", "id": f"call_{index}", "name": name, "input": {}}
            documents.append(
                {"type": "content_block_start", "index": index, "content_block": block}
            )
            text = json.dumps(arguments) if arguments else ""
            for piece in (text[:5], text[5:]):
                delta = {"type": "input_json_delta", "partial_json": piece}
                documents.append({"type": "content_block_delta", "index": index, "delta": delta})
            documents.append({"type": "content_block_stop", "index": index})
        documents.append(
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}}
        )
        return _sse(*documents, {"type": "message_stop"}, names=True)

    error = _sse(
        {"type": "error", "error": {"type": "rate_limit_error", "message": "secret words"}},
        names=True,
    )
    stop, length, unknown = "end_turn", "max_tokens", "all_good"
    bad = "network_error"


class Gemini:
    """Wires of `gemini`."""

    @staticmethod
    def document(text: str, finish: str | None = None, usage: Any = None) -> Any:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}}
        if not text:
            candidate = {"content": {"role": "model"}}
        if finish is not None:
            candidate["finishReason"] = finish
        document = {"candidates": [candidate], "responseId": "c1", "modelVersion": "m"}
        return {**document, "usageMetadata": usage} if usage is not None else document

    @classmethod
    def stream(
        cls, pieces: Iterable[str], finish: str | None, usage: Any, end: bool = True
    ) -> bytes:
        documents = [cls.document(text) for text in pieces]
        if finish is not None or usage is not None:
            documents.append(cls.document("", finish, usage))
        return _sse(*documents)

    @classmethod
    def whole(cls, text: str, finish: str | None, usage: Any) -> bytes:
        return json.dumps(cls.document(text, finish, usage)).encode()

    @staticmethod
    def usage(prompt: int, output: int) -> Any:
        return {
            "promptTokenCount": prompt,
            "candidatesTokenCount": output,
            "totalTokenCount": prompt + output,
        }

    @staticmethod
    def tools(calls: list[tuple[str, dict[str, Any]]]) -> bytes:
        parts = [{"functionCall": {"name": name, "args": args}} for name, args in calls]
        return _sse({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})

    error = _sse(
        {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "secret words"}}
    )
    stop, length, unknown = "STOP", "MAX_TOKENS", "ALL_GOOD"
    bad = "MALFORMED_FUNCTION_CALL"


WIRES: Mapping[str, Any] = {
    "openai_chat": OpenAI,
    "anthropic_messages": Anthropic,
    "gemini": Gemini,
}

each = pytest.mark.parametrize("name", NAMES)


def _dialect(name: str) -> Any:
    return importlib.import_module(f"services.providers.dialects.{name}")


async def _read(name: str, pieces: Iterable[bytes], content_type: str = SSE) -> list[Chunk]:
    return answers.of_reads(_dialect(name), content_type, pieces, PLAIN[name])


def _text(chunks: Iterable[Chunk]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.choices
    )


def _finishes(chunks: Iterable[Chunk]) -> list[str]:
    reasons = (choice["finish_reason"] for chunk in chunks for choice in chunk.choices)
    return [reason for reason in reasons if reason is not None]


def _calls(chunks: Iterable[Chunk]) -> list[tuple[str, str, Any]]:
    made: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            for part in choice["delta"].get("tool_calls") or ():
                call = made.setdefault(part["index"], ["", "", ""])
                call[0] += part.get("id") or ""
                call[1] += part["function"].get("name") or ""
                call[2] += part["function"].get("arguments") or ""
    return [(made[at][0], made[at][1], json.loads(made[at][2])) for at in sorted(made)]


def _usage(chunks: list[Chunk]) -> dict[int, int] | None:
    reported = [chunk.usage for chunk in chunks if chunk.usage is not None]
    return reported[-1].counts if reported else None


def _endpoint(name: str, **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "id": "e1",
        "base_url": "https://upstream.example/v1",
        "dialect": name,
        "preset": PLAIN[name],
        "upstream_model": "their-model",
    }
    return Endpoint(**{**fields, **changes})


# --- the file itself ---------------------------------------------------------------------------


def test_every_dialect_has_a_wire_and_a_plain_preset() -> None:
    assert set(NAMES) == set(WIRES) == set(PLAIN)
    assert {row.dialect for row in PRESETS.values()} <= set(NAMES)


@each
def test_a_dialect_is_three_functions_with_the_shared_signature(name: str) -> None:
    module = _dialect(name)
    assert module.FRAMING in ("sse", "event_stream", "ndjson", "json")
    signatures = {
        "request": ["call", "endpoint", "credential"],
        "reading": ["preset"],
        "failure": ["status", "headers", "body"],
    }
    for function, parameters in signatures.items():
        assert list(inspect.signature(getattr(module, function)).parameters) == parameters


@each
def test_a_dialect_has_no_client_log_or_clock(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0] for module in imported}
    assert not roots & {
        "asyncio",
        "logging",
        "time",
        "datetime",
        "random",
        "os",
        "socket",
        "aiohttp",
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "httpx"
    }
    assert used <= {"Request"}


# --- request -----------------------------------------------------------------------------------

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLS: Mapping[str, dict[str, Any]] = {
    "text": {"messages": [{"role": "user", "content": "hello"}]},
    "system": {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "be kind"}]},
            {"role": "user", "content": "hello"},
        ]
    },
    "image": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is it?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
                    {"type": "image_url", "image_url": {"url": "https://h.example/i.jpg"}},
                ],
            }
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
    },
    "limits": {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4000,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
    },
    "thinking": {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4000,
        "reasoning": {"effort": "high"},
    },
    "schema": {
        "messages": [{"role": "user", "content": "hello"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object", "properties": {}}},
        },
    },
}


@each
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_is_written_as_a_json_post_and_left_as_it_was(
    name: str, kind: str, streamed: bool
) -> None:
    body = copy.deepcopy(CALLS[kind])
    request = _dialect(name).request(Call(body, streamed), _endpoint(name), Credential())
    assert body == CALLS[kind], "the caller's body is not the dialect's to change"
    assert isinstance(request, httpx.Request)
    assert request.method == "POST"
    assert str(request.url).startswith("https://upstream.example/v1/")
    assert request.headers["content-type"] == JSON
    assert (
        "their-model" in str(request.url) or orjson.loads(request.content)["model"] == "their-model"
    )
    assert isinstance(orjson.loads(request.content), dict)


@each
def test_what_the_caller_left_out_stays_out(name: str) -> None:
    request = _dialect(name).request(Call(CALLS["text"]), _endpoint(name), Credential())
    text = request.content.decode()
    for word in ("temperature", "top_p", "topP", "seed", "stop", "penalty", "tools", "null"):
        assert word not in text.replace("max_tokens", "")


@each
def test_parameters_an_endpoint_does_not_support_are_dropped(name: str) -> None:
    endpoint = _endpoint(name, supported_parameters=frozenset({"max_tokens", "top_p"}))
    body = CALLS["limits"] | {"seed": 1, "tools": [TOOL]}
    text = _dialect(name).request(Call(body), endpoint, Credential()).content.decode()
    assert "0.9" in text
    assert "4000" in text
    for word in ("0.5", "END", "seed", "weather"):
        assert word not in text


@each
@pytest.mark.parametrize(
    ("credential", "header", "value"),
    [
        (Credential("bearer", "", "s3cret"), "authorization", "Bearer s3cret"),
        (Credential("header", "X-Own", "s3cret"), "x-own", "s3cret"),
    ],
)
def test_the_credential_is_in_its_header_and_nowhere_else(
    name: str, credential: Credential, header: str, value: str
) -> None:
    request = _dialect(name).request(Call(CALLS["text"]), _endpoint(name), credential)
    assert request.headers[header] == value
    assert sum("s3cret" in one for one in request.headers.values()) == 1
    assert "s3cret" not in str(request.url)
    assert b"s3cret" not in request.content
    assert "s3cret" not in repr(credential)


@each
def test_two_credentials_of_one_endpoint_are_not_confused(name: str) -> None:
    sent = [
        _dialect(name)
        .request(Call(CALLS["text"]), _endpoint(name), Credential("bearer", "", secret))
        .headers["authorization"]
        for secret in ("one", "two", "one")
    ]
    assert sent == ["Bearer one", "Bearer two", "Bearer one"]


@each
def test_the_api_version_in_a_base_url_stays(name: str) -> None:
    endpoint = _endpoint(name, base_url="https://h.example/x?api-version=2")
    url = _dialect(name).request(Call(CALLS["text"]), endpoint, Credential()).url
    assert url.params["api-version"] == "2"
    assert url.path.startswith("/x/")


@each
def test_a_part_of_unknown_kind_is_refused_by_name_or_passed_on(name: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "hologram", "hologram": {}}]}]}
    endpoint = _endpoint(name)
    if name == "openai_chat":  # it knows no kinds: what a provider takes is the provider's to say
        assert b"hologram" in _dialect(name).request(Call(body), endpoint, Credential()).content
        return
    with pytest.raises(AttemptFailed) as failed:
        _dialect(name).request(Call(body), endpoint, Credential())
    failure = failed.value
    assert (failure.status, failure.error_type) == (400, "invalid_request")
    assert failure.field == "messages[0].content[0]"
    assert failure.another_may_help
    assert not failure.counts_against_uptime


# --- chunks ------------------------------------------------------------------------------------


@each
async def test_a_streamed_answer_gives_text_finish_and_usage(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.stream(TEXT, wire.stop, wire.usage(11, 7))])
    assert _text(chunks) == "".join(TEXT)
    assert _finishes(chunks) == ["stop"]
    assert _usage(chunks) == {Unit.UNIT_PROMPT: 11, Unit.UNIT_COMPLETION: 7}
    assert {chunk.upstream_id for chunk in chunks if chunk.upstream_id} == {"c1"}
    finish = next(chunk for chunk in chunks if chunk.finish_reason)
    assert (finish.finish_reason, finish.native_finish_reason) == ("stop", wire.stop)
    assert not finish.has_content
    roles = [choice["delta"].get("role") for chunk in chunks for choice in chunk.choices]
    assert [role for role in roles if role] == ["assistant"]


@each
async def test_a_whole_answer_gives_what_its_stream_gives(name: str) -> None:
    wire = WIRES[name]
    text = "".join(TEXT)
    whole = await _read(name, [wire.whole(text, wire.length, wire.usage(11, 7))], JSON)
    stream = await _read(name, [wire.stream(TEXT, wire.length, wire.usage(11, 7))])
    assert _text(whole) == _text(stream) == text
    assert _finishes(whole) == _finishes(stream) == ["length"]
    assert _usage(whole) == _usage(stream)


@each
async def test_f19_an_answer_is_the_same_however_it_is_cut(name: str) -> None:
    wire = WIRES[name]
    body = wire.stream(TEXT, wire.stop, wire.usage(11, 7))
    whole = await _read(name, [body])
    draw = random.Random(3)
    forms = [body, body.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf: hello\n\n" + body]
    for form in forms:
        for step in (1, 2, 3, 7, 64):
            pieces = [form[at : at + step] for at in range(0, len(form), step)]
            assert await _read(name, pieces) == whole
        for _ in range(20):
            cuts = sorted(draw.sample(range(len(form)), 5))
            pieces = [form[a:b] for a, b in zip([0, *cuts], [*cuts, len(form)], strict=True)]
            assert await _read(name, pieces) == whole


@each
async def test_tool_calls_have_names_arguments_and_ids_of_their_own(name: str) -> None:
    calls = [("weather", {"city": "Bern"}), ("time", {}), ("weather", {"city": "Bern"})]
    chunks = await _read(name, [WIRES[name].tools(calls)])
    read = _calls(chunks)
    assert [(called, arguments) for _, called, arguments in read] == calls
    ids = [call_id for call_id, _, _ in read]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    assert _finishes(chunks) == ["tool_calls"]
    assert any(chunk.has_content for chunk in chunks)


@each
async def test_the_first_content_is_known_from_roles_and_pings(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.stream(["word"], wire.stop, wire.usage(1, 1))])
    with_content = [chunk for chunk in chunks if chunk.has_content]
    assert _text(with_content) == "word"
    assert len(with_content) == 1
    assert with_content[0].content_bytes == 4


@each
@pytest.mark.parametrize("before", [[], ["some", "text"]])
async def test_S8_f09_f10_an_error_inside_a_200_is_a_typed_failure(
    name: str, before: list[str]
) -> None:
    wire = WIRES[name]
    body = (wire.stream(before, None, None, end=False) if before else b"") + wire.error
    with pytest.raises(AttemptFailed) as failed:
        await _read(name, [body])
    failure = failed.value
    assert (failure.status, failure.error_type) == (429, "rate_limit_exceeded")
    assert failure.upstream_status == 200
    assert "secret" not in failure.message


@each
async def test_S8_a_finish_word_that_means_an_error_is_a_failure(name: str) -> None:
    wire = WIRES[name]
    with pytest.raises(AttemptFailed) as failed:
        await _read(name, [wire.stream(["text"], wire.bad, None)])
    assert failed.value.provider_code == wire.bad


@each
@pytest.mark.parametrize("pieces", [["some", "text"], []])
async def test_S7_f05_a_stream_without_an_end_is_cut(name: str, pieces: list[str]) -> None:
    wire = WIRES[name]
    with pytest.raises(AttemptFailed) as failed:
        await _read(name, [wire.stream(pieces, None, None, end=False)])
    assert failed.value.reason in ("cut", "empty")
    assert failed.value.another_may_help
    assert failed.value.counts_against_uptime


@each
async def test_f18_a_finish_reason_is_end_enough(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.stream(TEXT, wire.stop, None, end=False)])
    assert _finishes(chunks) == ["stop"]
    assert _text(chunks) == "".join(TEXT)


@each
async def test_f18_an_unknown_finish_reason_is_a_stop_with_the_providers_word(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.stream(TEXT, wire.unknown, None)])
    assert _finishes(chunks) == ["stop"]
    assert [c.native_finish_reason for c in chunks if c.finish_reason] == [wire.unknown]


@each
async def test_f12_an_answer_without_content_and_finish_is_empty(name: str) -> None:
    for body, content_type in ((WIRES[name].whole("", None, {}), JSON), (b"", SSE), (b"", JSON)):
        with pytest.raises(AttemptFailed) as failed:
            await _read(name, [body], content_type)
        assert failed.value.reason == "empty"


@each
@pytest.mark.parametrize(
    "body", [b"data: {not json}\n\n", b"data: [1, 2]\n\n", b'data: "text"\n\n', b"data: 7\n\n"]
)
async def test_f08_a_malformed_chunk_is_a_typed_failure(name: str, body: bytes) -> None:
    with pytest.raises(AttemptFailed) as failed:
        await _read(name, [WIRES[name].stream(["text"], None, None, end=False) + body])
    assert failed.value.reason == "malformed"
    assert failed.value.status == 502


@each
@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", b"<html><body>Bad gateway</body></html>"), ("text/plain", b"hello there you")],
)
async def test_f20_a_page_is_no_answer(name: str, content_type: str, body: bytes) -> None:
    with pytest.raises(AttemptFailed) as failed:
        await _read(name, [body], content_type)
    assert failed.value.reason == "malformed"


@each
async def test_f20_an_endless_line_is_given_up(name: str) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b"data: {"
        while True:
            sent += 65536
            yield b"x" * 65536

    with pytest.raises(AttemptFailed) as failed:
        await _read(name, endless())
    assert failed.value.reason == "malformed"
    assert sent <= 2 * 1024 * 1024


# --- usage -------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("pair", [(-1, 5), (5, -1), (10**12, 1), ("7", 1), (1.5, 1), (True, 1)])
async def test_M10_f17_usage_that_cannot_be_true_is_taken_as_absent(
    name: str, pair: tuple[Any, Any]
) -> None:
    wire = WIRES[name]
    usage = wire.usage(1, 1)
    for key, value in zip(list(usage)[:2], pair, strict=True):
        usage[key] = value
    chunks = await _read(name, [wire.whole("text", wire.stop, usage)], JSON)
    assert _usage(chunks) is None
    assert any(chunk.usage_refused for chunk in chunks)
    assert _text(chunks) == "text"


@each
async def test_f17_reported_zeros_stay_zero(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.whole("text", wire.stop, wire.usage(0, 0))], JSON)
    assert _usage(chunks) == {Unit.UNIT_PROMPT: 0, Unit.UNIT_COMPLETION: 0}


@each
async def test_f17_usage_that_is_absent_is_absent(name: str) -> None:
    wire = WIRES[name]
    chunks = await _read(name, [wire.stream(TEXT, wire.stop, None)])
    assert _usage(chunks) is None
    assert not any(chunk.usage_refused for chunk in chunks)


@each
async def test_f17_of_repeated_usage_the_last_wins_and_nothing_is_added(name: str) -> None:
    wire = WIRES[name]
    early = wire.stream(["a"], None, wire.usage(11, 1), end=False)
    late = wire.stream(["b"], wire.stop, wire.usage(11, 7))
    chunks = await _read(name, [early + late])
    counts = _usage(chunks)
    assert counts is not None
    assert sum(counts.get(unit, 0) for unit in PROMPT_UNITS) == 11
    assert sum(counts.get(unit, 0) for unit in COMPLETION_UNITS) == 7


# --- failure -----------------------------------------------------------------------------------

#   upstream: answered as, type, another endpoint, another model, against uptime
REFUSALS = {
    400: (400, "invalid_request", False, True, False),
    401: (502, "provider_unavailable", True, True, True),
    402: (502, "provider_unavailable", True, True, True),
    403: (502, "provider_unavailable", True, True, False),
    404: (404, "not_found", True, True, True),
    408: (504, "timeout", True, True, True),
    413: (413, "payload_too_large", False, True, False),
    422: (422, "unprocessable", False, True, False),
    429: (429, "rate_limit_exceeded", True, True, False),
    500: (502, "provider_unavailable", True, True, True),
    502: (502, "provider_unavailable", True, True, True),
    503: (503, "provider_unavailable", True, True, True),
    504: (504, "timeout", True, True, True),
    524: (504, "timeout", True, True, True),
    529: (529, "provider_overloaded", True, True, True),
    302: (502, "unmapped", True, True, True),
}
BODIES = {
    "an object": b'{"error": {"message": "secret words", "type": "x", "code": null}}',
    "a text": b'{"error": "secret words"}',
    "a page": b"<html>secret words</html>",
    "nothing": b"",
    "a list": b'[{"error": {"message": "secret words"}}]',
    "no error": b'{"detail": [{"msg": "secret words"}]}',
    "not UTF-8": b"\xff\xfesecret words",
    "odd types": b'{"error": {"message": {"a": 1}, "code": [1], "status": 7, "details": 3}}',
    "null": b"null",
}


@each
@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("shape", BODIES)
def test_f13_f15_every_status_has_its_meaning_whatever_the_body(
    name: str, status: int, shape: str
) -> None:
    failure = _dialect(name).failure(status, {}, BODIES[shape])
    assert (
        failure.status,
        failure.error_type,
        failure.another_may_help,
        failure.another_model_may_help,
        failure.counts_against_uptime,
    ) == REFUSALS[status]
    assert failure.upstream_status == status
    assert "secret" not in failure.message
    assert failure.retry_after_ms == 0


Say = Callable[[str], bytes]
SAYS: Mapping[str, Say] = {
    "openai_chat": lambda text: json.dumps({"error": {"message": text, "type": ""}}).encode(),
    "anthropic_messages": lambda text: json.dumps(
        {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    ).encode(),
    "gemini": lambda text: json.dumps(
        {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": text}}
    ).encode(),
}


@each
@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000",
    ],
)
def test_a_context_that_is_too_long_may_go_to_a_larger_endpoint(name: str, text: str) -> None:
    failure = _dialect(name).failure(400, {}, SAYS[name](text))
    assert (failure.status, failure.error_type) == (400, "context_length_exceeded")
    assert failure.another_may_help
    assert not failure.counts_against_uptime


@each
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "You have reached your specified API usage limits. usage limit reached"),
        (400, "Your credit balance is too low to access the API."),
        (403, "insufficient_quota"),
        (429, "You exceeded your current quota, please check your plan and billing details."),
    ],
)
def test_S12_f13_out_of_budget_in_any_status_is_the_providers_fault(
    name: str, status: int, text: str
) -> None:
    failure = _dialect(name).failure(status, {}, SAYS[name](text))
    assert (failure.status, failure.error_type) == (502, "provider_unavailable")
    assert failure.another_may_help
    assert failure.counts_against_uptime


@each
@pytest.mark.parametrize(
    "text",
    [
        "This model does not support assistant message prefill.",
        "The conversation must end with a user message.",
        "Expected last role User or Tool: the last message must be from the user",
    ],
)
def test_f21_a_refused_prefill_may_go_to_an_endpoint_that_takes_it(name: str, text: str) -> None:
    failure = _dialect(name).failure(400, {}, SAYS[name](text))
    assert (failure.status, failure.error_type) == (400, "invalid_request")
    assert failure.another_may_help
    assert not failure.counts_against_uptime


@each
@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (
            400,
            "max_tokens is too large: 9000. This model supports at most 4096",
            "max_tokens_exceeded",
        ),
        (
            400,
            "Your request was rejected as a result of our safety system",
            "content_policy_violation",
        ),
        (403, "Content violates usage guidelines", "content_policy_violation"),
        (400, "Timeout while downloading the image from the given url", "image_download_failed"),
        (400, "The server is overloaded", "provider_overloaded"),
        (400, "Rate limit reached for requests", "rate_limit_exceeded"),
        (400, "API key not valid. Please pass a valid API key.", "provider_unavailable"),
        (400, "User location is not supported for the API use.", "permission_denied"),
    ],
)
def test_f13_what_a_status_hides_is_read_in_the_words(
    name: str, status: int, text: str, expected: str
) -> None:
    assert _dialect(name).failure(status, {}, SAYS[name](text)).error_type == expected


@each
@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({"retry-after": "7"}, 7_000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1_500),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "999999999"}, 300_000),
        ({"retry-after": "1e999"}, 300_000),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "soon"}, 0),
        ({}, 0),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30_000,
        ),
        (
            {
                "retry-after": "Wed, 21 Oct 2026 07:00:00 GMT",
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            0,
        ),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 300_000),
    ],
)
def test_f14_retry_after_is_read_in_every_form_and_bounded(
    name: str, headers: dict[str, str], wait_ms: int
) -> None:
    assert _dialect(name).failure(429, headers, b"").retry_after_ms == wait_ms
