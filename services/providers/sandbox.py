"""The sandbox provider: an httpx transport that answers like a real upstream, from nothing.

`sandbox://openai`, `sandbox://anthropic` and `sandbox://gemini` answer in the genuine bytes of
their dialect, streamed or whole, through the same framing as everyone's. Answers are
deterministic: the same call gives the same bytes. An answer echoes the last message; where there
are `tools`, those that it names are called, or else all, at once; a JSON schema gets the least
document that satisfies it. `max_tokens` cuts the answer, and usage is what was said.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import orjson

from services.providers.sandbox_wires import WIRES, Asked, BadRequest, Said

WORDS_MAX = 4_096
BYTES_PER_TOKEN = 4
_SCHEMA_DEPTH = 16
_SCHEMA_VALUES = 10_000
"""Values and characters that a schema may make the sandbox say."""


class SandboxTransport(httpx.AsyncBaseTransport):
    """Answers `sandbox://` URLs; the host chooses the dialect."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        wire = WIRES.get(request.url.host)
        if wire is None:
            raise httpx.ConnectError(f"no sandbox {request.url.host!r}", request=request)
        try:
            asked = wire.read(request.url, orjson.loads(request.content))
            said = say(asked)
        except BadRequest as error:
            return _response(400, "application/json", [wire.error(400, str(error))])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            return _response(400, "application/json", [wire.error(400, f"bad request: {error}")])
        if asked.stream:
            return _response(200, "text/event-stream", wire.stream(said))
        return _response(200, "application/json", [wire.whole(said)])


def say(asked: Asked) -> Said:
    """Answer a call."""
    identity = hashlib.sha256(f"{asked.model}\0{asked.text}".encode()).hexdigest()[:24]
    named = [] if asked.has_results else _named_tools(asked)
    calls = [
        (f"call_{identity[:12]}{index:04d}", name, orjson.dumps(_least(schema)).decode())
        for index, (name, schema) in enumerate(named)
    ]
    pieces = [] if calls else _pieces(asked)
    allowed = asked.max_tokens or WORDS_MAX
    cut = len(pieces) > allowed
    pieces = pieces[:allowed]
    completion_tokens = len(pieces) + sum(
        -(-len(name + arguments) // BYTES_PER_TOKEN) for _, name, arguments in calls
    )
    return Said(
        id=identity,
        model=asked.model,
        pieces=pieces,
        calls=calls,
        cut=cut,
        prompt_tokens=max(1, -(-asked.prompt_bytes // BYTES_PER_TOKEN)),
        completion_tokens=completion_tokens,
    )


def _named_tools(asked: Asked) -> list[tuple[str, dict[str, Any]]]:
    if asked.forced_tool:
        return [tool for tool in asked.tools if tool[0] == asked.forced_tool]
    text = asked.text.lower()
    return [tool for tool in asked.tools if tool[0].lower() in text] or asked.tools


def _pieces(asked: Asked) -> list[str]:
    """The answer's text in pieces of a token each: at most four bytes, never half a character."""
    if asked.schema is not None:
        text = orjson.dumps(_least(asked.schema)).decode()
    else:
        text = asked.text or "Hello."
    pieces, piece = [], ""
    for character in text:
        if piece and len((piece + character).encode()) > BYTES_PER_TOKEN:
            pieces.append(piece)
            piece = ""
        piece += character
    return [*pieces, piece] if piece else pieces


class _Root:
    """A whole schema, and how much may still be said of it: a few bytes can ask for gigabytes."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self._left = _SCHEMA_VALUES

    def count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise ValueError("the schema asks for too large a document")


def _least(schema: Any, root: "_Root | None" = None, depth: int = 0) -> Any:
    """The least value that satisfies a JSON schema. Raises ValueError when it is too large."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH:
        return None
    root = _Root(schema) if root is None else root
    root.count(1)
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        return _least(_pointed(root.schema, reference), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _least(schema[key][0], root, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            merged = {**merged, **part}
        return _least(merged, root, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    made = _LEAST.get(str(kind).lower())
    return made(schema, root, depth + 1) if made else None


def _least_object(schema: dict[str, Any], root: "_Root", depth: int) -> dict[str, Any]:
    properties = schema.get("properties") or {}
    return {
        name: _least(properties.get(name) or {}, root, depth)
        for name in schema.get("required") or properties
    }


def _least_array(schema: dict[str, Any], root: "_Root", depth: int) -> list[Any]:
    items, count = schema.get("items") or {}, int(schema.get("minItems") or 0)
    root.count(count)
    return [_least(items, root, depth) for _ in range(count)]


def _least_number(schema: dict[str, Any], _root: Any, _depth: int) -> Any:
    if "minimum" in schema:
        return schema["minimum"]
    if "exclusiveMinimum" in schema:
        return int(schema["exclusiveMinimum"]) + 1
    if schema.get("maximum", 0) < 0:
        return schema["maximum"]
    return 0


def _least_string(schema: dict[str, Any], root: "_Root", _depth: int) -> str:
    sample = _FORMATS.get(str(schema.get("format")), "")
    length = int(schema.get("minLength") or 0)
    root.count(length)
    return sample.ljust(length, "a")


_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "a@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
}
_LEAST: dict[str, Callable[[dict[str, Any], Any, int], Any]] = {
    "object": _least_object,
    "array": _least_array,
    "integer": _least_number,
    "number": _least_number,
    "string": _least_string,
    "boolean": lambda *_: False,
    "null": lambda *_: None,
}


def _pointed(root: Any, reference: str) -> Any:
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if found else None
    return found


class _Body(httpx.AsyncByteStream):
    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


def _response(status: int, content_type: str, parts: Any) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": content_type}, stream=_Body(iter(parts)))
