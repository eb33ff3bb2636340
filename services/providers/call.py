"""What a dialect is given and what it gives back: the words the worker and every dialect share.

A dialect is a module in `services/providers/dialects/` that satisfies `Dialect`: three pure
functions, no client, no log, no clock. What it makes of an answer is decoded read by read
(`decoding.Decoder`):

    read (bytes) --framing.Framing--> Event --dialect.reading(...).read--> Chunk

Failures are one exception, `AttemptFailed`; `refusals.py` decides what each kind of it means.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import httpx

from services.providers.presets import Preset

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Credential:
    """How the worker proves itself to an endpoint.

    `kind` is `none`, `bearer` (Authorization) or `header` (the secret as it is under `header`).
    An empty kind or header means the preset's own.
    """

    kind: str = "none"
    header: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model at one provider, as a dialect needs to know it.

    An empty `supported_parameters` means "not declared": then nothing is dropped for its sake.
    `max_completion_tokens` and `context_length` 0 mean unknown.
    """

    id: str
    base_url: str
    dialect: str
    preset: Preset
    upstream_model: str
    supported_parameters: frozenset[str] = frozenset()
    max_completion_tokens: int = 0
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A canonical call: an OpenAI chat completions body without the fields that are edge's.

    `body` is never changed by a dialect. `streamed`: ask the upstream to stream. `model` overrides
    the endpoint's upstream model where it is not empty. `headers` may carry `anthropic-beta`, the
    only header of a caller's that reaches an upstream.
    """

    body: Mapping[str, Any]
    streamed: bool = True
    model: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


class Event(NamedTuple):
    """One event of the wire: an SSE event's name (empty: none) and data; or, named `json`, a
    whole JSON reply; or, named `item`, one element of a reply that is a JSON array."""

    name: str
    data: bytes


@dataclass(slots=True)
class Usage:
    """What an upstream says it consumed, in disjoint units: no token is counted in two of them.

    Every count is >= 0. Where the upstream reported its prompt, UNIT_PROMPT is present (perhaps 0);
    where it reported its output, UNIT_COMPLETION is.
    """

    counts: dict[int, int]


@dataclass(slots=True)
class Chunk:
    """A piece of an answer.

    `choices` is the `choices` array of one `chat.completion.chunk`, ready to be encoded: each with
    `index`, `delta` and `finish_reason`; it may be empty. `finish_reason` and
    `native_finish_reason` repeat those of a choice that finishes here. `usage` is a snapshot that
    replaces every earlier one: the last wins. Its prompt counts always hold; its output counts
    hold if no chunk with content follows it. `usage_refused` says that the upstream reported
    counts that cannot be true (negative, absurd): they were taken as absent. Empty strings mean
    "not said".
    """

    choices: list[dict[str, Any]]
    usage: Usage | None = None
    finish_reason: str = ""
    native_finish_reason: str = ""
    upstream_id: str = ""
    model: str = ""
    service_tier: str = ""
    system_fingerprint: str = ""
    usage_refused: bool = False

    @property
    def has_content(self) -> bool:
        """Whether this commits an attempt: text, reasoning, a refusal, media or a tool call."""
        return has_content(self.choices)

    @property
    def content_bytes(self) -> int:
        """UTF-8 bytes of text, reasoning and tool calls here: what the house count is made of."""
        return content_bytes(self.choices)


class AttemptFailed(Exception):
    """One attempt failed, before its first content or after it.

    `status` is what edge answers if this was the last attempt, `upstream_status` what the upstream
    said (0: it did not get so far). `message` is ours and may be shown; `detail` is the upstream's
    own text, cut short, and never leaves the worker. `retry_after_ms` 0 means "not said".
    `reason` is one word for measures: refused, malformed, cut, empty, timeout, unreachable or
    unsayable.
    """

    def __init__(
        self,
        *,
        status: int,
        error_type: str,
        message: str,
        provider_code: str = "",
        upstream_status: int = 0,
        another_may_help: bool = True,
        another_model_may_help: bool = True,
        counts_against_uptime: bool = True,
        retry_after_ms: int = 0,
        field: str = "",
        detail: str = "",
        reason: str = "refused",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message
        self.provider_code = provider_code
        self.upstream_status = upstream_status
        self.another_may_help = another_may_help
        self.another_model_may_help = another_model_may_help
        self.counts_against_uptime = counts_against_uptime
        self.retry_after_ms = retry_after_ms
        self.field = field
        self.detail = detail
        self.reason = reason


class Reading(Protocol):
    """One answer being read: content as it comes, the final usage last.

    An error inside a 200, an answer that is malformed or empty and a stream that ends without its
    end raise AttemptFailed.
    """

    @property
    def done(self) -> bool:
        """Whether the answer's own end mark came: what follows it is not read."""

    def read(self, event: Event) -> Iterable[Chunk]:
        """Return what one event adds."""

    def end(self, cut: AttemptFailed | None = None) -> Iterable[Chunk]:
        """Judge how the answer ended, with the body or by being `cut`; return what is missing."""


class Dialect(Protocol):
    """How one family of providers writes our call and how we read its answer."""

    FRAMING: str

    def request(self, call: Call, endpoint: Endpoint, credential: Credential) -> httpx.Request:
        """Write a canonical call. Raise AttemptFailed (400, with `field`) where that cannot be."""

    def reading(self, preset: Preset) -> Reading:
        """Begin to read an answer, whole or streamed. `preset` is the endpoint's; it only settles
        what the answer itself leaves open."""

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed:
        """Say what a response that is not a 2xx means; header names are lower case."""


_TEXT_KEYS = frozenset({"content", "reasoning", "refusal"})
_CONTENT_KEYS = _TEXT_KEYS | {"tool_calls", "reasoning_details", "images", "audio"}


def has_content(choices: list[dict[str, Any]]) -> bool:
    """Whether any of these choices carries something a client would have read."""
    for choice in choices:
        for key, value in choice["delta"].items():
            if value and key in _CONTENT_KEYS:
                return True
    return False


def content_bytes(choices: list[dict[str, Any]]) -> int:
    """Return the UTF-8 bytes of text, reasoning, refusals and tool calls in these choices."""
    total = 0
    for choice in choices:
        for key, value in choice["delta"].items():
            if not value:
                continue
            if key in _TEXT_KEYS:
                total += len(value) if value.isascii() else len(value.encode())
            elif key == "tool_calls":
                for tool_call in value:
                    function = tool_call.get("function") or {}
                    total += len((function.get("name") or "").encode())
                    total += len((function.get("arguments") or "").encode())
                    custom = tool_call.get("custom")
                    if custom:
                        total += len((custom.get("name") or "").encode())
                        total += len((custom.get("input") or "").encode())
    return total
