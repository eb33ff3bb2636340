"""Say what a recorded body holds, read straight from it and never through a dialect.

Deliberately plain and apart from the decoders: whole-body JSON, one pass, no shared code.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.recordings.reading import Record, raw


@dataclass
class ToolCall:
    id: str = ""
    name: str = ""
    arguments: str = ""

    def key(self) -> tuple[str, str, str]:
        """The call as it is compared: the arguments as JSON, the id only if one was recorded."""
        try:
            arguments = json.dumps(json.loads(self.arguments or "{}"), sort_keys=True)
        except ValueError:
            arguments = self.arguments
        return self.id, self.name, arguments


@dataclass
class Expected:
    """What must come out. `usage` maps a name to a count; an absent name was not recorded."""

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    failure: str = ""  # why a 2xx is no answer: error | empty


FINISH = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "BLOCKLIST": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
GEMINI_ERRORS = {"MALFORMED_FUNCTION_CALL"}


def expected(record: Record) -> Expected:
    """Return what a successful exchange of a known kind holds."""
    kind = record["kind"]
    if kind == "openai.chat":
        return _openai(_documents(record))
    if kind == "anthropic.messages":
        return _anthropic(_documents(record))
    if kind.startswith("gemini."):
        return _gemini(_documents(record))
    raise ValueError(kind)


def _documents(record: Record) -> list[Any]:
    body = record.get("body")
    if body is not None:
        return body if isinstance(body, list) else [body]
    lines = raw(record).decode().replace("\r\n", "\n").split("\n")
    return [
        json.loads(line[5:])
        for line in lines
        if line.startswith("data:") and line[5:].strip().startswith("{")
    ]


def _finished(made: Expected, word: str | None) -> Expected:
    """Map the recorded word; an empty or unknown one of a finished answer by what it holds."""
    has_calls = bool(made.tool_calls)
    made.finish_reason = FINISH.get(word or "") or ("tool_calls" if has_calls else "stop")
    return made


def _openai(documents: list[Any]) -> Expected:
    made = Expected()
    calls: dict[Any, ToolCall] = {}
    word: str | None = None
    other = ""  # reasoning and refusals: content, but not text
    for document in documents:
        if document.get("error"):
            made.failure = "error"
        usage = document.get("usage") or (document.get("x_groq") or {}).get("usage")
        if usage:
            made.usage = _openai_usage(usage)
        for choice in document.get("choices") or []:
            if choice.get("error"):
                made.failure = "error"
            word = choice.get("finish_reason") or word
            message = choice.get("delta") or choice.get("message") or {}
            content = message.get("content") or ""
            if isinstance(content, list):
                content = "".join(part.get("text") or "" for part in content)
            made.text += content
            for key in ("reasoning", "reasoning_content", "refusal"):
                other += message.get(key) or ""
            other += "…" if isinstance(message.get("content"), list) else ""
            for at, part in enumerate(message.get("tool_calls") or []):
                index = part.get("index")
                if index is None or index < 0:
                    index = ("whole", at)
                call = calls.setdefault((choice.get("index"), index), ToolCall())
                call.id = call.id or part.get("id") or ""
                function = part.get("function") or {}
                call.name = call.name or function.get("name") or ""
                call.arguments += function.get("arguments") or ""
    made.tool_calls = list(calls.values())
    if not made.failure and word is None and not (made.text or calls or other):
        made.failure = "empty"
    return _finished(made, word)


def _openai_usage(usage: dict[str, Any]) -> dict[str, int]:
    of_prompt = usage.get("prompt_tokens_details") or {}
    of_output = usage.get("completion_tokens_details") or {}
    prompt, output = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    reasoning = of_output.get("reasoning_tokens") or 0
    cached = of_prompt.get("cached_tokens")
    for key in ("prompt_cache_hit_tokens", "num_cached_tokens", "cached_tokens"):
        if cached is None:
            cached = usage.get(key)
    made = {"prompt": prompt, "cache_read": cached or 0}
    # One answer counts the same tokens as read and written: each is in one unit only.
    written = of_prompt.get("cache_write_tokens") or 0
    made["cache_write"] = min(written, prompt - made["cache_read"])
    # Whatever the total holds beyond prompt and completion was written by the model too.
    made["output"] = output + max(0, usage.get("total_tokens", 0) - prompt - output)
    if made["output"] == output:
        reasoning = min(reasoning, output)  # some report more thinking than output
        made["reasoning"] = reasoning
    return made


def _anthropic(documents: list[Any]) -> Expected:
    made = Expected()
    usage: dict[str, Any] = {}
    blocks: dict[int, ToolCall] = {}
    word: str | None = None
    for document in documents:
        kind = document.get("type")
        if kind == "error":
            made.failure = "error"
        elif kind == "message":
            usage = document.get("usage") or {}
            word = document.get("stop_reason")
            for block in document.get("content") or []:
                if block["type"] == "text":
                    made.text += block["text"]
                elif block["type"] == "tool_use":
                    made.tool_calls.append(
                        ToolCall(block["id"], block["name"], json.dumps(block["input"]))
                    )
        elif kind == "message_start":
            usage.update(document["message"].get("usage") or {})
        elif kind == "message_delta":
            usage.update(document.get("usage") or {})
            word = document["delta"].get("stop_reason") or word
        elif kind == "content_block_start" and document["content_block"]["type"] == "tool_use":
            block = document["content_block"]
            blocks[document["index"]] = call = ToolCall(block["id"], block["name"])
            made.tool_calls.append(call)
        elif kind == "content_block_delta":
            delta = document["delta"]
            if delta["type"] == "text_delta":
                made.text += delta["text"]
            elif delta["type"] == "input_json_delta" and document["index"] in blocks:
                blocks[document["index"]].arguments += delta["partial_json"]
    if usage:
        read = usage.get("cache_read_input_tokens") or 0
        written = usage.get("cache_creation_input_tokens") or 0
        made.usage = {
            "prompt": (usage.get("input_tokens") or 0) + read + written,
            "cache_read": read,
            "cache_write": written,
            "output": usage.get("output_tokens") or 0,
            "reasoning": (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
        }
    return _finished(made, word)


def _gemini(documents: list[Any]) -> Expected:
    made = Expected()
    word: str | None = None
    blocked = content = False
    for document in documents:
        if document.get("error"):
            made.failure = "error"
        blocked = blocked or bool((document.get("promptFeedback") or {}).get("blockReason"))
        usage = document.get("usageMetadata")
        if usage:
            thoughts = usage.get("thoughtsTokenCount") or 0
            made.usage = {
                "prompt": usage.get("promptTokenCount", 0)
                + (usage.get("toolUsePromptTokenCount") or 0),
                "cache_read": usage.get("cachedContentTokenCount") or 0,
                "output": (usage.get("candidatesTokenCount") or 0) + thoughts,
                "reasoning": thoughts,
            }
        for candidate in document.get("candidates") or []:
            word = candidate.get("finishReason") or word
            for part in (candidate.get("content") or {}).get("parts") or []:
                content = True
                if "functionCall" in part:
                    call = part["functionCall"]
                    made.tool_calls.append(
                        ToolCall(call.get("id") or "", call["name"], json.dumps(call.get("args")))
                    )
                elif "text" in part and not part.get("thought"):
                    made.text += part["text"]
    if word in GEMINI_ERRORS or (blocked and word is None):
        made.failure = "error"
    elif word is None and not content:
        made.failure = "empty"
    if made.tool_calls and word in ("STOP", "UNEXPECTED_TOOL_CALL"):
        word = "tool_calls"
    return _finished(made, word)
