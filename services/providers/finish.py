"""Finish reasons: every provider's words in the five of the public API."""

from collections.abc import Mapping

_WORDS: Mapping[str, str] = {
    "stop": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "completed": "stop",
    "complete": "stop",
    "end": "stop",
    "done": "stop",
    "finish_reason_stop": "stop",
    "pause_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_completion_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "insufficient_system_resource": "error",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "language": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "model_armor": "content_filter",
    "image_safety": "content_filter",
    "image_prohibited_content": "content_filter",
    "image_recitation": "content_filter",
    "error": "error",
    "failed": "error",
    "network_error": "error",
    "server_error": "error",
    "internal_error": "error",
    "malformed_function_call": "error",
    "unexpected_tool_call": "error",
    "malformed_response": "error",
    "missing_thought_signature": "error",
    "too_many_tool_calls": "error",
}


def finish_reason(reason: str, native: str = "", has_tool_calls: bool = False) -> str:
    """Return `stop, length, tool_calls, content_filter` or `error` for a provider's word.

    `native` is the word behind `reason` where a provider gives both: one that means an error wins.
    An empty or unknown word means the answer ended well: with tool calls or without.
    """
    if native and native is not reason and _WORDS.get(str(native).lower()) == "error":
        return "error"
    mapped = _WORDS.get(reason) or _WORDS.get(str(reason).lower())
    if mapped is None:
        return "tool_calls" if has_tool_calls else "stop"
    return mapped
