"""Spans of what was sampled, by traceparent."""

import random
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | bool | int | float | Sequence[str]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NO_SPAN = 0
"""The span id of a trace that has no span yet: its first one becomes the root."""

_current: ContextVar[str] = ContextVar("traceparent", default="")
_tracer: "Tracer | None" = None
_root_trace_id = 0


def current() -> str:
    """Return the traceparent of the span that is open here; empty: not sampled."""
    return _current.get()


def enter(traceparent: str) -> None:
    """Let what follows in this task be part of a trace that came from elsewhere."""
    _current.set(traceparent)


def sample(parent: str | None, ratio: float) -> str:
    """Decide on a new request: return what to give to `span`, or "" when it is not sampled.

    A caller's trace is continued, but it is not the caller who decides. Nothing is sampled while
    nothing is exported.
    """
    if _tracer is None or random.random() >= ratio:
        return ""
    found = _parse(parent or "")
    trace_id, span_id = found or (random.getrandbits(128) or 1, _NO_SPAN)
    return _format(trace_id, span_id)


class Span(Protocol):
    """A span that is open within its `with` block."""

    traceparent: str
    """For what belongs below this span, here or elsewhere; empty: not sampled."""

    def set(self, key: str, value: Value) -> None:
        """Set an attribute."""

    def fail(self, error_type: str) -> None:
        """Mark the span as failed. An exception that leaves the block does so by itself."""

    def __enter__(self) -> "Span": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def span(
    name: str,
    traceparent: str,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] | None = None,
    links: Sequence[str] = (),
) -> Span:
    """Open a span below `traceparent`; within the block `current()` is the new span's.

    Without a traceparent nothing is made. Where nothing is exported the traceparent is passed on.
    `links` are traceparents of other spans that belong to this one; empty ones are left out.
    """
    if not traceparent:
        return _OFF
    parsed = _parse(traceparent, rootless=True)
    if _tracer is None or parsed is None:
        return _Passed(traceparent)
    trace_id, parent_id = parsed
    context = Context()
    if parent_id != _NO_SPAN:
        context = set_span_in_context(NonRecordingSpan(_context(trace_id, parent_id)), context)
    global _root_trace_id
    _root_trace_id = trace_id
    try:
        made = _tracer.start_span(
            name,
            context,
            SpanKind[kind.upper()],
            attributes,
            [Link(_context(*found)) for link in links if (found := _parse(link))],
        )
    finally:
        _root_trace_id = 0
    return _Recorded(made)


def trace_with(tracer: "Tracer | None") -> None:
    """Make spans with this tracer, which asks `root_trace_id` for new traces; None: make none."""
    global _tracer
    _tracer = tracer


def root_trace_id() -> int:
    """Return the trace id that `sample` drew for the root span being made; 0: there is none."""
    return _root_trace_id


class _Off:
    traceparent = ""

    def set(self, key: str, value: Value) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


_OFF = _Off()


class _Passed(_Off):
    """Stands for a span that nobody exports here: what is below belongs to the one above."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent
        self._before = ""

    def __enter__(self) -> Span:
        self._before = _current.get()
        _current.set(self.traceparent)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.set(self._before)


class _Recorded(_Passed):
    def __init__(self, span: "OtelSpan") -> None:
        context = span.get_span_context()
        super().__init__(_format(context.trace_id, context.span_id))
        self._span = span

    def set(self, key: str, value: Value) -> None:
        self._span.set_attribute(key, value)

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is not None:
            self.fail(kind.__qualname__)
        self._span.end()


def _parse(traceparent: str, rootless: bool = False) -> tuple[int, int] | None:
    """Return trace id and span id; None for what is no traceparent."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    return (trace_id, span_id) if trace_id and (span_id or rootless) else None


def _format(trace_id: int, span_id: int) -> str:
    return f"00-{format_trace_id(trace_id)}-{format_span_id(span_id)}-01"


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags.get_default())
