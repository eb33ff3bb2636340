"""Recorded exchanges through the production path: a sample of each kind, however it is cut.

`python -m tests.recordings` decodes all of them; these tests stay below a minute.
"""

import os
import random
from functools import cache
from pathlib import Path

import orjson
import pytest

from services.providers.call import Call, Credential, Endpoint
from services.providers.dialects import openai_chat
from services.providers.presets import preset_of
from tests.recordings.__main__ import measure
from tests.recordings.decoding import (
    GENERATIONS,
    Answer,
    decode,
    differences,
    failure_of,
    is_refusal,
    is_success,
)
from tests.recordings.reading import Record, directory, raw, recordings, wire

pytestmark = pytest.mark.recordings

SMALL_BYTES = 6_000  # byte by byte is slow
SAMPLED = 40


@pytest.fixture(scope="module")
def root() -> Path:
    path = directory()
    missing = [kind for kind in GENERATIONS if not (path / f"{kind}.jsonl.gz").is_file()]
    if missing:
        why = f"no recordings of {', '.join(missing)} in {path}: set RECORDINGS or BOURSE_SHARED"
        if os.environ.get("BOURSE_REQUIRE_REAL") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return path


@cache
def _records(kind: str, root: Path) -> list[Record]:
    return list(recordings(kind, root))


def _sample(kind: str, root: Path) -> list[Record]:
    """A seeded sample that holds streams with recorded cuts, and of every provider something."""
    good = [record for record in _records(kind, root) if is_success(record) and raw(record)]
    small = [record for record in good if len(raw(record)) < SMALL_BYTES]
    draw = random.Random(7)
    chosen = draw.sample(small, min(SAMPLED, len(small)))
    seen = {record["provider"] for record in chosen}
    for record in small:
        if record["provider"] not in seen:
            seen.add(record["provider"])
            chosen.append(record)
    cut = [record for record in good if len(wire(record)) > 1]
    return chosen + draw.sample(cut, min(SAMPLED // 2, len(cut)))


def _seen(answer: Answer) -> object:
    """Everything a client could tell apart."""
    failure = answer.failure
    return (
        answer.text,
        answer.reasoning,
        [call.key() for call in answer.tool_calls],
        answer.finish_reason,
        answer.usage.counts if answer.usage else None,
        {key: value for key, value in answer.others.items() if value},
        (failure.reason, failure.status) if failure else None,
    )


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_recorded_answers_decode_to_what_was_recorded(kind: str, root: Path) -> None:
    counts, failures = await measure(kind, root)
    assert counts["total"] > 0
    share = min(
        counts[name] for name in ("decoded", "text", "tool_calls", "finish_reason", "usage")
    )
    assert share / counts["total"] >= 0.99, failures[:20]
    assert counts["errors in a 2xx"] == counts["errors in a 2xx recognised"]


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_f19_recorded_answers_decode_alike_at_every_cut(kind: str, root: Path) -> None:
    draw = random.Random(11)
    for record in _sample(kind, root):
        body = raw(record)
        whole = _seen(await decode(record, [body]))
        assert whole == _seen(await decode(record)), f"{record['id']} at its recorded reads"
        for _ in range(3):
            cuts = sorted(draw.sample(range(len(body) + 1), min(len(body), draw.randint(1, 40))))
            pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
            assert whole == _seen(await decode(record, pieces)), f"{record['id']} at {cuts}"
        if len(body) < SMALL_BYTES:
            single = [body[at : at + 1] for at in range(len(body))]
            assert whole == _seen(await decode(record, single)), f"{record['id']} byte by byte"
        if "event-stream" in (record.get("content_type") or ""):
            crlf = body.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            marked = b"\xef\xbb\xbf: comment\r\n\r\n" + crlf
            assert whole == _seen(await decode(record, [marked])), f"{record['id']} with CRLF"


@pytest.mark.parametrize("kind", GENERATIONS)
async def test_M5_recorded_usage_is_split_into_units_that_add_up(kind: str, root: Path) -> None:
    for record in _sample(kind, root):
        wrong = differences(record, await decode(record))
        if "decoded" not in wrong:
            assert "usage" not in wrong, f"{record['id']}: {wrong['usage']}"


@pytest.mark.parametrize("kind", GENERATIONS)
def test_every_recorded_refusal_is_typed(kind: str, root: Path) -> None:
    for record in _records(kind, root):
        if not is_refusal(record):
            continue
        failure = failure_of(record)
        assert failure.upstream_status == record["status"]
        assert failure.error_type not in ("", "unmapped"), record["id"]
        assert failure.status != 401, "an upstream's 401 is not the caller's"
        text = raw(record).decode()
        assert len(text) < 20 or text not in failure.message, "an upstream's body must not pass"


# What `openai_chat.request` may leave out or write differently, and why.
_ADDED = {"stream", "stream_options", "messages", "model"}
_REASONING = {"reasoning_effort", "reasoning", "thinking"}
_LIMITS = {"max_tokens", "max_completion_tokens"}
_EDGE_ONLY = {"provider", "models", "route", "transforms", "preset", "plugins", "usage"}
_DROPPED = {"moderation"}  # not of the public API: an unknown field is ignored


def test_recorded_chat_requests_are_written_as_recorded(root: Path) -> None:
    for record in _records("openai.chat", root):
        recorded = record["request"]
        preset = preset_of(record["provider"], "openai_chat")
        model = recorded.get("model") or "m"
        endpoint = Endpoint("e", "http://h/v1", "openai_chat", preset, model)
        call = Call(recorded, streamed=bool(recorded.get("stream")))
        request = openai_chat.request(call, endpoint, Credential())
        written = orjson.loads(request.content)

        kept = {preset.renames.get(key, key): value for key, value in recorded.items()}
        apart = _ADDED | _REASONING | _LIMITS
        gone = preset.drops | _EDGE_ONLY | _DROPPED | apart
        for key, value in kept.items():
            if key in gone or value is None:
                continue
            if key == "response_format" and not preset.json_schema:
                assert written[key]["type"] in ("json_object", value["type"])
                continue
            assert written.get(key) == value, f"{record['id']}: {key}"
        assert set(written) <= set(kept) | apart, record["id"]
        limits = [recorded[key] for key in sorted(_LIMITS) if recorded.get(key) is not None]
        assert [written[key] for key in _LIMITS if key in written] == limits[:1], record["id"]
        assert written["stream"] is bool(recorded.get("stream"))
        _same_messages(recorded["messages"], written["messages"], record["provider"], record["id"])


def _same_messages(recorded: list[Record], written: list[Record], provider: str, name: str) -> None:
    assert len(recorded) == len(written), name
    for theirs, ours in zip(recorded, written, strict=True):
        assert ours["role"] == theirs["role"] or theirs["role"] == "developer", name
        # Left out: names of tools (the id says it), marks and reasoning that this provider refuses.
        for key in set(theirs) - {"role", "name", "cache_control", "reasoning_details"}:
            if key in ("reasoning", "reasoning_content"):
                continue
            if key in ("tool_call_id", "tool_calls") and ours.get(key) != theirs[key]:
                assert provider == "mistral", name  # it takes ids of nine characters only
                continue
            if key == "content" and isinstance(theirs[key], list):
                assert [_bare(part) for part in ours[key]] == [_bare(part) for part in theirs[key]]
                continue
            assert ours.get(key) == theirs[key], f"{name}: {key}"


def _bare(part: object) -> object:
    if isinstance(part, dict):
        return {key: value for key, value in part.items() if key != "cache_control"}
    return part
