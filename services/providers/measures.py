"""What the worker counts and traces, under the names of the GenAI conventions."""

from collections.abc import Iterable, Set

from bourse import rating, telemetry
from bourse.event_log.spool import Spool
from bourse.v1.events_pb2 import OUTCOME_COMPLETED, AttemptFinished, Outcome, UnitCount
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.records import Records

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CHAT = "chat"


class Measures:
    """Counts the attempts of a worker. Account and key are in no label."""

    def __init__(self, spool: Spool, records: Records) -> None:
        self._attempts = telemetry.counter(
            "bourse.attempts", "{attempt}", "Attempts that ended, by provider and outcome"
        )
        self._duration_s = telemetry.histogram(
            "gen_ai.client.operation.duration", "s", "From an attempt's start to its end"
        )
        self._first_chunk_s = telemetry.histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Until the first content"
        )
        telemetry.gauge(
            "bourse.spool.depth", "{event}", "Events not shipped yet", lambda: spool.depth
        )
        telemetry.gauge("bourse.spool.bytes", "By", "Their size", lambda: spool.bytes)
        telemetry.gauge(
            "bourse.spool.unshipped", "USD", "Their charges", lambda: records.unshipped_nano / 1e9
        )
        telemetry.gauge(
            "bourse.attempts.open", "{attempt}", "Attempts under way", lambda: records.open_attempts
        )

    def count(self, event: AttemptFinished) -> None:
        provider = event.provider
        self._attempts.add(1, provider=provider, outcome=_OUTCOME_NAMES[event.outcome])
        self._duration_s.record(event.duration_ms / 1000, provider=provider)
        if event.first_token_ms >= 0:
            self._first_chunk_s.record(event.first_token_ms / 1000, provider=provider)


def span(facts: AttemptFacts) -> telemetry.Span:
    """Open the span of a sampled attempt."""
    return telemetry.span(
        f"{CHAT} {facts.model}",
        facts.traceparent,
        "client",
        {
            OPERATION: CHAT,
            REQUEST_MODEL: facts.model,
            "bourse.generation": facts.generation,
            "bourse.attempt": facts.attempt,
        },
    )


def describe(opened: telemetry.Span, event: AttemptFinished) -> None:
    """Say in a span how its attempt ended. No text of anybody's."""
    opened.set(PROVIDER, event.provider)
    opened.set(RESPONSE_ID, event.upstream_id)
    opened.set("bourse.outcome", _OUTCOME_NAMES[event.outcome])
    opened.set(INPUT_TOKENS, _tokens(event.usage, rating.PROMPT_UNITS))
    opened.set(OUTPUT_TOKENS, _tokens(event.usage, rating.COMPLETION_UNITS))
    if event.finish_reason:
        opened.set(FINISH_REASONS, [event.finish_reason])
    if event.first_token_ms >= 0:
        opened.set(FIRST_CHUNK, event.first_token_ms / 1000)
    if event.outcome != OUTCOME_COMPLETED and event.error_type:
        opened.fail(event.error_type)


def _tokens(usage: Iterable[UnitCount], units: Set[int]) -> int:
    return sum(item.count for item in usage if item.unit in units)


_OUTCOME_NAMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in Outcome.items()}
