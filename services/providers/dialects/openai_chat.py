"""OpenAI's chat completions, as OpenAI and everyone who speaks like it writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson

from bourse.v1.events_pb2 import (
    UNIT_CACHE_READ,
    UNIT_CACHE_WRITE,
    UNIT_COMPLETION,
    UNIT_COMPLETION_AUDIO,
    UNIT_COMPLETION_IMAGE,
    UNIT_PROMPT,
    UNIT_PROMPT_AUDIO,
    UNIT_PROMPT_IMAGE,
    UNIT_PROMPT_VIDEO,
    UNIT_REASONING,
    UNIT_WEB_SEARCH,
)
from services.providers import counts, refusals, typed
from services.providers.call import AttemptFailed, Call, Chunk, Credential, Endpoint, Event, Usage
from services.providers.finish import finish_reason
from services.providers.messages import openai_body
from services.providers.presets import Preset
from services.providers.target import post
from services.providers.tool_calls import ToolCalls

FRAMING = "sse"


def request(call: Call, endpoint: Endpoint, credential: Credential) -> httpx.Request:
    """Write the call as the endpoint's preset wants it. Absent parameters stay absent."""
    return post(call, endpoint, credential, "/chat/completions", openai_body(call, endpoint))


def reading(preset: Preset) -> "_Answer":
    """Begin to read an answer, whole or streamed.

    The end mark `[DONE]` may be missing: a finish reason is enough. A finish reason may be missing:
    `[DONE]` is enough, if there was content. Neither is a cut answer.
    """
    return _Answer(preset)


def failure(status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed:
    """Say what an error response means, in any of the shapes its speakers use."""
    document = refusals.document_of(body, first_of_list=True)
    if document is None:
        return refusals.unreadable(status, headers, body)
    return _refused(document, status, headers)


def _refused(
    document: Mapping[str, Any], status: int = 0, headers: Mapping[str, str] | None = None
) -> AttemptFailed:
    """Map an error document: `{"error": {…}}`, `{"error": "…"}`, or the error's fields at the root.

    `status` 0: the error came inside a 200, and its own code counts.
    """
    error = document.get("error")
    fields: Mapping[str, Any] = error if isinstance(error, dict) else document
    text = _text(fields, "message", "msg", "detail", "error", "failed_generation")
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):
        text = f"{text}: {metadata['raw']}"
    code = _text(fields, "code", "status")
    named = status
    if not named:
        for key in ("status_code", "code", "status"):
            value = fields.get(key)
            if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
                named = int(value)
                break
    param = fields.get("param")
    return refusals.refused(
        named,
        code=code,
        kind=_text(fields, "type"),
        text=text,
        field=param if isinstance(param, str) else "",
        headers=headers,
        upstream_status=status or 200,
    )


def _text(fields: Mapping[str, Any], *keys: str) -> str:
    for key in keys:
        value = fields.get(key)
        if value is not None and value != "":
            return value if isinstance(value, str) else orjson.dumps(value).decode()
    return ""


class _Answer:
    """One answer being read: what of it depends on what came before."""

    def __init__(self, preset: Preset) -> None:
        self.done = False
        self._said_nothing = False  # whole, without content or reason: `end` says so
        self._preset = preset
        self._roles: set[int] = set()  # choices whose role was given out
        self._finished: set[int] = set()
        self._calls: dict[int, ToolCalls] = {}
        self._content = False
        self._began = False

    def read(self, event: Event) -> Sequence[Chunk]:
        """Return what one event adds."""
        if event.data == b"[DONE]":
            self.done = True
            return ()
        try:
            document = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            raise refusals.malformed("not JSON", event.data) from None
        if type(document) is not dict:
            raise refusals.malformed("not an object", event.data)
        self._began = True
        listed = document.get("choices")
        if event.name == "error" or document.get("object") == "error" or document.get("error"):
            raise _refused(document)
        if type(listed) is not list:
            return self._without_choices(event, document)

        choices: list[dict[str, Any]] = []
        finish = native = ""
        for choice in listed:
            made = self._plain(choice) or self._choice(choice)
            if made is None:
                continue
            choices.append(made)
            if made["finish_reason"] is not None:
                finish = made["finish_reason"]
                native = made["native_finish_reason"]
        reported = document.get("usage")
        if not reported and "x_groq" in document:
            groq = document["x_groq"]
            reported = groq.get("usage") if type(groq) is dict else None
        usage, refused = self._usage(reported) if reported else (None, False)
        if not choices and not reported:
            return ()
        chunk = Chunk(
            choices,
            usage,
            finish,
            native,
            typed.word(document.get("id")),
            typed.word(document.get("model")),
            typed.word(document.get("service_tier")),
            typed.word(document.get("system_fingerprint")),
            refused,
        )
        return (chunk,)

    def _usage(self, reported: Any) -> tuple[Usage | None, bool]:
        try:
            return usage_of(reported, self._preset), False
        except counts.Untrue:
            return None, True

    def _plain(self, choice: Any) -> dict[str, Any] | None:
        """Return a choice that only adds text, which most do: the same as `_choice`, sooner."""
        if type(choice) is not dict or 0 not in self._roles:
            return None
        delta = choice.get("delta")
        if type(delta) is not dict or len(delta) != 1:
            return None
        text = delta.get("content")
        if type(text) is not str or not text or choice.get("finish_reason"):
            return None
        if choice.get("index") != 0 or choice.get("logprobs") or choice.get("error"):
            return None
        self._content = True
        return {"index": 0, "delta": delta, "finish_reason": None}

    def end(self, cut: AttemptFailed | None = None) -> Sequence[Chunk]:
        """Judge how the answer ended; return a finish that it left out."""
        if cut is not None:
            raise cut
        if self._finished:
            return ()
        if self._began and not (self.done or self._said_nothing):
            raise refusals.cut()
        if not self._content:
            raise refusals.empty()
        choices = [_finish(index, index in self._calls) for index in sorted(self._roles)]
        return (Chunk(choices, finish_reason=choices[0]["finish_reason"]),)

    def _without_choices(self, event: Event, document: dict[str, Any]) -> Sequence[Chunk]:
        if event.name == "json":
            if any(key in document for key in ("message", "detail", "code", "msg")):
                raise _refused(document)
            raise refusals.malformed("no choices", event.data)
        if document.get("usage"):
            usage, refused = self._usage(document["usage"])
            return (Chunk([], usage, usage_refused=refused),)
        return ()  # a ping, a progress report

    def _choice(self, choice: Any) -> dict[str, Any] | None:
        try:
            index = choice.get("index")
            delta = choice.get("delta")
            reason = choice.get("finish_reason")
        except AttributeError:
            raise refusals.malformed("a choice that is no object") from None
        index = typed.index(index)
        error = choice.get("error")
        if error:
            raise _refused({"error": error})
        whole = False
        if delta is None:
            whole = "message" in choice
            delta = choice.get("message")
            if not whole and isinstance(choice.get("text"), str):
                delta = {"content": choice["text"]}
        out = self._delta(index, delta, whole)
        if out is None:
            raise refusals.malformed("a delta that is no object")

        made: dict[str, Any] = {"index": index, "delta": out, "finish_reason": None}
        if reason or whole:
            reason = typed.word(reason)
            native = typed.word(choice.get("native_finish_reason")) or reason
            if index not in self._finished and (reason or self._content):
                mapped = finish_reason(reason, native, index in self._calls)
                if mapped == "error":
                    raise refusals.refused(502, code=native, upstream_status=200)
                self._finished.add(index)
                made["finish_reason"] = mapped
                made["native_finish_reason"] = native
            elif whole and not self._content:
                self._said_nothing = True
        elif not out:
            return None
        logprobs = choice.get("logprobs")
        if logprobs and (made_logprobs := _logprobs(logprobs)):
            made["logprobs"] = made_logprobs
        if not out and made["finish_reason"] is None and "logprobs" not in made:
            return None
        return made

    def _delta(self, index: int, delta: Any, whole: bool) -> dict[str, Any] | None:
        out: dict[str, Any] = {}
        if type(delta) is not dict:
            return out if delta is None else None
        for key, value in delta.items():
            if not value:
                # `content: ""` beside a role is how streams begin; other empty values say nothing.
                if key == "content" and value == "" and index not in self._roles and not whole:
                    out[key] = value
                continue
            if key == "content":
                if type(value) is str:
                    out[key] = value
                    self._content = True
                elif type(value) is list:
                    self._parts(value, out)
                else:
                    raise refusals.malformed("content that is no text")
            elif key == "role":
                if index not in self._roles:
                    out[key] = typed.word(value) or "assistant"
            elif key in _TOOL_KEYS and (key != "function_call" or _is_called(value)):
                calls = self._calls.get(index)
                if calls is None:
                    calls = self._calls[index] = ToolCalls()
                if key == "function_call":  # the shape that came before tool calls: one, no id
                    value = [{"index": 0, "function": value}]
                made = calls.read(value if type(value) is list else [value])
                if made:
                    out["tool_calls"] = made
                    self._content = True
            elif key in _REASONING_KEYS:
                if type(value) is str and not delta.get(_REASONING_KEYS[key]):
                    out["reasoning"] = out.get("reasoning", "") + value
                    self._content = True
            elif key == "refusal":
                out[key] = typed.text(value)
                self._content = True
            elif key == "audio":
                if _is_audio(value):
                    out[key] = value
                    self._content = True
            elif key in _LISTS and (items := typed.objects(value)):
                out[key] = [_detail(item) for item in items] if key == _DETAILS else items
                self._content = True
        if out and index not in self._roles:
            self._roles.add(index)
            out.setdefault("role", "assistant")
        return out

    def _parts(self, parts: list[Any], out: dict[str, Any]) -> None:
        """Content as a list of parts: text, and thinking apart from it."""
        text, thoughts = [], []
        for part in parts:
            if type(part) is str:
                text.append(part)
            elif type(part) is dict and isinstance(part.get("text"), str):
                text.append(part["text"])
            elif type(part) is dict and part.get("thinking"):
                thinking = part["thinking"]
                if type(thinking) is str:
                    thinking = [{"text": thinking}]
                thoughts += [typed.text(piece.get("text")) for piece in typed.objects(thinking)]
        if any(text):
            out["content"] = "".join(text)
            self._content = True
        if any(thoughts):
            out["reasoning"] = out.get("reasoning", "") + "".join(thoughts)
            self._content = True


_TOOL_KEYS = frozenset({"tool_calls", "tool_call", "function_call"})
# One of these is read: the value is what silences the key, so that nobody is heard twice.
_REASONING_KEYS: Mapping[str, str] = {"reasoning": "", "reasoning_content": "reasoning"}
_DETAILS = "reasoning_details"
_LISTS = frozenset({_DETAILS, "annotations", "images"})
_DETAIL_TEXTS = frozenset({"type", "text", "summary", "data", "signature", "id", "format"})


def _detail(detail: dict[str, Any]) -> dict[str, Any]:
    """A piece of reasoning, without those of its fields that cannot be joined with others."""
    return {
        key: value
        for key, value in detail.items()
        if value is None
        or (type(value) is str if key in _DETAIL_TEXTS else key != "index" or type(value) is int)
    }


def _logprobs(logprobs: Any) -> dict[str, Any]:
    fields = logprobs if type(logprobs) is dict else {}
    listed = {key: typed.objects(fields.get(key)) for key in ("content", "refusal")}
    return {key: value or None for key, value in listed.items()} if any(listed.values()) else {}


def _is_called(value: Any) -> bool:
    return type(value) is dict and bool(value.get("name") or value.get("arguments"))


def _is_audio(value: Any) -> bool:
    return type(value) is dict and any(value.get(key) for key in ("data", "transcript", "id"))


def _finish(index: int, has_tool_calls: bool) -> dict[str, Any]:
    return {
        "index": index,
        "delta": {},
        "finish_reason": "tool_calls" if has_tool_calls else "stop",
        "native_finish_reason": "",
    }


def usage_of(reported: Any, preset: Preset) -> Usage | None:
    """Return disjoint counts of a `usage` object, None where it has none. Raise counts.Untrue.

    The prompt includes what was read from and written to a cache, and media. The completion
    includes reasoning, unless the total (or, where there is none, the preset) says otherwise.
    """
    if type(reported) is not dict:
        return None
    prompt = counts.count(reported, "prompt_tokens", "input_tokens")
    completion = counts.count(reported, "completion_tokens", "output_tokens")
    total = counts.count(reported, "total_tokens")
    of_prompt = _details(reported, "prompt_tokens_details", "input_tokens_details")
    of_completion = _details(reported, "completion_tokens_details", "output_tokens_details")
    cached = written = audio = image = video = reasoning = audio_out = image_out = None
    if of_prompt:
        cached = counts.count(of_prompt, "cached_tokens")
        written = counts.count(of_prompt, "cache_write_tokens", "cache_creation_tokens")
        audio = counts.count(of_prompt, "audio_tokens")
        image = counts.count(of_prompt, "image_tokens")
        video = counts.count(of_prompt, "video_tokens")
    if cached is None:
        cached = counts.count(
            reported, "prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens"
        )
    if of_completion:
        reasoning = counts.count(of_completion, "reasoning_tokens")
        audio_out = counts.count(of_completion, "audio_tokens")
        image_out = counts.count(of_completion, "image_tokens")
    if reasoning is None:
        reasoning = counts.count(reported, "reasoning_tokens")
    of_tools = _details(reported, "server_tool_use_details", "server_tool_use")
    searches = counts.count(of_tools, "web_search_requests") if of_tools else None
    if searches is None:
        searches = counts.count(reported, "num_search_queries")
    if prompt is None and completion is None:
        return None

    made: dict[int, int] = {}
    if prompt is not None:
        counts.split(
            made,
            prompt,
            UNIT_PROMPT,
            (
                (UNIT_CACHE_READ, cached),
                (UNIT_CACHE_WRITE, written),
                (UNIT_PROMPT_AUDIO, audio),
                (UNIT_PROMPT_IMAGE, image),
                (UNIT_PROMPT_VIDEO, video),
            ),
        )
    if completion is not None:
        outside = _reasoning_outside(prompt or 0, completion, reasoning or 0, total, preset)
        if outside:
            made[UNIT_REASONING] = outside
            reasoning = 0
        counts.split(
            made,
            completion,
            UNIT_COMPLETION,
            (
                (UNIT_REASONING, reasoning),
                (UNIT_COMPLETION_AUDIO, audio_out),
                (UNIT_COMPLETION_IMAGE, image_out),
            ),
        )
    if searches:
        made[UNIT_WEB_SEARCH] = searches
    return Usage(made)


def _reasoning_outside(
    prompt: int, completion: int, reasoning: int, total: int | None, preset: Preset
) -> int:
    """Return how many reasoning tokens the completion does not hold."""
    if total is None or not total:
        return reasoning if preset.reasoning_outside_completion else 0
    beyond = total - prompt - completion
    if reasoning and beyond == reasoning:
        return reasoning
    if preset.total_holds_hidden_reasoning and beyond > 0:
        return beyond
    return 0


def _details(reported: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        value = reported.get(key)
        if type(value) is dict:
            return value
    return {}
