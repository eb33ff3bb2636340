"""Check a conversation, and find what kinds of input it holds."""

from dataclasses import dataclass, field
from typing import Any

from services.edge.errors import invalid
from services.edge.fields import mapping, string, wrong_type

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MESSAGES_MAX = 100_000

_MEDIA = {
    "image_url": "image",
    "input_audio": "audio",
    "input_video": "video",
    "video_url": "video",
    "file": "file",
}
_TEXTS = frozenset({"text", "refusal", "input_text", "output_text"})
_OTHER = frozenset({"thinking", "reasoning", "redacted_thinking"})

MEDIA_TOKENS = {"image": 1_600, "audio": 4_000, "video": 16_000, "file": 8_000}
"""What a piece of media counts in size estimates, until endpoints tell better."""


@dataclass(slots=True)
class Inputs:
    """What a conversation brings beside text."""

    modalities: set[str] = field(default_factory=set)
    media_bytes: int = 0
    """Of the body: data URLs and the like, which are not text."""
    media_tokens: int = 0


def check(path: str, value: Any) -> Inputs:
    """Return the inputs of a well-formed conversation, or raise a 400 naming the field at fault."""
    if type(value) is not list:
        raise wrong_type(path, "an array of messages")
    if not value:
        raise invalid(path, f"`{path}` must not be empty.")
    if len(value) > MESSAGES_MAX:
        raise invalid(path, f"`{path}` must not have more than {MESSAGES_MAX} messages.")
    inputs = Inputs()
    for index, message in enumerate(value):
        if type(message) is not dict:
            raise wrong_type(f"{path}[{index}]", "an object")
        role = message.get("role")
        if type(role) is not str or role not in ROLES:
            raise wrong_type(f"{path}[{index}].role", "one of " + ", ".join(sorted(ROLES)))
        if "name" in message and message["name"] is not None:
            string(f"{path}[{index}].name", message["name"])
        content = message.get("content")
        if type(content) is str:
            if role == "user":
                continue  # the usual message: nothing else of it is checked
        elif content is None:
            if role != "assistant":
                raise wrong_type(f"{path}[{index}].content", "a string or an array of parts")
        else:
            _parts(f"{path}[{index}].content", content, inputs)
        if role == "assistant":
            _assistant(f"{path}[{index}]", message)
        elif role == "tool":
            string(f"{path}[{index}].tool_call_id", message.get("tool_call_id"))
    return inputs


def _assistant(path: str, message: dict[str, Any]) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        raise wrong_type(f"{path}.tool_calls", "an array")
    for index, call in enumerate(calls):
        at = f"{path}.tool_calls[{index}]"
        mapping(at, call)
        string(f"{at}.id", call.get("id"))
        if call.get("type", "function") != "function":
            continue
        mapping(f"{at}.function", call.get("function"))
        string(f"{at}.function.name", call["function"].get("name"))
        string(f"{at}.function.arguments", call["function"].get("arguments"))


def _parts(path: str, content: Any, inputs: Inputs) -> None:
    if not isinstance(content, list):
        raise wrong_type(path, "a string or an array of parts")
    for index, part in enumerate(content):
        at = f"{path}[{index}]"
        mapping(at, part)
        kind = part.get("type")
        if not isinstance(kind, str):
            raise wrong_type(f"{at}.type", "a string")
        if kind in _TEXTS:
            name = "refusal" if kind == "refusal" else "text"
            string(f"{at}.{name}", part.get(name))
        elif kind in _MEDIA:
            _media(at, kind, part, inputs)
        elif kind not in _OTHER:
            raise invalid(f"{at}.type", f"`{at}.type` is not a known kind of content.")


def _media(path: str, kind: str, part: dict[str, Any], inputs: Inputs) -> None:
    value = part.get(kind)
    if kind in ("image_url", "video_url", "input_video") and isinstance(value, str):
        source: Any = value
    else:
        mapping(f"{path}.{kind}", value)
        assert isinstance(value, dict)
        if kind in ("image_url", "video_url"):
            source = value.get("url")
            if not isinstance(source, str) or not source:
                raise wrong_type(f"{path}.{kind}.url", "a string that is not empty")
        else:
            source = value.get("data") or value.get("file_data") or ""
            if not isinstance(source, str):
                raise wrong_type(f"{path}.{kind}", "an object whose data is a string")
    modality = _MEDIA[kind]
    inputs.modalities.add(modality)
    inputs.media_bytes += len(source)
    inputs.media_tokens += MEDIA_TOKENS[modality]
