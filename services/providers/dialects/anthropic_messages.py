"""Anthropic's Messages API, also on Azure and by those who copy it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import orjson

from bourse.v1.events_pb2 import Unit
from services.providers import counts, refusals, typed
from services.providers.anthropic_body import anthropic_body
from services.providers.call import AttemptFailed, Call, Chunk, Credential, Endpoint, Event, Usage
from services.providers.finish import finish_reason
from services.providers.parts import ANTHROPIC_FORMAT
from services.providers.presets import Preset
from services.providers.target import post

FRAMING = "sse"
VERSION = "2023-06-01"


def request(call: Call, endpoint: Endpoint, credential: Credential) -> httpx.Request:
    """Write the call. Raise AttemptFailed (400) naming a part that Claude cannot be given."""
    headers = [("anthropic-version", VERSION)]
    beta = call.headers.get("anthropic-beta")
    if beta:
        headers.append(("anthropic-beta", beta))
    return post(
        call,
        endpoint,
        credential,
        "/v1/messages",
        anthropic_body(call, endpoint),
        more_headers=tuple(headers),
    )


def reading(preset: Preset) -> "_Answer":
    """Begin to read an answer. A stop reason or `message_stop` ends it properly."""
    return _Answer()


def failure(status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed:
    """Say what an error response means."""
    document = refusals.document_of(body)
    if document is None:
        return refusals.unreadable(status, headers, body)
    return _refused(document, status, headers)


def _refused(
    document: Mapping[str, Any], status: int = 0, headers: Mapping[str, str] | None = None
) -> AttemptFailed:
    error = document.get("error")
    fields = error if isinstance(error, dict) else document
    text = fields.get("message") or (error if isinstance(error, str) else "")
    kind = fields.get("type") or ""
    return refusals.refused(
        status,
        kind=str(kind),
        code=str(fields.get("code") or ""),
        text=str(text),
        headers=headers,
        upstream_status=status or 200,
    )


class _Answer:
    """One answer being read: its open blocks, its tool calls and what it reported so far."""

    def __init__(self) -> None:
        self.done = False
        self._first = True
        self._began = False
        self._finished = False
        self._blocks: dict[int, _Block] = {}
        self._tool_calls = 0
        self._details = 0
        self._usage: dict[str, Any] = {}
        self._id = self._model = self._service_tier = ""

    def read(self, event: Event) -> Iterator[Chunk]:
        """Yield what one event adds."""
        try:
            document = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise refusals.malformed("not JSON", event.data) from None
        if type(document) is not dict:
            raise refusals.malformed("not an object", event.data)
        self._began = True
        kind = document.get("type") or event.name
        if kind == "json" and type(document.get("content")) is list:
            kind = "message"
        if kind == "content_block_delta":
            block = self._blocks.get(document.get("index", 0))
            delta = document.get("delta")
            if type(delta) is dict:
                yield from self._delta(block or _Block(), delta)
        elif kind == "content_block_start":
            yield from self._start(document)
        elif kind == "content_block_stop":
            yield from self._stop(self._blocks.pop(document.get("index", 0), None))
        elif kind == "message_start":
            yield self._begin(document.get("message") or {})
        elif kind == "message_delta":
            for index in list(self._blocks):  # some never say that a block stops
                yield from self._stop(self._blocks.pop(index))
            delta = document.get("delta") or {}
            yield self._finish(delta.get("stop_reason"), document.get("usage"))
        elif kind == "message_stop":
            self.done = True
        elif kind == "message":
            yield from self._whole(document)
        elif kind == "error" or document.get("error"):
            raise _refused(document)
        elif event.name == "json":
            raise refusals.malformed("not a message", event.data)

    def end(self, cut: AttemptFailed | None = None) -> Sequence[Chunk]:
        """Judge how the answer ended."""
        if cut is not None:
            raise cut
        if self._finished:
            return ()
        if self._began and not self.done:
            raise refusals.cut()
        if self._first:  # no content came
            raise refusals.empty()
        return ()

    def _begin(self, message: dict[str, Any]) -> Chunk:
        self._id = typed.word(message.get("id"))
        self._model = typed.word(message.get("model"))
        return self._report(Chunk([]), message.get("usage"))

    def _finish(self, reason: Any, usage: Any) -> Chunk:
        chunk = Chunk([])
        reason = typed.word(reason)
        if reason and not self._finished:
            self._finished = True
            chunk.finish_reason = finish_reason(reason, has_tool_calls=self._tool_calls > 0)
            if chunk.finish_reason == "error":
                raise refusals.refused(502, code=reason, upstream_status=200)
            chunk.native_finish_reason = reason
            chunk.choices = [
                {
                    "index": 0,
                    "delta": {},
                    "finish_reason": chunk.finish_reason,
                    "native_finish_reason": reason,
                }
            ]
        return self._report(chunk, usage)

    def _report(self, chunk: Chunk, usage: Any) -> Chunk:
        """Add ids and the usage so far: every report repeats fields, and the last one wins."""
        if type(usage) is dict:
            self._usage.update({key: value for key, value in usage.items() if value is not None})
            self._service_tier = typed.word(usage.get("service_tier")) or self._service_tier
            try:
                chunk.usage = usage_of(self._usage)
            except counts.Untrue:
                chunk.usage_refused = True
        chunk.upstream_id = self._id
        chunk.model = self._model
        chunk.service_tier = self._service_tier
        return chunk

    def _whole(self, message: dict[str, Any]) -> Iterator[Chunk]:
        """A reply that did not stream: the same blocks, each at once, as one chunk."""
        delta: dict[str, Any] = {"role": "assistant"}
        for block in message.get("content") or ():
            if type(block) is not dict:
                raise refusals.malformed("a content block that is no object")
            for name, value in self._block(block).items():
                delta[name] = delta[name] + value if name in delta else value
        self._begin(message)
        self._first = False
        chunk = self._finish(message.get("stop_reason"), message.get("usage"))
        finish: dict[str, Any] = chunk.choices[0] if chunk.choices else {"finish_reason": None}
        chunk.choices = [{**finish, "index": 0, "delta": delta}]
        self.done = True
        if not self._finished and len(delta) > 1:
            # Content without a reason: it ended well.
            chunk.finish_reason = "tool_calls" if self._tool_calls else "stop"
            chunk.choices[0].update(finish_reason=chunk.finish_reason, native_finish_reason="")
            self._finished = True
        self._first = len(delta) == 1
        yield chunk

    def _block(self, block: dict[str, Any]) -> dict[str, Any]:
        """Return the delta that a complete block is."""
        kind = block.get("type")
        if kind == "text":
            text = typed.text(block.get("text"))
            delta: dict[str, Any] = {"content": text} if text else {}
            citations = [_citation(item) for item in block.get("citations") or ()]
            return {**delta, "annotations": citations} if citations else delta
        if kind == "thinking":
            thinking = typed.text(block.get("thinking"))
            detail = self._detail("reasoning.text", text=thinking)
            if block.get("signature"):
                detail["signature"] = typed.text(block["signature"])
            made: dict[str, Any] = {"reasoning_details": [detail]}
            if thinking:
                made["reasoning"] = thinking
            return made
        if kind == "redacted_thinking":
            detail = self._detail("reasoning.encrypted", data=typed.text(block.get("data")))
            return {"reasoning_details": [detail]}
        if kind == "tool_use":
            arguments = orjson.dumps(block.get("input") or {}).decode()
            return {"tool_calls": [self._tool_call(block, arguments)]}
        return {}  # tools that the provider ran itself, and what is not known yet

    def _start(self, document: dict[str, Any]) -> Iterator[Chunk]:
        content = document.get("content_block")
        if type(content) is not dict:
            raise refusals.malformed("a content block that is no object")
        block = self._blocks[document.get("index", 0)] = _Block(content.get("type") or "")
        if block.kind == "tool_use":
            block.tool_call = self._tool_calls
            block.input = content.get("input")
            yield self._content({"tool_calls": [self._tool_call(content, "")]})
        elif block.kind == "thinking":
            block.detail = self._details
            self._details += 1
            if content.get("thinking") or content.get("signature"):
                yield from self._delta(block, {"type": "thinking_delta", **content})
        elif block.kind in ("text", "redacted_thinking"):
            delta = self._block(content)
            if delta:
                yield self._content(delta)

    def _delta(self, block: "_Block", delta: dict[str, Any]) -> Iterator[Chunk]:
        kind = delta.get("type")
        if kind == "text_delta":
            if delta.get("text"):
                yield self._content({"content": typed.text(delta["text"])})
        elif kind == "input_json_delta":
            fragment = typed.text(delta.get("partial_json"))
            if fragment and block.kind == "tool_use":
                block.has_arguments = True
                yield self._content(
                    {
                        "tool_calls": [
                            {"index": block.tool_call, "function": {"arguments": fragment}}
                        ]
                    }
                )
        elif kind in ("thinking_delta", "signature_delta"):
            detail = {"type": "reasoning.text", "format": ANTHROPIC_FORMAT, "index": block.detail}
            made: dict[str, Any] = {"reasoning_details": [detail]}
            if delta.get("thinking"):
                made["reasoning"] = detail["text"] = typed.text(delta["thinking"])
            if delta.get("signature"):
                detail["signature"] = typed.text(delta["signature"])
            if len(detail) > 3:
                yield self._content(made)
        elif kind == "citations_delta" and type(delta.get("citation")) is dict:
            yield self._content({"annotations": [_citation(delta["citation"])]})

    def _stop(self, block: "_Block | None") -> Iterator[Chunk]:
        if block is not None and block.kind == "tool_use" and not block.has_arguments:
            # No fragment came: all of the arguments stood at the block's start, mostly `{}`.
            arguments = orjson.dumps(block.input or {}).decode()
            fragment = {"index": block.tool_call, "function": {"arguments": arguments}}
            yield self._content({"tool_calls": [fragment]})

    def _content(self, delta: dict[str, Any]) -> Chunk:
        if self._first:
            self._first = False
            delta["role"] = "assistant"
        return Chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def _tool_call(self, block: dict[str, Any], arguments: str) -> dict[str, Any]:
        index = self._tool_calls
        self._tool_calls += 1
        return {
            "index": index,
            "id": typed.word(block.get("id")),
            "type": "function",
            "function": {"name": typed.text(block.get("name")), "arguments": arguments},
        }

    def _detail(self, kind: str, **fields: str) -> dict[str, Any]:
        index = self._details
        self._details += 1
        return {"type": kind, **fields, "format": ANTHROPIC_FORMAT, "index": index}


class _Block:
    """A content block whose deltas are still coming."""

    __slots__ = ("detail", "has_arguments", "input", "kind", "tool_call")

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.tool_call = 0
        self.detail = 0
        self.has_arguments = False
        self.input: Any = None


def _citation(citation: Any) -> dict[str, Any]:
    fields = citation if type(citation) is dict else {}
    return {
        "type": "url_citation",
        "url_citation": {
            "url": typed.word(fields.get("url")),
            "title": typed.word(fields.get("title") or fields.get("document_title")),
            "content": typed.word(fields.get("cited_text")),
            "start_index": 0,
            "end_index": 0,
        },
    }


def usage_of(reported: Mapping[str, Any]) -> Usage | None:
    """Return disjoint counts of a `usage` object, None where it has none. Raise counts.Untrue.

    The input excludes what was read from and written to a cache. Thinking is within the output.
    """
    prompt = counts.count(reported, "input_tokens")
    completion = counts.count(reported, "output_tokens")
    read = counts.count(reported, "cache_read_input_tokens")
    written = counts.count(reported, "cache_creation_input_tokens")
    by_age = reported.get("cache_creation")
    by_age = by_age if type(by_age) is dict else {}
    hour = counts.count(by_age, "ephemeral_1h_input_tokens")
    short = counts.count(by_age, "ephemeral_5m_input_tokens")
    of_output = reported.get("output_tokens_details")
    thinking = counts.count(of_output if type(of_output) is dict else {}, "thinking_tokens")
    tools = reported.get("server_tool_use")
    searches = counts.count(tools if type(tools) is dict else {}, "web_search_requests")
    if prompt is None and completion is None:
        return None
    made: dict[int, int] = {}
    if prompt is not None:
        made[Unit.UNIT_PROMPT] = prompt
        if read:
            made[Unit.UNIT_CACHE_READ] = read
        if written is None:
            written = (hour or 0) + (short or 0)
        if written:
            counts.split(made, written, Unit.UNIT_CACHE_WRITE, ((Unit.UNIT_CACHE_WRITE_1H, hour),))
    if completion is not None:
        counts.split(made, completion, Unit.UNIT_COMPLETION, ((Unit.UNIT_REASONING, thinking),))
    if searches:
        made[Unit.UNIT_WEB_SEARCH] = searches
    return Usage(made)
