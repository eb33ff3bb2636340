"""Attempts as workers record them."""

from typing import Any

from bourse.event_log.envelope import envelope
from bourse.v1.events_pb2 import AttemptFinished, Envelope, Outcome, Unit, UnitCount

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = 20_000 * DAY_MS + 12 * HOUR_MS
"""Noon of some day."""


def attempt(generation: str = "g1", number: int = 1, **facts: Any) -> AttemptFinished:
    """A completed, charged and last attempt of 30 prompt and 12 completion tokens."""
    prompt = facts.pop("prompt", 30)
    completion = facts.pop("completion", 12)
    finished_ms = facts.pop("finished_ms", NOW_MS)
    defaults: dict[str, Any] = {
        "account": "account-1",
        "model": "author/model",
        "endpoint": "e1",
        "provider": "p1",
        "outcome": Outcome.OUTCOME_COMPLETED,
        "final": True,
        "had_content": True,
        "first_token_ms": 100,
        "started_at_ms": finished_ms - 1_000,
        "duration_ms": 1_000,
        "charge_nano": 7,
        "usage": [
            UnitCount(unit=Unit.UNIT_PROMPT, count=prompt),
            UnitCount(unit=Unit.UNIT_COMPLETION, count=completion),
        ],
    }
    return AttemptFinished(generation=generation, attempt=number, **(defaults | facts))


def failed(generation: str = "g1", number: int = 1, **facts: Any) -> AttemptFinished:
    """An attempt that failed before content, after which another follows."""
    defaults: dict[str, Any] = {
        "outcome": Outcome.OUTCOME_FAILED,
        "status": 503,
        "final": False,
        "had_content": False,
        "first_token_ms": -1,
        "charge_nano": 0,
        "prompt": 0,
        "completion": 0,
    }
    return attempt(generation, number, **(defaults | facts))


def wrapped(event: AttemptFinished) -> Envelope:
    return envelope(
        id=f"{event.generation}:attempt:{event.attempt}",
        type="AttemptFinished",
        source="worker/w",
        subject=event.generation,
        data=event.SerializeToString(),
        time_ms=event.started_at_ms + event.duration_ms,
    )
