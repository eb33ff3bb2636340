"""Usage that providers really reported is believed: the bounds on reports are wide enough."""

from collections.abc import Iterator
from typing import Any

import pytest

from bourse.v1.events_pb2 import AttemptFinished, PriceVersion
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.answer import Answer
from services.providers.call import AttemptFailed, Chunk
from services.providers.decoding import Decoder
from services.providers.metering import Meter
from services.providers.presets import preset_of
from tests.recordings.decoding import DIALECTS, GENERATIONS, dialect_of, is_refusal, is_success
from tests.recordings.reading import Record, directory, recordings, wire

pytestmark = pytest.mark.recordings


@pytest.mark.parametrize("kind", GENERATIONS)
def test_M10_every_recorded_report_of_output_is_believed(kind: str) -> None:
    if not (directory() / f"{kind}.jsonl.gz").is_file():
        pytest.skip(f"no recordings of {kind}: set RECORDINGS or BOURSE_SHARED")
    good = [
        record
        for record in recordings(kind, directory())
        if is_success(record) and not is_refusal(record)
    ]
    assert good
    assert [record["id"] for record in good if _refused(kind, record)] == []


def _refused(kind: str, record: Record) -> bool:
    preset = preset_of(record["provider"], DIALECTS[kind])
    hidden = preset.reasoning_outside_completion
    meter = Meter(_limits(record), PriceVersion(), 0, 0.25, 0.25, hidden_reasoning=hidden)
    meter.answered = True
    answer = Answer(AttemptFacts(), AttemptFinished())
    decoder = Decoder(record.get("content_type") or "", dialect_of(kind).reading(preset))
    try:
        for chunk in _chunks(decoder, wire(record)):
            answer.take(chunk, meter)
    except AttemptFailed:
        return False  # no answer: what others test
    meter.counts()
    return meter.refused


def _chunks(decoder: Decoder, reads: list[bytes]) -> Iterator[Chunk]:
    for data in reads:
        yield from decoder.feed(data)
        if decoder.done:
            return
    yield from decoder.end()


def _limits(record: Record) -> dict[str, Any]:
    """What of a call bounds the output; its prompt, which is not in question, counts as media."""
    asked = record.get("request")
    asked = asked if isinstance(asked, dict) else {}
    names = ("n", "max_tokens", "max_completion_tokens")
    media = [{"role": "user", "content": [{"type": "image_url"}]}]
    return {"messages": media, **{name: asked[name] for name in names if name in asked}}
