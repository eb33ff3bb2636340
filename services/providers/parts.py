"""Read the parts of a canonical message: text, images, files, audio and echoed reasoning."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from services.providers.refusals import unsayable

ANTHROPIC_FORMAT = "anthropic-claude-v1"
GEMINI_FORMAT = "google-gemini-v1"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message's content.

    `kind` is text, image, audio, video or file. Media have either `data` (base64) and a
    `media_type`, or a `url`, or a `file_id`. `field` names the part for an error.
    """

    kind: str
    field: str
    text: str = ""
    data: str = ""
    media_type: str = ""
    url: str = ""
    file_id: str = ""
    name: str = ""
    cache_control: Any = None


def parts_of(content: Any, field: str) -> Iterator[Part]:
    """Yield the parts of a message's content; empty text is left out.

    Raise AttemptFailed (400) naming the part that is of no known kind.
    """
    if content is None:
        return
    if isinstance(content, str):
        if content:
            yield Part("text", field, content)
        return
    if not isinstance(content, list):
        raise unsayable(field, "A message's content must be text or a list of parts.")
    for at, part in enumerate(content):
        made = _part(part, f"{field}[{at}]")
        if made is not None:
            yield made


def _part(part: Any, field: str) -> Part | None:
    if isinstance(part, str):
        return Part("text", field, part) if part else None
    if not isinstance(part, Mapping):
        raise unsayable(field, "A part of a message's content must be an object.")
    kind = part.get("type")
    cache = part.get("cache_control")
    if kind in ("text", "input_text", "output_text", "refusal", None):
        text = part.get("text") or part.get("refusal")
        if not isinstance(text, str) or not text:
            return None
        return Part("text", field, text, cache_control=cache)
    if kind in ("image_url", "input_image"):
        return _media("image", _url_of(part.get("image_url")), field, cache)
    if kind == "video_url":
        return _media("video", _url_of(part.get("video_url")), field, cache)
    if kind == "document_url":
        return _media("file", _url_of(part.get("document_url")), field, cache)
    if kind == "input_audio":
        audio = part.get("input_audio") or {}
        data, form = audio.get("data") or "", audio.get("format") or "wav"
        if data.startswith("data:"):
            return _media("audio", data, field, cache)
        media_type = {"mp3": "audio/mpeg"}.get(form, f"audio/{form}")
        return Part("audio", field, data=data, media_type=media_type, cache_control=cache)
    if kind in ("file", "input_file"):
        given = part.get("file")
        file: Mapping[str, Any] = given if isinstance(given, Mapping) else part
        name = file.get("filename") or ""
        if file.get("file_id"):
            return Part("file", field, file_id=file["file_id"], name=name, cache_control=cache)
        url = file.get("file_data") or file.get("file_url") or ""
        if url and not re.match(r"(data:|https?:|gs:)", url):
            url = f"data:application/pdf;base64,{url}"
        return _media("file", url, field, cache, name)
    if kind in ("thinking", "redacted_thinking"):
        return None
    raise unsayable(field, f"This model cannot be given a part of type {kind}.")


def _url_of(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("url")
    return value if isinstance(value, str) else ""


_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]+)*?(;base64)?,", re.IGNORECASE)


def _media(kind: str, url: str, field: str, cache_control: Any, name: str = "") -> Part:
    if not url:
        raise unsayable(field, "A part of a message's content has neither data nor a URL.")
    match = _DATA_URL.match(url)
    if match is None:
        return Part(kind, field, url=url, name=name, cache_control=cache_control)
    media_type = match.group(1) or "application/octet-stream"
    if kind == "file" and media_type.split("/", 1)[0] in ("image", "audio", "video"):
        kind = media_type.split("/", 1)[0]
    data = url[match.end() :]
    return Part(
        kind, field, data=data, media_type=media_type, name=name, cache_control=cache_control
    )


def arguments_of(tool_call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool call's arguments as an object; what is no JSON object is kept under `input`."""
    arguments = (tool_call.get("function") or {}).get("arguments")
    if isinstance(arguments, dict):
        return arguments
    if not arguments:
        return {}
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = arguments
    return value if isinstance(value, dict) else {"input": value}


@dataclass(slots=True)
class Thought:
    """A block of reasoning as a provider gave it out: readable or sealed, perhaps signed."""

    text: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""


def thoughts_of(message: Mapping[str, Any], form: str) -> list[Thought]:
    """Return the reasoning of an assistant message that `form` issued, in order.

    A client may send the details back as they were streamed: fragments of a text block join until
    the signature closes it. Details in another provider's format are left out: nobody else can
    verify them.
    """
    details = message.get("reasoning_details")
    thoughts: list[Thought] = []
    is_open = False
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, Mapping) or detail.get("format") not in (form, None):
            continue
        if detail.get("type") == "reasoning.encrypted":
            if detail.get("data"):
                thoughts.append(Thought(data=detail["data"], id=detail.get("id") or ""))
            is_open = False
        elif detail.get("type") == "reasoning.text":
            if not is_open:
                thoughts.append(Thought())
                is_open = True
            thoughts[-1].text += detail.get("text") or ""
            if detail.get("signature"):
                thoughts[-1].signature = detail["signature"]
                is_open = False
    return thoughts
