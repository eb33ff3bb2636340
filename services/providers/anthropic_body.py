"""Write a canonical call as the body of an Anthropic Messages request."""

from collections.abc import Mapping
from typing import Any

from services.providers.call import Call, Endpoint
from services.providers.messages import max_tokens_of, supports
from services.providers.parts import ANTHROPIC_FORMAT, Part, arguments_of, parts_of, thoughts_of
from services.providers.refusals import unsayable
from services.providers.thinking import thinking_of

_MAX_TOKENS = 4096  # mandatory there: what an endpoint of unknown limit surely writes
_BUDGET_LOWEST, _BUDGET_HIGHEST = 1024, 128_000
_IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_EFFORTS = ("low", "medium", "high", "xhigh", "max")


def anthropic_body(call: Call, endpoint: Endpoint) -> dict[str, Any]:
    """Return the request body. Raise AttemptFailed (400) naming what cannot be said."""
    body = call.body
    system, messages = _conversation(body.get("messages") or [])
    out: dict[str, Any] = {
        "model": call.model or endpoint.upstream_model,
        "max_tokens": max_tokens_of(body) or endpoint.max_completion_tokens or _MAX_TOKENS,
        "messages": messages,
        "stream": call.streamed,
    }
    if system:
        out["system"] = system
    for key in ("temperature", "top_p", "top_k"):
        value = body.get(key)
        if value is not None and supports(endpoint, key):
            out[key] = min(value, 1) if key == "temperature" else value
    stop = body.get("stop")
    if stop and supports(endpoint, "stop"):
        words = [stop] if isinstance(stop, str) else stop
        out["stop_sequences"] = [word for word in words if word.strip()]
    if body.get("user"):
        out["metadata"] = {"user_id": body["user"]}
    if body.get("cache_control"):
        out["cache_control"] = body["cache_control"]
    tier = body.get("service_tier")
    if tier:
        out["service_tier"] = "standard_only" if tier in ("default", "standard") else "auto"
    _tools(out, body, endpoint)
    _shape(out, body)
    _thinking(out, body, endpoint)
    return out


def _conversation(messages: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the system blocks and the turns: roles alternate, so that neighbours join."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        role = message.get("role")
        field = f"messages[{at}].content"
        if role in ("system", "developer"):
            blocks = [_block(part) for part in parts_of(message.get("content"), field)]
            if not turns:
                system += blocks
                continue
            role = "user"  # later instructions stay where they are said
        elif role == "assistant":
            blocks = _assistant(message, field)
        elif role == "tool":
            role, blocks = "user", [_tool_result(message, field)]
        elif role == "user":
            blocks = [_block(part) for part in parts_of(message.get("content"), field)]
            name = message.get("name")
            text = next((block for block in blocks if block["type"] == "text"), None)
            if name and text is not None:
                text["text"] = f"{name}: {text['text']}"
        else:
            raise unsayable(f"messages[{at}].role", f"Unknown role {role}.")
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant":
        last = turns[-1]["content"][-1]
        if last["type"] == "text":  # a prefill must not end in space
            last["text"] = last["text"].rstrip()
            if not last["text"]:
                turns[-1]["content"].pop()
                if not turns[-1]["content"]:
                    turns.pop()
    return system, turns


def _assistant(message: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for thought in thoughts_of(message, ANTHROPIC_FORMAT):
        if thought.data:
            blocks.append({"type": "redacted_thinking", "data": thought.data})
        elif thought.signature:  # unsigned thinking cannot be verified and would be refused
            blocks.append(
                {
                    "type": "thinking",
                    "thinking": thought.text,
                    "signature": thought.signature,
                }
            )
    blocks += [_block(part) for part in parts_of(message.get("content"), field)]
    for tool_call in message.get("tool_calls") or ():
        blocks.append(
            {
                "type": "tool_use",
                "id": tool_call.get("id") or "",
                "name": (tool_call.get("function") or {}).get("name") or "",
                "input": arguments_of(tool_call),
            }
        )
    return blocks


def _tool_result(message: Mapping[str, Any], field: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id") or "",
    }
    content = message.get("content")
    if isinstance(content, str):
        result["content"] = content
    else:
        blocks = [_block(part) for part in parts_of(content, field)]
        marks = [block.pop("cache_control") for block in blocks if "cache_control" in block]
        if blocks:
            result["content"] = blocks
        if marks:
            result["cache_control"] = marks[-1]
    if message.get("cache_control"):
        result["cache_control"] = message["cache_control"]
    return result


def _block(part: Part) -> dict[str, Any]:
    block: dict[str, Any]
    if part.kind == "text":
        block = {"type": "text", "text": part.text}
    elif part.kind == "image":
        if part.data and part.media_type not in _IMAGE_TYPES:
            raise unsayable(part.field, f"This model does not read {part.media_type}.")
        block = {"type": "image", "source": _source(part)}
    elif part.kind == "file":
        block = {"type": "document", "source": _source(part)}
        if part.name:
            block["title"] = part.name
    else:
        raise unsayable(part.field, f"This model does not take {part.kind}.")
    if part.cache_control:
        block["cache_control"] = part.cache_control
    return block


def _source(part: Part) -> dict[str, Any]:
    if part.file_id:
        return {"type": "file", "file_id": part.file_id}
    if part.url:
        return {"type": "url", "url": part.url}
    return {"type": "base64", "media_type": part.media_type, "data": part.data}


def _tools(out: dict[str, Any], body: Mapping[str, Any], endpoint: Endpoint) -> None:
    tools = []
    for tool in body.get("tools") or ():
        function = tool.get("function")
        if not isinstance(function, Mapping):
            continue  # a tool that the provider would run is not ours to promise
        made = {
            "name": function.get("name") or "",
            "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
        }
        if function.get("description"):
            made["description"] = function["description"]
        if function.get("strict"):
            made["strict"] = True
        cache = tool.get("cache_control") or function.get("cache_control")
        if cache:
            made["cache_control"] = cache
        tools.append(made)
    if not tools or not supports(endpoint, "tools"):
        return
    out["tools"] = tools
    choice = body.get("tool_choice")
    made_choice: dict[str, Any] | None = None
    if isinstance(choice, Mapping):
        name = (choice.get("function") or choice).get("name")
        made_choice = {"type": "tool", "name": name} if name else {"type": "auto"}
    elif choice in ("auto", "none"):
        made_choice = {"type": choice}
    elif choice in ("required", "any"):
        made_choice = {"type": "any"}
    if body.get("parallel_tool_calls") is False and choice != "none":
        made_choice = {**(made_choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if made_choice:
        out["tool_choice"] = made_choice


def _shape(out: dict[str, Any], body: Mapping[str, Any]) -> None:
    shape = body.get("response_format")
    if not isinstance(shape, Mapping) or shape.get("type") != "json_schema":
        return
    schema = (shape.get("json_schema") or {}).get("schema")
    if isinstance(schema, Mapping):
        out["output_config"] = {"format": {"type": "json_schema", "schema": schema}}


def _thinking(out: dict[str, Any], body: Mapping[str, Any], endpoint: Endpoint) -> None:
    thinking = thinking_of(body)
    if thinking is None or not thinking.on or not supports(endpoint, "reasoning"):
        return
    limit = out["max_tokens"]
    if "adaptive_thinking" in endpoint.supported_parameters:
        out["thinking"] = {"type": "adaptive"}
        effort = thinking.effort_for(_EFFORTS, limit)
        out["output_config"] = {**out.get("output_config", {}), "effort": effort}
    elif limit > _BUDGET_LOWEST:
        budget = thinking.budget_for(limit, _BUDGET_LOWEST, _BUDGET_HIGHEST)
        out["thinking"] = {"type": "enabled", "budget_tokens": min(budget, limit - 1)}
    else:
        return  # the smallest budget does not fit below max_tokens
    # A thinking model takes neither a sampling temperature nor a forced tool.
    for key in ("temperature", "top_k", "top_p"):
        out.pop(key, None)
    choice = out.get("tool_choice")
    if choice and choice["type"] in ("any", "tool"):
        out["tool_choice"] = {
            **{key: value for key, value in choice.items() if key != "name"},
            "type": "auto",
        }
