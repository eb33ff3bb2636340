"""Write a canonical call as the body of a Gemini generateContent request."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.providers.call import Call, Endpoint
from services.providers.messages import max_tokens_of, supports
from services.providers.parts import GEMINI_FORMAT, Part, arguments_of, parts_of, thoughts_of
from services.providers.refusals import unsayable
from services.providers.thinking import thinking_of

_BUDGET_LOWEST, _BUDGET_HIGHEST = 128, 24_576
_OUTPUT_UNKNOWN = 8192
_TYPES: Mapping[str, str] = {
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
    "pdf": "application/pdf",
    "png": "image/png",
    "txt": "text/plain",
    "wav": "audio/wav",
    "webm": "video/webm",
    "webp": "image/webp",
}
_KIND_TYPES: Mapping[str, str] = {
    "image": "image/jpeg",
    "audio": "audio/wav",
    "video": "video/mp4",
    "file": "application/pdf",
}
_SAMPLING = (
    ("temperature", "temperature"),
    ("top_p", "topP"),
    ("top_k", "topK"),
    ("seed", "seed"),
    ("presence_penalty", "presencePenalty"),
    ("frequency_penalty", "frequencyPenalty"),
    ("n", "candidateCount"),
    ("logprobs", "responseLogprobs"),
    ("top_logprobs", "logprobs"),
)


def gemini_body(call: Call, endpoint: Endpoint) -> dict[str, Any]:
    """Return the request body. Raise AttemptFailed (400) naming what cannot be said."""
    body = call.body
    system, contents = _conversation(body.get("messages") or [])
    out: dict[str, Any] = {"contents": contents}
    if system:
        out["systemInstruction"] = {"parts": system}
    config = _config(body, endpoint)
    if config:
        out["generationConfig"] = config
    if supports(endpoint, "tools"):
        _tools(out, body)
    return out


def _config(body: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for ours, theirs in _SAMPLING:
        value = body.get(ours)
        if value is not None and supports(endpoint, ours) and not (ours == "n" and value == 1):
            config[theirs] = value
    limit = max_tokens_of(body)
    if limit is not None:
        config["maxOutputTokens"] = limit
    stop = body.get("stop")
    if stop and supports(endpoint, "stop"):
        config["stopSequences"] = [stop] if isinstance(stop, str) else list(stop)
    modalities = body.get("modalities")
    if modalities:
        config["responseModalities"] = [str(name).upper() for name in modalities]
    shape = body.get("response_format")
    if isinstance(shape, Mapping) and shape.get("type") in ("json_object", "json_schema"):
        config["responseMimeType"] = "application/json"
        schema = (shape.get("json_schema") or {}).get("schema")
        if isinstance(schema, Mapping):
            config["responseJsonSchema"] = schema
    thinking = thinking_of(body)
    if thinking is not None and supports(endpoint, "reasoning"):
        most = limit or endpoint.max_completion_tokens or _OUTPUT_UNKNOWN
        budget = thinking.budget_for(most, _BUDGET_LOWEST, _BUDGET_HIGHEST) if thinking.on else 0
        config["thinkingConfig"] = {"thinkingBudget": budget}
        if thinking.on and not thinking.exclude:
            config["thinkingConfig"]["includeThoughts"] = True
    return config


def _conversation(messages: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the system parts and the turns; neighbours of one role join."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions called, by call id
    for at, message in enumerate(messages):
        role = message.get("role")
        field = f"messages[{at}].content"
        if role in ("system", "developer"):
            parts = [_part(part) for part in parts_of(message.get("content"), field)]
            if not turns:
                system += parts
                continue
            role = "user"
        elif role == "assistant":
            role, parts = "model", _assistant(message, field, names)
        elif role == "tool":
            role, parts = "user", [_tool_result(message, field, names)]
        elif role == "user":
            parts = [_part(part) for part in parts_of(message.get("content"), field)]
            name = message.get("name")
            text = next((part for part in parts if "text" in part), None)
            if name and text is not None:
                text["text"] = f"{name}: {text['text']}"
        else:
            raise unsayable(f"messages[{at}].role", f"Unknown role {role}.")
        if not parts:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        else:
            turns.append({"role": role, "parts": parts})
    if not turns and system:
        # Contents are mandatory there: instructions alone are then the first turn.
        return [], [{"role": "user", "parts": system}]
    return system, turns


def _assistant(
    message: Mapping[str, Any], field: str, names: dict[str, str]
) -> list[dict[str, Any]]:
    sealed = [thought for thought in thoughts_of(message, GEMINI_FORMAT) if thought.data]
    by_call = {thought.id: thought.data for thought in sealed if thought.id}
    unowned = [thought.data for thought in sealed if not thought.id]
    parts = [_part(part) for part in parts_of(message.get("content"), field)]
    if unowned and parts:
        parts[-1]["thoughtSignature"] = unowned.pop()
    for tool_call in message.get("tool_calls") or ():
        name = (tool_call.get("function") or {}).get("name") or ""
        call_id = tool_call.get("id") or ""
        names[call_id] = name
        part: dict[str, Any] = {"functionCall": {"name": name, "args": arguments_of(tool_call)}}
        signature = by_call.get(call_id) or (unowned.pop(0) if unowned else "")
        if signature:
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _tool_result(message: Mapping[str, Any], field: str, names: dict[str, str]) -> dict[str, Any]:
    texts = []
    for part in parts_of(message.get("content"), field):
        if part.kind != "text":
            raise unsayable(part.field, "This model takes only text from a tool.")
        texts.append(part.text)
    text = "".join(texts)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    name = names.get(message.get("tool_call_id") or "") or message.get("name") or "tool"
    response = value if isinstance(value, dict) else {"result": value}
    return {"functionResponse": {"name": name, "response": response}}


def _part(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"text": part.text}
    if part.file_id:
        return {"fileData": {"fileUri": part.file_id}}
    if part.url:
        ending = part.url.partition("?")[0].rpartition(".")[2].lower()
        media_type = _TYPES.get(ending) or _KIND_TYPES[part.kind]
        return {"fileData": {"fileUri": part.url, "mimeType": media_type}}
    return {"inlineData": {"mimeType": part.media_type, "data": part.data}}


def _tools(out: dict[str, Any], body: Mapping[str, Any]) -> None:
    declarations = []
    for tool in body.get("tools") or ():
        function = tool.get("function")
        if not isinstance(function, Mapping):
            continue
        made: dict[str, Any] = {"name": function.get("name") or ""}
        if function.get("description"):
            made["description"] = function["description"]
        parameters = function.get("parameters")
        if isinstance(parameters, Mapping) and parameters.get("properties"):
            made["parametersJsonSchema"] = parameters
        declarations.append(made)
    if not declarations:
        return
    out["tools"] = [{"functionDeclarations": declarations}]
    choice = body.get("tool_choice")
    calling: dict[str, Any] | None = None
    if isinstance(choice, Mapping):
        name = (choice.get("function") or choice).get("name")
        calling = {"mode": "ANY", "allowedFunctionNames": [name]} if name else None
    elif choice in ("required", "any"):
        calling = {"mode": "ANY"}
    elif choice in ("auto", "none"):
        calling = {"mode": str(choice).upper()}
    if calling:
        out["toolConfig"] = {"functionCallingConfig": calling}
