"""The OpenAPI document's words for the one route that FastAPI does not serve itself."""

from typing import Any

DESCRIPTION = """\
An open exchange for model inference: one URL, every model of every provider, prices and rankings in
the open. The dialect is OpenRouter's: a client changes its base URL and nothing else. Every route
is also reachable below `/v1`.
"""


def _number(text: str) -> dict[str, Any]:
    return {"type": ["number", "null"], "description": text}


def _integer(text: str) -> dict[str, Any]:
    return {"type": ["integer", "null"], "description": text}


_OBJECT = {"type": ["object", "null"]}
_STRINGS = {"type": ["array", "null"], "items": {"type": "string"}}

CHAT_REQUEST: dict[str, Any] = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string", "description": "`author/slug[:variant]`"},
        "models": {**_STRINGS, "description": "Fallback models, in order, after `model`."},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role"],
                "properties": {
                    "role": {
                        "type": "string",
                        "enum": ["system", "developer", "user", "assistant", "tool"],
                    },
                    "content": {
                        "type": ["string", "array", "null"],
                        "items": {"type": "object"},
                        "description": "Text, or parts: text, image_url, input_audio, file, …",
                    },
                    "name": {"type": "string"},
                    "tool_calls": {"type": "array", "items": {"type": "object"}},
                    "tool_call_id": {"type": "string"},
                },
            },
        },
        "stream": {"type": "boolean", "default": False},
        "max_tokens": _integer("Older name of `max_completion_tokens`."),
        "max_completion_tokens": _integer("Most output tokens, reasoning included."),
        "temperature": _number("0 to 2."),
        "top_p": _number("0 to 1."),
        "top_k": _integer("Consider only so many tokens."),
        "top_a": _number("0 to 1."),
        "min_p": _number("0 to 1."),
        "frequency_penalty": _number("-2 to 2."),
        "presence_penalty": _number("-2 to 2."),
        "repetition_penalty": _number("0 to 2."),
        "seed": _integer("For repeatable sampling, where a provider offers it."),
        "n": _integer("How many choices."),
        "stop": {"type": ["string", "array", "null"], "items": {"type": "string"}},
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _integer("0 to 20."),
        "logit_bias": _OBJECT,
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_choice": {"type": ["string", "object", "null"]},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "response_format": _OBJECT,
        "reasoning": _OBJECT,
        "reasoning_effort": {"type": ["string", "null"]},
        "provider": {
            **_OBJECT,
            "description": "`order`, `only`, `ignore`, `allow_fallbacks`, `sort`, "
            "`require_parameters`, `data_collection`, `zdr`.",
        },
        "session_id": {"type": "string", "maxLength": 256},
        "user": {"type": "string"},
        "metadata": _OBJECT,
        "service_tier": {"type": ["string", "null"]},
    },
}

_USAGE: dict[str, Any] = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "cost"],
    "properties": {
        "prompt_tokens": {"type": "integer"},
        "completion_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
        "cost": {"type": "number", "description": "USD charged, at most nine decimals."},
        "is_byok": {"type": "boolean"},
        "cost_details": {"type": "object"},
        "prompt_tokens_details": {"type": "object"},
        "completion_tokens_details": {"type": "object"},
    },
}

CHAT_RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "system_fingerprint"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string", "description": "The model that served."},
        "provider": {"type": "string", "description": "Who served."},
        "choices": {"type": "array", "items": {"type": "object"}},
        "system_fingerprint": {"type": ["string", "null"]},
        "service_tier": {"type": ["string", "null"]},
        "usage": _USAGE,
    },
}

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "metadata": {
                    "type": "object",
                    "properties": {
                        "error_type": {"type": "string"},
                        "field": {"type": "string"},
                    },
                },
                "availability": {"type": "object"},
            },
        }
    },
}

COMPLETION_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": CHAT_REQUEST}},
    }
}

COMPLETION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completion: one JSON body, or server-sent events when `stream` is set.",
        "content": {
            "application/json": {"schema": CHAT_RESULT},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    "4XX": {
        "description": "A typed refusal; `error.metadata.field` names the field at fault.",
        "content": {"application/json": {"schema": ERROR}},
    },
    "5XX": {
        "description": "No provider could answer, or a fault of ours.",
        "content": {"application/json": {"schema": ERROR}},
    },
}
