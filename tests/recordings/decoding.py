"""Decode recorded exchanges through the production path and compare with what they hold."""

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bourse.rating import COMPLETION_UNITS, PROMPT_UNITS
from bourse.v1.events_pb2 import Unit
from services.providers.call import AttemptFailed, Chunk, Usage
from services.providers.decoding import Decoder
from services.providers.presets import preset_of
from tests.recordings.expected import Expected, ToolCall, expected
from tests.recordings.reading import Record, raw, wire

DIALECTS = {
    "openai.chat": "openai_chat",
    "anthropic.messages": "anthropic_messages",
    "gemini.generateContent": "gemini",
    "gemini.streamGenerateContent": "gemini",
}
GENERATIONS = tuple(DIALECTS)


@dataclass
class Answer:
    """What came out of the decoder, put together as a client would."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    others: dict[str, Any] = field(default_factory=dict)
    failure: AttemptFailed | None = None


def dialect_of(kind: str) -> Any:
    """Return the module that speaks a recorded kind."""
    return importlib.import_module(f"services.providers.dialects.{DIALECTS[kind]}")


async def decode(record: Record, reads: Iterable[bytes] | None = None) -> Answer:
    """Decode a successful exchange: framing by content type, the dialect, the provider's preset."""
    dialect = DIALECTS[record["kind"]]
    preset = preset_of(record["provider"], dialect)
    decoder = Decoder(record.get("content_type") or "", dialect_of(record["kind"]).reading(preset))
    answer = Answer()
    calls: dict[tuple[int, int], ToolCall] = {}
    try:
        for data in wire(record) if reads is None else reads:
            for chunk in decoder.feed(data):
                _add(answer, calls, chunk)
            if decoder.done:
                break
        else:
            for chunk in decoder.end():
                _add(answer, calls, chunk)
    except AttemptFailed as failure:
        answer.failure = failure
    answer.tool_calls = [calls[index] for index in sorted(calls)]
    return answer


def _add(answer: Answer, calls: dict[tuple[int, int], ToolCall], chunk: Chunk) -> None:
    if chunk.usage is not None:
        answer.usage = chunk.usage
    for choice in chunk.choices:
        delta = choice["delta"]
        answer.text += delta.get("content") or ""
        answer.reasoning += delta.get("reasoning") or ""
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        for key in ("reasoning_details", "annotations", "images"):
            answer.others.setdefault(key, []).extend(delta.get(key) or ())
        answer.others["refusal"] = answer.others.get("refusal", "") + (delta.get("refusal") or "")
        for part in delta.get("tool_calls") or ():
            call = calls.setdefault((choice["index"], part["index"]), ToolCall())
            call.id = part.get("id") or call.id
            function = part.get("function") or {}
            call.name = function.get("name") or call.name
            call.arguments += function.get("arguments") or ""


def failed_answer(record: Record) -> str:
    """Return why a 2xx is no answer (`error`: an error inside it), or an empty string."""
    try:
        return expected(record).failure
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""


def differences(record: Record, answer: Answer) -> dict[str, str]:
    """Return what of `decoded, text, tool_calls, finish_reason, usage` is not as recorded."""
    if (record.get("body_text") or record.get("body")) and not _is_answer(record):
        return dict.fromkeys(_ASPECTS, "not an answer of this dialect")
    want = expected(record)
    if want.failure == "empty":
        # An answer without content, finish reason or error: a typed failure is its right reading.
        if answer.failure is None or answer.failure.reason != "empty":
            return dict.fromkeys(_ASPECTS, "an empty answer was taken for a good one")
        return _usage_differences(want, answer)
    if answer.failure is not None:
        why = f"{answer.failure.reason}: {answer.failure.message} {answer.failure.detail}"
        return dict.fromkeys(_ASPECTS, why)
    made = _usage_differences(want, answer)
    if answer.text != want.text:
        made["text"] = f"{want.text[:80]!r} became {answer.text[:80]!r}"
    theirs, ours = (
        [call.key() for call in calls] for calls in (want.tool_calls, answer.tool_calls)
    )
    ours = [
        ("", *call[1:]) if at < len(theirs) and not theirs[at][0] and call[0] else call
        for at, call in enumerate(ours)
    ]
    if ours != theirs:
        made["tool_calls"] = f"{theirs} became {ours}"
    if answer.finish_reason != want.finish_reason:
        made["finish_reason"] = f"{want.finish_reason} became {answer.finish_reason}"
    return made


_ASPECTS = ("decoded", "text", "tool_calls", "finish_reason", "usage")


def _is_answer(record: Record) -> bool:
    body = record.get("body")
    if body is None:
        return bool(re.search(r"^data:", record.get("body_text") or "", re.MULTILINE))
    documents: Sequence[Any] = body if isinstance(body, list) else [body]
    keys = {"choices", "content", "candidates", "usageMetadata"}
    return any(isinstance(document, dict) and keys & document.keys() for document in documents)


def _usage_differences(want: Expected, answer: Answer) -> dict[str, str]:
    counts = answer.usage.counts if answer.usage is not None else {}
    if not want.usage:
        return {"usage": f"nothing became {counts}"} if counts else {}
    writes = (Unit.UNIT_CACHE_WRITE, Unit.UNIT_CACHE_WRITE_1H)
    reads = (Unit.UNIT_CACHE_READ, Unit.UNIT_CACHE_READ_AUDIO)
    sums = {
        "prompt": PROMPT_UNITS,
        "output": COMPLETION_UNITS,
        "cache_read": reads,
        "cache_write": writes,
        "reasoning": (Unit.UNIT_REASONING,),
    }
    ours = {name: sum(counts.get(unit, 0) for unit in units) for name, units in sums.items()}
    wrong = {name: (count, ours[name]) for name, count in want.usage.items() if ours[name] != count}
    if any(count < 0 for count in counts.values()):
        wrong["negative"] = (0, min(counts.values()))
    return {"usage": f"(recorded, decoded): {wrong}"} if wrong else {}


def is_success(record: Record) -> bool:
    """Whether an exchange is a 2xx answer that is not an error inside."""
    status = record.get("status") or 0
    return 200 <= status < 300 and failed_answer(record) != "error"


def is_refusal(record: Record) -> bool:
    """Whether the provider answered with an error status."""
    return (record.get("status") or 0) >= 400


def failure_of(record: Record) -> AttemptFailed:
    """Map an error response through the production path."""
    made: AttemptFailed = dialect_of(record["kind"]).failure(
        record["status"], record.get("headers") or {}, raw(record)
    )
    return made
