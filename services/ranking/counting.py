"""What an event adds to the rollups. Pure: events in, changes of numbers out.

A generation is its attempts and counts once, by its charged or last one. Events come in any order
and more than once, so each attempt has a merit, the best one seen counts, and when a better one
comes the numbers of the former are taken out again: the sums are the same whatever the order.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bourse import histogram
from bourse.rating import COMPLETION_UNITS, PROMPT_UNITS
from bourse.v1.events_pb2 import AttemptFinished, Outcome

HOUR_MS = 3_600_000
DAY_HOURS = 24
INPUT_BOUNDS = (1_000, 10_000, 100_000, 1_000_000)

PROBE = "probe"
"""Why an attempt without an account counts on no board: we made it ourselves."""


class Malformed(Exception):
    """An event that cannot be counted; the message names the field."""


class Attempt(NamedTuple):
    """What is kept of an attempt. `merit` 0: it alone does not make its generation count."""

    generation: str
    attempt: int
    merit: int
    excluded: str
    hour: int
    model: str
    account_hash: str
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int

    @property
    def standing(self) -> tuple[int, int]:
        return (self.merit, self.attempt)


@dataclass(slots=True)
class Changes:
    """Numbers to add, by key. Those of `models` and `accounts` may be negative."""

    models: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    """(hour, model) -> requests, prompt tokens, completion tokens, cost in nano-USD."""
    accounts: dict[tuple[int, str, str], list[int]] = field(default_factory=dict)
    """(day, model, account hash) -> requests, tokens."""
    endpoints: dict[tuple[int, str], "EndpointHour"] = field(default_factory=dict)
    histograms: dict[tuple[int, str, str, int, int], int] = field(default_factory=dict)
    """(hour, endpoint, measure, input bucket, bucket) -> count."""


@dataclass(slots=True)
class EndpointHour:
    model: str
    provider: str
    outcomes: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    charge_nano: int = 0
    insured_nano: int = 0


_SERVED = (
    Outcome.OUTCOME_COMPLETED,
    Outcome.OUTCOME_CLIENT_LEFT,
    Outcome.OUTCOME_CREDIT_EXHAUSTED,
    Outcome.OUTCOME_CACHED,
)
_OUTCOMES = {
    Outcome.OUTCOME_COMPLETED: "completed",
    Outcome.OUTCOME_CLIENT_LEFT: "client_left",
    Outcome.OUTCOME_CREDIT_EXHAUSTED: "credit_exhausted",
    Outcome.OUTCOME_HEDGE_LOST: "hedge_lost",
    Outcome.OUTCOME_CACHED: "cached",
    Outcome.OUTCOME_LOST: "lost",
}
_COMPLETED: int = Outcome.OUTCOME_COMPLETED  # looking it up costs more than comparing with it
_FAILED_BY_STATUS = {
    400: "refused",
    401: "denied",
    402: "denied",
    403: "refused",
    404: "denied",
    413: "refused",
    422: "refused",
    429: "limited",
}


def read(event: AttemptFinished, time_ms: int, account_hash: Callable[[str], str]) -> Attempt:
    """Return what is kept of an event; `time_ms` stands in where the event has no start.

    Raises Malformed.
    """
    if not event.generation or not event.model or not event.endpoint:
        raise Malformed("generation, model and endpoint must be named")
    prompt = completion = 0
    for part in event.usage:
        if part.count < 0:
            raise Malformed(f"usage: unit {part.unit} has the count {part.count}")
        if part.unit in PROMPT_UNITS:
            prompt += part.count
        elif part.unit in COMPLETION_UNITS:
            completion += part.count
    excluded = "" if event.account else PROBE
    return Attempt(
        generation=event.generation,
        attempt=event.attempt,
        merit=0 if excluded else _merit(event),
        excluded=excluded,
        hour=_finished_ms(event, time_ms) // HOUR_MS,
        model=event.model,
        account_hash="" if excluded else account_hash(event.account),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_nano=event.charge_nano,
    )


def _merit(event: AttemptFinished) -> int:
    if event.charge_nano > 0:
        return 3
    if event.outcome in _SERVED:
        return 2
    return 1 if event.final else 0


def _finished_ms(event: AttemptFinished, time_ms: int) -> int:
    if event.started_at_ms <= 0:
        return time_ms
    return event.started_at_ms + max(0, event.duration_ms)


def count_generations(changes: Changes, known: Iterable[Attempt], fresh: Sequence[Attempt]) -> None:
    """Add what `fresh` attempts change, given all `known` ones of the same generations."""
    before: dict[str, Attempt] = {}
    for attempt in known:
        _keep_better(before, attempt)
    after: dict[str, Attempt] = {}
    for attempt in fresh:
        _keep_better(after, attempt)
    for generation, attempt in after.items():
        counted = before.get(generation)
        if counted is None:
            _add(changes, attempt, 1)
        elif attempt.standing > counted.standing:
            _add(changes, counted, -1)
            _add(changes, attempt, 1)


def _keep_better(best: dict[str, Attempt], attempt: Attempt) -> None:
    if attempt.merit == 0:
        return
    kept = best.get(attempt.generation)
    if kept is None or attempt.standing > kept.standing:
        best[attempt.generation] = attempt


def _add(changes: Changes, attempt: Attempt, sign: int) -> None:
    prompt, completion = sign * attempt.prompt_tokens, sign * attempt.completion_tokens
    model = changes.models.setdefault((attempt.hour, attempt.model), [0, 0, 0, 0])
    model[0] += sign
    model[1] += prompt
    model[2] += completion
    model[3] += sign * attempt.cost_nano
    day = attempt.hour // DAY_HOURS
    key = (day, attempt.model, attempt.account_hash)
    account = changes.accounts.setdefault(key, [0, 0])
    account[0] += sign
    account[1] += prompt + completion


def count_endpoint(changes: Changes, event: AttemptFinished, attempt: Attempt) -> None:
    """Add an attempt to its endpoint's hour; every attempt counts there, except probes."""
    if attempt.excluded:
        return
    key = (attempt.hour, event.endpoint)
    hour = changes.endpoints.get(key)
    if hour is None:
        hour = changes.endpoints[key] = EndpointHour(event.model, event.provider)
    outcome = _OUTCOMES.get(event.outcome) or _FAILED_BY_STATUS.get(event.status, "failed")
    hour.outcomes[outcome] = hour.outcomes.get(outcome, 0) + 1
    hour.prompt_tokens += attempt.prompt_tokens
    hour.completion_tokens += attempt.completion_tokens
    hour.charge_nano += event.charge_nano
    hour.insured_nano += event.insured_nano
    size = input_bucket(attempt.prompt_tokens)
    if event.had_content and event.first_token_ms >= 0:
        _measure(changes, key, "first_token_ms", size, event.first_token_ms)
    if event.outcome == _COMPLETED and event.duration_ms > 0:
        speed = attempt.completion_tokens * 1_000 / event.duration_ms
        _measure(changes, key, "tokens_per_s", size, speed)


def _measure(changes: Changes, key: tuple[int, str], measure: str, size: int, value: float) -> None:
    place = (*key, measure, size, histogram.bucket(value))
    changes.histograms[place] = changes.histograms.get(place, 0) + 1


def input_bucket(prompt_tokens: int) -> int:
    """Return which of up to 1K, 10K, 100K, 1M or more tokens a prompt has, as 0 to 4."""
    return bisect_left(INPUT_BOUNDS, prompt_tokens)
