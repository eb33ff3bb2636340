"""How each endpoint does, from the attempts of the last 30 minutes on the topic `generations`."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from bourse import histogram
from bourse.event_log import Record
from bourse.rating import COMPLETION_UNITS
from bourse.v1.events_pb2 import AttemptFinished, Envelope
from services.routing.cooldown import CoolDown
from services.routing.verdict import Verdict, judge
from services.routing.windows import Windows

log = logging.getLogger(__name__)

ATTEMPT_FINISHED = "AttemptFinished"

SECOND_MS = 1_000
MINUTE_MS = 60_000

GATE_SLOTS = 30
GATE_FAILURES = 3
GATE_PERCENT = 20
GATE_IN_A_ROW = 5
IN_A_ROW_KEPT_MS = 5 * MINUTE_MS
UPTIME_MINUTES = 30
UPTIME_COUNTED = 100
MEASURED_MINUTES = 5
FORGET_AFTER_MS = 30 * MINUTE_MS
SHIPPED_KEPT = 10_000

LIMITED_FIRST_MS = 10 * SECOND_MS
LIMITED_LONGEST_MS = 60 * SECOND_MS
RETRY_AFTER_LONGEST_MS = 5 * MINUTE_MS
UNPAID_FIRST_MS = 60 * SECOND_MS
UNPAID_LONGEST_MS = 15 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Condition:
    """What policy asks of one endpoint at one moment."""

    stable: bool
    uptime: float | None
    """Percent over 30 minutes; None when fewer than 100 attempts were counted."""
    cooling_until_ms: int
    """Passed over before this moment; 0: not cooling."""
    cooling_after: str
    """`429`, or `401 or 402`; empty when not cooling."""


UNKNOWN = Condition(stable=True, uptime=None, cooling_until_ms=0, cooling_after="")


class Health:
    """A view in memory that any replica builds alike from the same records."""

    def __init__(self) -> None:
        self.seen_ms = 0
        """The finish of the latest attempt taken in; names this state in a plan's version."""
        self._endpoints: dict[str, _Endpoint] = {}
        self._shipped: dict[tuple[int, str, str], int] = {}
        self._swept_ms = 0

    def apply(self, records: Iterable[Record], now_ms: int) -> None:
        """Take records in order. One that cannot be read is passed over: this is only a view."""
        for record in records:
            if record.value is None:
                continue
            try:
                envelope = Envelope.FromString(record.value)
                if envelope.type != ATTEMPT_FINISHED:
                    continue
                attempt = AttemptFinished.FromString(envelope.data)
            except DecodeError as error:
                log.error("generations record %s is unreadable: %s", record.offset, error)
                continue
            if not self._again(record.partition, attempt):
                self._take(attempt, now_ms)
        self._sweep(now_ms)

    def condition(self, endpoint: str, now_ms: int) -> Condition:
        found = self._endpoints.get(endpoint)
        return UNKNOWN if found is None else found.condition(now_ms)

    def uptime(self, endpoint: str, minutes: int, now_ms: int) -> tuple[int, int]:
        """Return (counted, failed) over the last 5 or 30 minutes."""
        found = self._endpoints.get(endpoint)
        return (0, 0) if found is None else found.minutes.total(now_ms, minutes)

    def latency_ms(self, endpoint: str, now_ms: int) -> float | None:
        """The median time to first token over 5 minutes."""
        found = self._endpoints.get(endpoint)
        return None if found is None else found.latency.median(now_ms)

    def throughput(self, endpoint: str, now_ms: int) -> float | None:
        """The median of output tokens per second over 5 minutes."""
        found = self._endpoints.get(endpoint)
        return None if found is None else found.throughput.median(now_ms)

    def _again(self, partition: int, attempt: AttemptFinished) -> bool:
        """Whether a forwarder sent this before: within a partition, a boot's `seq` only grows."""
        if not attempt.seq:
            return False
        key = (partition, attempt.worker, attempt.boot)
        if attempt.seq <= self._shipped.get(key, 0):
            return True
        self._shipped[key] = attempt.seq
        return False

    def _take(self, attempt: AttemptFinished, now_ms: int) -> None:
        # A clock that runs ahead must not put an attempt where no window reaches it.
        finished_ms = min(attempt.started_at_ms + max(0, attempt.duration_ms), now_ms)
        if finished_ms < now_ms - FORGET_AFTER_MS or not attempt.endpoint:
            return
        endpoint = self._endpoints.get(attempt.endpoint)
        if endpoint is None:
            endpoint = self._endpoints[attempt.endpoint] = _Endpoint()
        endpoint.take(attempt, finished_ms)
        self.seen_ms = max(self.seen_ms, finished_ms)

    def _sweep(self, now_ms: int) -> None:
        if now_ms - self._swept_ms < MINUTE_MS:
            return
        self._swept_ms = now_ms
        oldest = now_ms - FORGET_AFTER_MS
        self._endpoints = {
            name: kept for name, kept in self._endpoints.items() if kept.seen_ms >= oldest
        }
        if len(self._shipped) > SHIPPED_KEPT:
            for key in list(self._shipped)[:-SHIPPED_KEPT]:
                del self._shipped[key]


class _Endpoint:
    """All that is remembered of one endpoint; its size does not depend on its traffic."""

    __slots__ = (
        "failed_in_a_row",
        "failed_ms",
        "latency",
        "limited",
        "minutes",
        "seconds",
        "seen_ms",
        "throughput",
        "unpaid",
    )

    def __init__(self) -> None:
        self.seen_ms = 0
        self.seconds = Windows(SECOND_MS, GATE_SLOTS)
        self.minutes = Windows(MINUTE_MS, UPTIME_MINUTES)
        self.failed_in_a_row = 0
        self.failed_ms = 0
        self.limited = CoolDown(LIMITED_FIRST_MS, LIMITED_LONGEST_MS, RETRY_AFTER_LONGEST_MS)
        self.unpaid = CoolDown(UNPAID_FIRST_MS, UNPAID_LONGEST_MS)
        self.latency = _Measure()
        self.throughput = _Measure()

    def take(self, attempt: AttemptFinished, finished_ms: int) -> None:
        self.seen_ms = max(self.seen_ms, finished_ms)
        verdict = judge(attempt)
        started_ms = attempt.started_at_ms
        if verdict is Verdict.LIMITED:
            self.limited.refused(started_ms, finished_ms, attempt.retry_after_ms)
        elif verdict is Verdict.UNPAID:
            self.unpaid.refused(started_ms, finished_ms)
        elif verdict is Verdict.OK:
            self.limited.succeeded(started_ms)
            self.unpaid.succeeded(started_ms)
        failed = verdict is Verdict.FAILED or verdict is Verdict.UNPAID
        self.seconds.add(finished_ms, failed)  # the gate's share is of all attempts
        if failed or verdict is Verdict.OK:
            self._count(failed, finished_ms)
        if attempt.had_content and attempt.first_token_ms >= 0:
            self.latency.add(attempt.first_token_ms, finished_ms)
        if verdict is Verdict.OK and attempt.duration_ms > 0:
            tokens = sum(part.count for part in attempt.usage if part.unit in COMPLETION_UNITS)
            self.throughput.add(tokens * 1_000 / attempt.duration_ms, finished_ms)

    def _count(self, failed: bool, finished_ms: int) -> None:
        self.minutes.add(finished_ms, failed)
        if failed:
            self.failed_in_a_row += 1
            self.failed_ms = max(self.failed_ms, finished_ms)
        else:
            self.failed_in_a_row = 0

    def condition(self, now_ms: int) -> Condition:
        counted, failed = self.minutes.total(now_ms, UPTIME_MINUTES)
        limited, unpaid = self.limited.end_ms, self.unpaid.end_ms
        until_ms = max(limited, unpaid)
        cooling = until_ms > now_ms
        after = "429" if limited >= unpaid else "401 or 402"
        return Condition(
            stable=not self._unstable(now_ms),
            uptime=100 * (counted - failed) / counted if counted >= UPTIME_COUNTED else None,
            cooling_until_ms=until_ms if cooling else 0,
            cooling_after=after if cooling else "",
        )

    def _unstable(self, now_ms: int) -> bool:
        attempts, failed = self.seconds.total(now_ms, GATE_SLOTS)
        if failed >= GATE_FAILURES and failed * 100 >= GATE_PERCENT * attempts:
            return True
        # Without an end, an endpoint that others stand in for would never be tried again.
        recent = now_ms - self.failed_ms < IN_A_ROW_KEPT_MS
        return self.failed_in_a_row >= GATE_IN_A_ROW and recent


class _Measure:
    """Histograms per minute; the median over the last five, worked out at most once a second."""

    __slots__ = ("_computed_s", "_counts", "_median", "_minute_of")

    def __init__(self) -> None:
        self._minute_of = [-1] * MEASURED_MINUTES
        self._counts: list[dict[int, int]] = [{} for _ in range(MEASURED_MINUTES)]
        self._computed_s = -1
        self._median: float | None = None

    def add(self, value: float, at_ms: int) -> None:
        minute = at_ms // MINUTE_MS
        place = minute % MEASURED_MINUTES
        if self._minute_of[place] > minute:
            return
        if self._minute_of[place] < minute:
            self._minute_of[place] = minute
            self._counts[place] = {}
        counts = self._counts[place]
        number = histogram.bucket(value)
        counts[number] = counts.get(number, 0) + 1

    def median(self, now_ms: int) -> float | None:
        if self._computed_s != now_ms // SECOND_MS:
            self._computed_s = now_ms // SECOND_MS
            self._median = histogram.percentile(self._recent(now_ms), 0.5)
        return self._median

    def _recent(self, now_ms: int) -> Mapping[int, int]:
        newest = now_ms // MINUTE_MS
        merged: dict[int, int] = {}
        for minute, counts in zip(self._minute_of, self._counts, strict=True):
            if newest - MEASURED_MINUTES < minute <= newest:
                for number, count in counts.items():
                    merged[number] = merged.get(number, 0) + count
        return merged
