"""What the sandbox reads and writes: the bytes of OpenAI, Anthropic and Gemini, as they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import orjson

_CREATED = 1_735_689_600
"""Answers are deterministic, their time included."""


class BadRequest(ValueError):
    """What the real API refuses with 400, and in its words."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, in no dialect yet."""

    id: str
    model: str
    pieces: list[str]
    calls: list[tuple[str, str, str]]  # id, name, arguments as JSON
    cut: bool  # by max_tokens
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A call, in no dialect any more."""

    model: str
    text: str
    prompt_bytes: int
    tools: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    max_tokens: int = 0
    stream: bool = False
    forced_tool: str = ""
    has_results: bool = False


class Wire(Protocol):
    """One dialect, from the upstream's side."""

    def read(self, url: httpx.URL, body: dict[str, Any]) -> Asked: ...

    def whole(self, said: Said) -> bytes: ...

    def stream(self, said: Said) -> Iterator[bytes]: ...

    def error(self, status: int, message: str) -> bytes: ...


class OpenAi:
    def read(self, url: httpx.URL, body: dict[str, Any]) -> Asked:
        tools = [
            (tool["function"]["name"], tool["function"].get("parameters") or {})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ]
        choice = body.get("tool_choice")
        form = body.get("response_format") or {}
        schema = None
        if form.get("type") == "json_schema":
            schema = form["json_schema"].get("schema") or {}
        elif form.get("type") == "json_object":
            schema = {"type": "object"}
        messages = body["messages"]
        if not messages:
            raise BadRequest(
                "Invalid 'messages': empty array. Expected an array of minimum length 1"
            )
        return Asked(
            model=body["model"],
            text=_text(messages[-1].get("content")),
            prompt_bytes=len(orjson.dumps(messages)),
            tools=[] if choice == "none" else tools,
            schema=schema,
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 0,
            stream=bool(body.get("stream")),
            forced_tool=choice["function"]["name"] if isinstance(choice, dict) else "",
            has_results=messages[-1].get("role") == "tool",
        )

    def whole(self, said: Said) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if said.calls else "".join(said.pieces),
            "refusal": None,
        }
        if said.calls:
            message["tool_calls"] = [_openai_call(*call) for call in said.calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": _openai_finish(said),
        }
        return orjson.dumps(
            {
                "id": f"chatcmpl-{said.id}",
                "object": "chat.completion",
                "created": _CREATED,
                "model": said.model,
                "choices": [choice],
                "usage": _openai_usage(said),
                "system_fingerprint": "fp_sandbox",
            }
        )

    def stream(self, said: Said) -> Iterator[bytes]:
        yield self._chunk(said, {"role": "assistant", "content": "", "refusal": None})
        for piece in said.pieces:
            yield self._chunk(said, {"content": piece})
        for index, (id_, name, arguments) in enumerate(said.calls):
            opening = {"index": index, **_openai_call(id_, name, "")}
            yield self._chunk(said, {"tool_calls": [opening]})
            fragment = {"index": index, "function": {"arguments": arguments}}
            yield self._chunk(said, {"tool_calls": [fragment]})
        yield self._chunk(said, {}, _openai_finish(said))
        yield self._chunk(said, None, None, _openai_usage(said))
        yield b"data: [DONE]\n\n"

    def error(self, status: int, message: str) -> bytes:
        fields = {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        return orjson.dumps({"error": fields})

    def _chunk(
        self,
        said: Said,
        delta: dict[str, Any] | None,
        finish: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        choices = []
        if delta is not None:
            choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        document = {
            "id": f"chatcmpl-{said.id}",
            "object": "chat.completion.chunk",
            "created": _CREATED,
            "model": said.model,
            "service_tier": "default",
            "system_fingerprint": "fp_sandbox",
            "choices": choices,
            "usage": usage,
        }
        return b"data: " + orjson.dumps(document) + b"\n\n"


class Anthropic:
    def read(self, url: httpx.URL, body: dict[str, Any]) -> Asked:
        messages = body["messages"]
        if not messages:
            raise BadRequest("messages: at least one message is required")
        last = messages[-1].get("content")
        if not last:
            at = len(messages) - 1
            raise BadRequest(f"messages.{at}: user messages must have non-empty content")
        blocks = last if isinstance(last, list) else []
        results = [block for block in blocks if block.get("type") == "tool_result"]
        choice = body.get("tool_choice") or {}
        form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return Asked(
            model=body["model"],
            text=_text(results[-1].get("content") if results else last),
            prompt_bytes=len(orjson.dumps([body.get("system"), messages])),
            tools=[]
            if choice.get("type") == "none"
            else [
                (tool["name"], tool.get("input_schema") or {}) for tool in body.get("tools") or ()
            ],
            schema=form.get("schema") if form.get("type") == "json_schema" else None,
            max_tokens=body["max_tokens"],
            stream=bool(body.get("stream")),
            forced_tool=choice.get("name") or "",
            has_results=bool(results),
        )

    def whole(self, said: Said) -> bytes:
        return orjson.dumps(
            {
                **self._message(said),
                "content": self._blocks(said),
                "stop_reason": _anthropic_stop(said),
                "usage": _anthropic_usage(said, said.completion_tokens),
            }
        )

    def stream(self, said: Said) -> Iterator[bytes]:
        opening = {**self._message(said), "usage": _anthropic_usage(said, 1)}
        yield _named("message_start", {"message": opening})
        yield _named("ping", {})
        for index, block in enumerate(self._blocks(said)):
            if block["type"] == "text":
                begun: dict[str, Any] = {"type": "text", "text": ""}
                deltas = [{"type": "text_delta", "text": piece} for piece in said.pieces]
            else:
                begun = {**block, "input": {}}
                partial = orjson.dumps(block["input"]).decode()
                deltas = [{"type": "input_json_delta", "partial_json": partial}]
            yield _named("content_block_start", {"index": index, "content_block": begun})
            for delta in deltas:
                yield _named("content_block_delta", {"index": index, "delta": delta})
            yield _named("content_block_stop", {"index": index})
        ending = {
            "delta": {"stop_reason": _anthropic_stop(said), "stop_sequence": None},
            "usage": {"output_tokens": said.completion_tokens},
        }
        yield _named("message_delta", ending)
        yield _named("message_stop", {})

    def error(self, status: int, message: str) -> bytes:
        fields = {"type": "invalid_request_error", "message": message}
        return orjson.dumps({"type": "error", "error": fields})

    def _message(self, said: Said) -> dict[str, Any]:
        return {
            "id": f"msg_{said.id}",
            "type": "message",
            "role": "assistant",
            "model": said.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _blocks(self, said: Said) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if said.pieces:
            blocks.append({"type": "text", "text": "".join(said.pieces)})
        for id_, name, arguments in said.calls:
            made = f"toolu_{id_.removeprefix('call_')}"
            blocks.append(
                {"type": "tool_use", "id": made, "name": name, "input": orjson.loads(arguments)}
            )
        return blocks


class Gemini:
    def read(self, url: httpx.URL, body: dict[str, Any]) -> Asked:
        contents = body["contents"]
        if not contents:
            raise BadRequest("* GenerateContentRequest.contents: contents is not specified")
        parts = contents[-1]["parts"]
        if not parts:
            at = len(contents) - 1
            raise BadRequest(
                f"* GenerateContentRequest.contents[{at}].parts: contents.parts must not be empty."
            )
        results = [part for part in parts if "functionResponse" in part]
        config = body.get("generationConfig") or {}
        calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
        allowed = calling.get("allowedFunctionNames") or []
        tools = [
            (tool["name"], tool.get("parametersJsonSchema") or tool.get("parameters") or {})
            for group in body.get("tools") or ()
            for tool in group.get("functionDeclarations") or ()
        ]
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        if schema is None and config.get("responseMimeType") == "application/json":
            schema = {"type": "object"}
        text = "".join(part.get("text") or "" for part in parts)
        if results:
            text = orjson.dumps(results[-1]["functionResponse"].get("response")).decode()
        name, _, verb = url.path.rpartition("/")[2].partition(":")
        return Asked(
            model=name,
            text=text,
            prompt_bytes=len(orjson.dumps([body.get("systemInstruction"), contents])),
            tools=[] if calling.get("mode") == "NONE" else tools,
            schema=schema,
            max_tokens=config.get("maxOutputTokens") or 0,
            stream=verb.startswith("stream"),
            forced_tool=allowed[0] if len(allowed) == 1 else "",
            has_results=bool(results),
        )

    def whole(self, said: Said) -> bytes:
        parts: list[dict[str, Any]] = self._calls(said)
        if said.pieces:
            parts = [{"text": "".join(said.pieces)}, *parts]
        return self._document(said, parts, said.completion_tokens, end=True)

    def stream(self, said: Said) -> Iterator[bytes]:
        for count, piece in enumerate(said.pieces, 1):
            document = self._document(said, [{"text": piece}], count, end=False)
            yield b"data: " + document + b"\r\n\r\n"
        document = self._document(said, self._calls(said), said.completion_tokens, end=True)
        yield b"data: " + document + b"\r\n\r\n"

    def error(self, status: int, message: str) -> bytes:
        fields = {"code": status, "message": message, "status": "INVALID_ARGUMENT"}
        return orjson.dumps({"error": fields})

    def _calls(self, said: Said) -> list[dict[str, Any]]:
        return [
            {"functionCall": {"name": name, "args": orjson.loads(arguments)}}
            for _, name, arguments in said.calls
        ]

    def _document(
        self, said: Said, parts: list[dict[str, Any]], completion_tokens: int, *, end: bool
    ) -> bytes:
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": parts or [{"text": ""}]},
            "index": 0,
        }
        if end:
            candidate["finishReason"] = "MAX_TOKENS" if said.cut else "STOP"
        usage = {
            "promptTokenCount": said.prompt_tokens,
            "candidatesTokenCount": completion_tokens,
            "totalTokenCount": said.prompt_tokens + completion_tokens,
        }
        return orjson.dumps(
            {
                "candidates": [candidate],
                "usageMetadata": usage,
                "modelVersion": said.model,
                "responseId": said.id,
            }
        )


WIRES: Mapping[str, Wire] = {"openai": OpenAi(), "anthropic": Anthropic(), "gemini": Gemini()}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def _openai_call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _openai_finish(said: Said) -> str:
    if said.calls:
        return "tool_calls"
    return "length" if said.cut else "stop"


def _openai_usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "total_tokens": said.prompt_tokens + said.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _anthropic_stop(said: Said) -> str:
    if said.calls:
        return "tool_use"
    return "max_tokens" if said.cut else "end_turn"


def _anthropic_usage(said: Said, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": said.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _named(name: str, fields: dict[str, Any]) -> bytes:
    document = orjson.dumps({"type": name, **fields})
    return b"event: " + name.encode() + b"\ndata: " + document + b"\n\n"
