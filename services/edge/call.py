"""A chat completions request: parsed, checked, and as it goes to the worker."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from bourse.v1.routing_pb2 import ProviderPreferences
from services.edge import messages, preferences
from services.edge.errors import ApiError, invalid
from services.edge.fields import CHECKS, SESSION_ID_MAX

EDGE_ONLY = frozenset(
    {
        "model", "models", "route", "provider", "plugins", "transforms", "session_id", "metadata",
        "trace", "preset", "debug", "usage", "stream", "stream_options", "user", "extra_body",
    }
)  # fmt: skip
"""What the call to a worker leaves out. `user` goes hashed."""

PARAMETERS: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "temperature", "top_p", "top_k", "top_a", "min_p", "frequency_penalty",
            "presence_penalty", "repetition_penalty", "max_tokens", "seed", "logit_bias",
            "logprobs", "top_logprobs", "stop", "tools", "tool_choice", "parallel_tool_calls",
            "response_format", "reasoning", "include_reasoning", "verbosity", "prediction",
            "web_search_options",
        )
    },
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "reasoning",
}  # fmt: skip
"""Body field → the parameter that an endpoint must support for it."""

_SESSION = b"x-session-id"
_REFERER = b"http-referer"
_TITLES = (b"x-bourse-title", b"x-openrouter-title", b"x-title")
_WANTS_METADATA = (
    b"x-bourse-metadata",
    b"x-openrouter-metadata",
    b"x-bourse-experimental-metadata",
    b"x-openrouter-experimental-metadata",
)
_TRACEPARENT = b"traceparent"
_HEADERS = frozenset({_SESSION, _REFERER, *_TITLES, *_WANTS_METADATA, _TRACEPARENT})

DEFAULT_TOKENS_PER_BYTE = 0.25
_BUCKET_BITS = 4
_SHORT_PROMPT_TOKENS = 64
_HEADER_MAX = 512


@dataclass(slots=True)
class Call:
    """One request for a completion."""

    body: dict[str, Any]
    models: tuple[str, ...]
    streamed: bool
    max_tokens: int
    """0: not given."""
    preferences: ProviderPreferences
    parameters: tuple[str, ...]
    input_modalities: tuple[str, ...]
    text_bytes: int
    """Of the body, without media: what prompt estimates are made from."""
    media_tokens: int
    session_id: str = ""
    app: str = ""
    app_title: str = ""
    wants_metadata: bool = False
    traceparent: str = ""
    _key: tuple[Any, ...] = field(default=())

    @property
    def prompt_tokens(self) -> int:
        """The estimate that size filters use, at the default ratio."""
        return int(self.text_bytes * DEFAULT_TOKENS_PER_BYTE) + self.media_tokens + 1

    @property
    def prompt_tokens_bucket(self) -> int:
        """The estimate rounded up, by at most an eighth, so that plans can be reused."""
        tokens = self.prompt_tokens
        if tokens <= _SHORT_PROMPT_TOKENS:
            return _SHORT_PROMPT_TOKENS
        step = 1 << max(tokens.bit_length() - _BUCKET_BITS, 0)
        return -(-tokens // step) * step

    def plan_key(self) -> tuple[Any, ...]:
        """All inputs of routing's filters: requests with equal keys may share a plan."""
        if not self._key:
            self._key = (
                self.models,
                b""
                if self.preferences is preferences.NONE
                else self.preferences.SerializeToString(deterministic=True),
                self.prompt_tokens_bucket,
                self.max_tokens,
                self.parameters,
                self.input_modalities,
            )
        return self._key

    def canonical(self, account: str, max_tokens: int) -> bytes:
        """Return the call for the worker; `max_tokens` (0: as given) lowers the client's own.

        Raises ApiError 400 for a body nested too deeply to be written again.
        """
        body = {name: value for name, value in self.body.items() if name not in EDGE_ONLY}
        user = self.body.get("user")
        if user:
            body["user"] = hashlib.sha256(f"{account}:{user}".encode()).hexdigest()
        if max_tokens:
            name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
            body[name] = max_tokens
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError as error:
            raise invalid("body", "The body is nested too deeply.") from error

    def sticky_seed(self, account: str) -> bytes:
        """What makes one conversation draw the same endpoint every time."""
        if self.session_id:
            return f"{account}\0{self.models[0]}\0{self.session_id}".encode()
        first: list[Any] = []
        conversation = self.body["messages"]
        for roles in (("system", "developer"), ("user", "assistant", "tool", "function")):
            found = next((one for one in conversation if one["role"] in roles), None)
            first.append(None if found is None else found.get("content"))
        try:
            content = orjson.dumps(first)
        except orjson.JSONEncodeError:
            content = b""
        return f"{account}\0{self.models[0]}\0".encode() + content


def parse(body: bytes, headers: Mapping[bytes, bytes]) -> Call:
    """Return the call a request body and its headers (lower-case names) make.

    Raises ApiError 400, naming the field at fault in `metadata.field`.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid("body", f"The body is not valid JSON: {error}.") from error
    if type(value) is not dict:
        raise invalid("body", "The body must be a JSON object.")
    checks, parameters = CHECKS, PARAMETERS
    used: set[str] = set()
    for name, item in value.items():
        if item is None:
            continue
        if name in checks:
            checks[name](name, item)
        if name in parameters:
            used.add(parameters[name])
    if "messages" not in value:
        raise invalid("messages", "`messages` is missing.")
    inputs = messages.check("messages", value["messages"])
    wanted = preferences.read(value.get("provider"), value.get("route"))
    if "reasoning_effort" in value:
        _reasoning(value)
    if "response_format" in value:
        response_format = value["response_format"]
        if response_format is not None and response_format["type"] == "json_schema":
            used.add("structured_outputs")
    if value.get("service_tier") == "fast":
        value["service_tier"] = "priority"
    call = Call(
        body=value,
        models=_models(value),
        streamed=value.get("stream") is True,
        max_tokens=value.get("max_completion_tokens") or value.get("max_tokens") or 0,
        preferences=wanted,
        parameters=tuple(sorted(used)) if used else (),
        input_modalities=tuple(sorted(inputs.modalities)) if inputs.modalities else (),
        text_bytes=max(len(body) - inputs.media_bytes, 0),
        media_tokens=inputs.media_tokens,
        session_id=value.get("session_id") or "",
    )
    if not _HEADERS.isdisjoint(headers):
        _read_headers(call, headers)
    return call


def _read_headers(call: Call, headers: Mapping[bytes, bytes]) -> None:
    """Put what headers say into the call. Raises ApiError 400."""
    call.session_id = call.session_id or _session(headers)
    call.app = _header(headers, _REFERER)
    call.app_title = _header(headers, *_TITLES)
    call.wants_metadata = _header(headers, *_WANTS_METADATA).lower() == "enabled"
    call.traceparent = _header(headers, _TRACEPARENT)


def _header(headers: Mapping[bytes, bytes], *names: bytes) -> str:
    """Return the first of these headers as text, cut at 512 characters; empty when absent."""
    for name in names:
        value = headers.get(name)
        if value:
            return value[:_HEADER_MAX].decode("utf-8", "replace")
    return ""


def _session(headers: Mapping[bytes, bytes]) -> str:
    session = _header(headers, _SESSION)
    if len(session) > SESSION_ID_MAX:
        raise ApiError(
            400,
            f"`x-session-id` must not be longer than {SESSION_ID_MAX} characters.",
            error_type="string_too_long",
            field="session_id",
        )
    return session


def _models(value: Mapping[str, Any]) -> tuple[str, ...]:
    model = value.get("model")
    names = [] if model is None else [_model("model", model)]
    if value.get("models"):
        for index, name in enumerate(value["models"]):
            if _model(f"models[{index}]", name) not in names:
                names.append(name)
    if not names:
        raise invalid("model", "`model` is missing.")
    return tuple(names)


def _model(path: str, name: str) -> str:
    if not name:
        raise invalid(path, f"`{path}` must not be empty.")
    if name.endswith(":online"):
        raise invalid(path, "`:online` is not offered here.")
    return name


def _reasoning(value: Mapping[str, Any]) -> None:
    effort = value.get("reasoning_effort")
    nested = (value.get("reasoning") or {}).get("effort")
    if effort is not None and nested is not None and effort != nested:
        raise invalid("reasoning_effort", "`reasoning_effort` and `reasoning.effort` differ.")
