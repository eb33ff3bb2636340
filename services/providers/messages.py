"""Write a canonical call as the body of an OpenAI chat completions request, the preset's way."""

import hashlib
from collections.abc import Mapping
from typing import Any

from services.providers.call import Call, Endpoint
from services.providers.presets import Preset
from services.providers.thinking import thinking_of

# What may pass upstream. Anything else a client sends is ignored: docs/api.md section 1.
FIELDS = frozenset(
    [
        "messages",
        "model",
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
        "top_k",
        "min_p",
        "top_a",
        "repetition_penalty",
        "reasoning",
        "image_config",
    ]
)

# Dropped where an endpoint declares its parameters and does not name them (or a stand-in).
_DECLARED: Mapping[str, tuple[str, ...]] = {
    "temperature": (),
    "top_p": (),
    "top_k": (),
    "min_p": (),
    "top_a": (),
    "frequency_penalty": (),
    "presence_penalty": (),
    "repetition_penalty": (),
    "seed": (),
    "stop": (),
    "logit_bias": (),
    "logprobs": (),
    "top_logprobs": (),
    "verbosity": (),
    "prediction": (),
    "web_search_options": (),
    "tools": (),
    "tool_choice": ("tools",),
    "parallel_tool_calls": ("tools",),
    "response_format": ("structured_outputs",),
    "reasoning": ("reasoning_effort",),
    "reasoning_effort": ("reasoning",),
}
_ECHOES = frozenset({"reasoning", "reasoning_content", "reasoning_details"})


def supports(endpoint: Endpoint, parameter: str) -> bool:
    """Whether a parameter may be sent: declared, or nothing is declared, or it needs no word."""
    declared = endpoint.supported_parameters
    if not declared or parameter in declared or parameter not in _DECLARED:
        return True
    return any(other in declared for other in _DECLARED[parameter])


def max_tokens_of(body: Mapping[str, Any]) -> int | None:
    """Return the output limit of a call, whichever name it came under."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def openai_body(call: Call, endpoint: Endpoint) -> dict[str, Any]:
    """Return the request body. `call.body` stays as it is; parts that need no change are shared."""
    preset = endpoint.preset
    body: dict[str, Any] = {"model": call.model or endpoint.upstream_model}
    for key, value in call.body.items():
        if value is None or key in _OWN or key in preset.drops:
            continue
        if key not in FIELDS and key not in preset.accepts:
            if key not in endpoint.supported_parameters:
                continue
        elif not supports(endpoint, key):
            continue
        body[preset.renames.get(key, key)] = value
    body["messages"] = [
        _message(message, preset) for message in call.body.get("messages") or () if message
    ]
    limit = max_tokens_of(call.body)
    if limit is not None:
        body[preset.max_tokens_field] = limit
    _reasoning(body, call, endpoint)
    shape = body.get("response_format")
    if not preset.json_schema and isinstance(shape, Mapping) and shape.get("type") == "json_schema":
        body["response_format"] = {"type": "json_object"}
    body["stream"] = call.streamed
    if call.streamed and preset.asks_usage:
        body["stream_options"] = {"include_usage": True}
    return body


# Written by `openai_body` itself, never copied.
_OWN = frozenset(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "reasoning",
        "reasoning_effort",
    ]
)


def _reasoning(body: dict[str, Any], call: Call, endpoint: Endpoint) -> None:
    preset = endpoint.preset
    style = preset.reasoning
    if style == "none" or not supports(endpoint, "reasoning"):
        return
    if style == "object":
        for key in ("reasoning", "reasoning_effort"):
            if call.body.get(key) is not None:
                body[key] = call.body[key]
        return
    thinking = thinking_of(call.body)
    if thinking is None:
        return
    if style == "thinking":
        body.setdefault("thinking", {"type": "enabled" if thinking.on else "disabled"})
        return
    effort = thinking.effort_for(preset.efforts, max_tokens_of(call.body) or 0)
    if effort:
        body["reasoning_effort"] = effort


def _message(message: Mapping[str, Any], preset: Preset) -> Mapping[str, Any]:
    """Return a message as the preset takes it: the same object where nothing changes."""
    role = message.get("role")
    out: dict[str, Any] | None = None
    if role == "developer" and not preset.developer_role:
        out = {**message, "role": "system"}
    if "name" in message and (not preset.keeps_names or message["name"] is None):
        out = out or dict(message)
        name = out.pop("name")
        if name and role in ("user", "assistant", "system", "developer"):
            out["content"] = _named(name, message.get("content"))
    if role == "assistant":
        kept = preset.echoes
        if any(key in message and key not in kept for key in _ECHOES):
            out = out or dict(message)
            reasoning = out.get("reasoning") or out.get("reasoning_content")
            for key in _ECHOES - kept:
                out.pop(key, None)
            # The same words under the name this provider knows them by.
            if reasoning and not kept & {"reasoning_details"}:
                for key in kept:
                    out.setdefault(key, reasoning)
    if not preset.cache_control and _has_cache_control(message):
        out = out or dict(message)
        out.pop("cache_control", None)
        if isinstance(out.get("content"), list):
            out["content"] = [_without_cache_control(part) for part in out["content"]]
    if preset.tool_id_length and ("tool_calls" in message or "tool_call_id" in message):
        out = out or dict(message)
        _shorten_ids(out, preset.tool_id_length)
    return message if out is None else out


def _named(name: str, content: Any) -> Any:
    if isinstance(content, str):
        return f"{name}: {content}"
    if isinstance(content, list):
        for at, part in enumerate(content):
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                return [
                    *content[:at],
                    {**part, "text": f"{name}: {part['text']}"},
                    *content[at + 1 :],
                ]
    return content


def _has_cache_control(message: Mapping[str, Any]) -> bool:
    if "cache_control" in message:
        return True
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and "cache_control" in part for part in content
    )


def _without_cache_control(part: Any) -> Any:
    if not isinstance(part, Mapping) or "cache_control" not in part:
        return part
    return {key: value for key, value in part.items() if key != "cache_control"}


def _shorten_ids(message: dict[str, Any], length: int) -> None:
    if "tool_call_id" in message:
        message["tool_call_id"] = short_id(message["tool_call_id"], length)
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [
            {**call, "id": short_id(call["id"], length)} if call.get("id") else call
            for call in message["tool_calls"]
        ]


def short_id(call_id: str, length: int) -> str:
    """Return an id of exactly `length` letters and digits; the same one for the same id."""
    if len(call_id) == length and call_id.isalnum() and call_id.isascii():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:length]
