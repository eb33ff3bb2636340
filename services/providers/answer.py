"""What came of one attempt, and how it is told: the event, and the terminal frame.

Who pays in which ending is docs/money.md, "What is billed":

    completed, client_left, credit_exhausted    the customer, what was counted
    lost, hedge_lost                            the platform, the provider's share of it
    failed                                      nobody
"""

import time
from typing import Any, Literal

import httpx
import orjson

from bourse import rating
from bourse.v1.events_pb2 import (
    OUTCOME_CLIENT_LEFT,
    OUTCOME_COMPLETED,
    OUTCOME_CREDIT_EXHAUSTED,
    OUTCOME_FAILED,
    OUTCOME_HEDGE_LOST,
    OUTCOME_LOST,
    USAGE_SOURCE_UNSPECIFIED,
    AttemptFinished,
    CostLine,
    LeaseSpend,
    Outcome,
    UnitCount,
    UsageSource,
)
from bourse.v1.generation_pb2 import AttemptFacts, Failed, Finished
from services.providers import refusals
from services.providers.call import AttemptFailed, Chunk, content_bytes
from services.providers.metering import Meter, spends
from services.providers.records import insured_nano

CLIENT_CLOSED = 499

_CHARGED = frozenset(
    {
        OUTCOME_COMPLETED,
        OUTCOME_CLIENT_LEFT,
        OUTCOME_CREDIT_EXHAUSTED,
    }
)
_INSURED = frozenset({OUTCOME_LOST, OUTCOME_HEDGE_LOST})
_SURVIVES_A_CUT = frozenset({"cut", "timeout", "malformed"})
_WORD_MAX = 200
_THOUGHTS = frozenset({"reasoning", "reasoning_details"})
_BESIDE_TEXT = _THOUGHTS | {"images", "audio", "annotations"}

_MONEY_FIELDS: tuple[
    Literal[
        "usage",
        "usage_source",
        "cost_lines",
        "list_nano",
        "charge_nano",
        "commission_nano",
        "insured_nano",
        "lease_spends",
    ],
    ...,
] = (
    "usage",
    "usage_source",
    "cost_lines",
    "list_nano",
    "charge_nano",
    "commission_nano",
    "insured_nano",
    "lease_spends",
)


class Answer:
    """One attempt's answer as it comes."""

    __slots__ = (
        "_cost_lines",
        "_finish_reason",
        "_native_finish_reason",
        "_open_choices",
        "_service_tier",
        "_system_fingerprint",
        "_upstream_id",
        "_usage",
        "asked",
        "event",
        "facts",
        "first_token_ms",
        "had_content",
        "heard_last_at",
        "holds",
        "meter",
        "opened_at",
        "response",
        "sent_at",
        "started",
        "waiting",
    )

    def __init__(self, facts: AttemptFacts, event: AttemptFinished) -> None:
        self.facts = facts
        self.event = event
        self.holds: list[LeaseSpend] = list(facts.holds)
        self.meter: Meter | None = None
        self.response: httpx.Response | None = None
        self.opened_at = self.sent_at = time.monotonic()
        self.first_token_ms = -1
        self.had_content = self.started = self.asked = False
        self.waiting: list[dict[str, Any]] = []
        """Choices that came before any content: roles, or the finish of an empty answer."""
        self.heard_last_at = 0.0
        self._open_choices: set[int] = set()
        self._usage: list[UnitCount] = []
        self._cost_lines: list[CostLine] = []
        self._finish_reason = self._native_finish_reason = ""
        self._upstream_id = self._service_tier = self._system_fingerprint = ""

    @property
    def upstream_id(self) -> str:
        return self._upstream_id

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return bool(self._finish_reason) and not self._open_choices

    def take(self, chunk: Chunk, meter: Meter) -> bool:
        """Note what a chunk says; return whether it holds content. Raises AttemptFailed."""
        written_bytes = content_bytes(chunk.choices)
        has_content = written_bytes > 0 or chunk.has_content
        meter.take(chunk, written_bytes, has_content)
        if chunk.upstream_id and not self._upstream_id:
            self._upstream_id = _word(chunk.upstream_id)
        if chunk.service_tier:
            self._service_tier = chunk.service_tier
        if chunk.system_fingerprint:
            self._system_fingerprint = chunk.system_fingerprint
        for choice in chunk.choices:
            if not _BESIDE_TEXT.isdisjoint(choice["delta"]):
                _note_beside(choice["delta"], meter)
            if choice["finish_reason"] is None:
                self._open_choices.add(choice["index"])
            else:
                self._open_choices.discard(choice["index"])
        if chunk.finish_reason:
            if chunk.finish_reason == "error":
                raise refusals.refused(502, code=chunk.native_finish_reason, upstream_status=200)
            self._finish_reason = chunk.finish_reason
            self._native_finish_reason = _word(chunk.native_finish_reason)
        return has_content

    def first(self, choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the first choices to send: with them what came before the content."""
        first_token_s = time.monotonic() - self.sent_at
        self.first_token_ms = max(0, round(first_token_s * 1000)) if self.had_content else -1
        by_index = {choice["index"]: choice for choice in choices}
        before: list[dict[str, Any]] = []
        for choice in self.waiting:
            later = by_index.get(choice["index"])
            if later is None:
                before.append(choice)
                continue
            later["delta"] = {**choice["delta"], **later["delta"]}
            if later["finish_reason"] is None and choice["finish_reason"] is not None:
                later.update({**choice, "delta": later["delta"]})
        self.waiting.clear()
        return [*before, *choices]

    def judge(self, failure: AttemptFailed) -> tuple["Outcome.ValueType", AttemptFailed | None]:
        """A failure after every finish reason has come takes nothing away from the answer."""
        if self.finished and failure.reason in _SURVIVES_A_CUT:
            return OUTCOME_COMPLETED, None
        return OUTCOME_FAILED, failure

    def progress(self) -> AttemptFinished:
        """What a checkpoint says: the event's fields that are new since the intent."""
        event = AttemptFinished(
            had_content=self.had_content,
            first_token_ms=self.first_token_ms,
            upstream_id=self._upstream_id,
            status=200,
            lease_spends=self.holds[len(self.facts.holds) :],
        )
        self._count(event)
        return event

    def settle(
        self, outcome: "Outcome.ValueType", failure: AttemptFailed | None, *, decided: bool
    ) -> Finished | Failed:
        """Complete the event; return the frame that says the same.

        `decided`: nothing of this generation can follow, whatever the failure says.
        """
        event = self.event
        event.outcome = outcome
        event.had_content = self.had_content
        event.first_token_ms = self.first_token_ms
        event.upstream_id = self._upstream_id
        event.finish_reason = "error" if outcome == OUTCOME_FAILED else self._finish_reason
        event.native_finish_reason = self._native_finish_reason
        event.duration_ms = round((time.monotonic() - self.opened_at) * 1000)
        self._count(event)
        if outcome in _CHARGED:
            event.charge_nano = event.list_nano
            event.commission_nano = rating.commission_nano(
                event.list_nano, event.price.commission_bps
            )
        elif outcome in _INSURED:
            event.insured_nano = insured_nano(event, sum(hold.amount_nano for hold in self.holds))
        del event.lease_spends[:]
        if event.charge_nano:
            event.lease_spends.extend(spends(self.holds, event.charge_nano))
        if self.meter is not None and self.meter.answered:
            event.status = 200
        if outcome == OUTCOME_COMPLETED:
            event.final = True
            return self._finished()
        return self._failed(outcome, failure, decided)

    def write_off(self) -> Failed:
        """Make of an event that could not be completed one without money; return its frame."""
        event = self.event
        event.outcome = OUTCOME_LOST
        for field in _MONEY_FIELDS:
            event.ClearField(field)
        event.status, event.error_type, event.final = 500, "server", True
        return Failed(
            outcome=OUTCOME_LOST,
            status=500,
            error_type="server",
            message="The exchange failed to serve this request.",
        )

    def _count(self, event: AttemptFinished) -> None:
        counts: list[UnitCount] = []
        source: UsageSource.ValueType = USAGE_SOURCE_UNSPECIFIED
        if self.meter is not None:
            counts, source = self.meter.counts()
            event.usage_refused = self.meter.refused
            event.prompt_bytes = self.meter.prompt_bytes
            event.completion_bytes = self.meter.completion_bytes
        rated = rating.rate(counts, self.facts.price)
        event.usage.extend(counts)
        event.usage_source = source
        event.cost_lines.extend(rated.cost_lines)
        event.list_nano = rated.total_nano
        self._usage, self._cost_lines = counts, rated.cost_lines

    def _finished(self) -> Finished:
        event = self.event
        upstream_s = (self.heard_last_at or time.monotonic()) - self.sent_at
        return Finished(
            usage=self._usage,
            usage_source=event.usage_source,
            cost_lines=self._cost_lines,
            list_nano=event.list_nano,
            charge_nano=event.charge_nano,
            commission_nano=event.commission_nano,
            finish_reason=self._finish_reason,
            native_finish_reason=self._native_finish_reason,
            upstream_id=self._upstream_id,
            service_tier=_word(self._service_tier),
            system_fingerprint=_word(self._system_fingerprint),
            duration_ms=event.duration_ms,
            upstream_ms=max(0, round(upstream_s * 1000)),
        )

    def _failed(
        self, outcome: "Outcome.ValueType", failure: AttemptFailed | None, decided: bool
    ) -> Failed:
        event = self.event
        failed = Failed(outcome=outcome, spent=self._finished())
        if failure is not None:
            follows = not (decided or self.started or self.facts.last)
            failed.status = failure.status
            failed.error_type = event.error_type = failure.error_type
            failed.message = failure.message
            failed.provider_code = event.provider_code = failure.provider_code
            failed.upstream_status = failure.upstream_status
            failed.another_may_help = follows and failure.another_may_help
            failed.another_model_may_help = follows and failure.another_model_may_help
            failed.retry_after_ms = event.retry_after_ms = failure.retry_after_ms
            failed.field = failure.field
            event.status = failure.upstream_status or event.status
            decided = not (failed.another_may_help or failed.another_model_may_help)
        event.final = decided and outcome != OUTCOME_HEDGE_LOST
        return failed


def _word(text: str) -> str:
    """A provider's label as every store can hold it."""
    return text[:_WORD_MAX].replace("\0", "")


def _note_beside(delta: dict[str, Any], meter: Meter) -> None:
    """Tell the meter of what is not text: it bounds what the upstream may report."""
    if not _THOUGHTS.isdisjoint(delta):
        meter.reasoned = True
    beside = [value for key, value in delta.items() if key in _BESIDE_TEXT and key != "reasoning"]
    if beside:
        meter.media_bytes += len(orjson.dumps(beside))
