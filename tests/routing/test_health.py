"""What attempts say about an endpoint: the gate, uptime, cool-downs, medians."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse import histogram
from bourse.v1.events_pb2 import AttemptFinished, Outcome, Unit, UnitCount
from services.routing.health import MINUTE_MS, SECOND_MS, Condition, Health
from services.routing.verdict import Verdict, judge
from tests.routing.builders import NOW_MS, attempt, generation_record


def taken(*attempts: AttemptFinished, now_ms: int = NOW_MS, health: Health | None = None) -> Health:
    health = health or Health()
    health.apply([generation_record(made, n) for n, made in enumerate(attempts)], now_ms)
    return health


def condition(*attempts: AttemptFinished, now_ms: int = NOW_MS) -> Condition:
    return taken(*attempts, now_ms=now_ms).condition("e1", now_ms)


def failed(ago_ms: int = 0, **facts: Any) -> AttemptFinished:
    facts.setdefault("status", 503)
    return attempt(finished_ms=NOW_MS - ago_ms, **facts)


def fine(ago_ms: int = 0, **facts: Any) -> AttemptFinished:
    return attempt(finished_ms=NOW_MS - ago_ms, **facts)


# The gate: at least 3 counted failures that are at least 20 % of 30 s, or 5 failures in a row.


@pytest.mark.parametrize(
    ("successes", "failures", "stable"),
    [(0, 2, True), (12, 3, False), (13, 3, True), (16, 4, False), (17, 4, True), (0, 0, True)],
)
def test_the_gate_needs_three_failures_and_a_fifth_of_the_attempts(
    successes: int, failures: int, stable: bool
) -> None:
    attempts = [failed() for _ in range(failures)] + [fine() for _ in range(successes)]
    assert condition(*attempts).stable is stable


def test_the_gate_looks_back_thirty_seconds() -> None:
    now_ms = NOW_MS - NOW_MS % SECOND_MS + 999
    for ago_ms, stable in ((29_999, False), (30_000, True)):
        attempts = [failed(NOW_MS - now_ms + ago_ms) for _ in range(3)] + [fine(50_000)]
        assert condition(*attempts, now_ms=now_ms).stable is stable


def test_five_failures_in_a_row_close_the_gate_however_far_apart() -> None:
    spread = [failed(ago_ms) for ago_ms in (200_000, 160_000, 120_000, 80_000, 40_000)]
    assert not condition(*spread).stable
    assert condition(*spread[:4]).stable
    assert condition(*spread, fine()).stable
    assert not condition(*spread, fine(outcome=Outcome.OUTCOME_CLIENT_LEFT)).stable


def test_five_failures_in_a_row_are_forgotten_so_that_the_endpoint_is_tried_again() -> None:
    health = taken(*(failed(40_000) for _ in range(5)))
    assert not health.condition("e1", NOW_MS).stable
    assert health.condition("e1", NOW_MS + 5 * MINUTE_MS).stable


def test_attempts_that_fail_through_no_fault_of_the_endpoint_do_not_close_the_gate() -> None:
    ours = [
        failed(status=400), failed(status=413), failed(status=422), failed(status=403),
        failed(error_type="server", status=0), fine(outcome=Outcome.OUTCOME_LOST),
        fine(outcome=Outcome.OUTCOME_CLIENT_LEFT), fine(outcome=Outcome.OUTCOME_HEDGE_LOST),
    ]  # fmt: skip
    found = taken(*ours, *ours)
    assert found.condition("e1", NOW_MS).stable
    assert found.uptime("e1", 5, NOW_MS) == (0, 0)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, Verdict.OK),
        ({"finish_reason": "error"}, Verdict.FAILED),
        ({"status": 0, "error_type": "timeout"}, Verdict.FAILED),
        ({"status": 200, "error_type": "provider_unavailable"}, Verdict.FAILED),
        ({"status": 401}, Verdict.UNPAID),
        ({"status": 402}, Verdict.UNPAID),
        ({"status": 401, "error_type": "provider_unavailable"}, Verdict.UNPAID),
        ({"status": 404}, Verdict.FAILED),
        ({"status": 408}, Verdict.FAILED),
        ({"status": 529, "error_type": "provider_overloaded"}, Verdict.FAILED),
        ({"status": 429}, Verdict.LIMITED),
        ({"status": 403}, Verdict.REFUSED),
        ({"status": 400, "error_type": "invalid_image"}, Verdict.SILENT),
        ({"status": 200, "error_type": "rate_limit_exceeded"}, Verdict.LIMITED),
    ],
)
def test_an_attempt_says_what_the_rules_say(facts: dict[str, Any], verdict: Verdict) -> None:
    assert judge(attempt(**facts)) is verdict


def test_S12_a_400_that_means_out_of_budget_cools_down() -> None:
    found = condition(failed(status=400, error_type="payment_required"))
    assert found.cooling_until_ms == NOW_MS + 60_000


# Uptime.


def test_uptime_needs_a_hundred_counted_attempts() -> None:
    attempts = [failed(60_000) for _ in range(10)] + [fine(70_000) for _ in range(89)]
    assert condition(*attempts).uptime is None
    assert condition(*attempts, fine(70_000)).uptime == 90


def test_uptime_windows_are_five_and_thirty_minutes() -> None:
    minute = NOW_MS - NOW_MS % MINUTE_MS + MINUTE_MS - 1
    ages = {1: 0, 2: 4, 3: 5, 4: 29, 5: 30}
    health = Health()
    for count, minutes in ages.items():
        made = [attempt(finished_ms=minute - minutes * MINUTE_MS) for _ in range(count)]
        taken(*made, failed(NOW_MS - minute + minutes * MINUTE_MS), now_ms=minute, health=health)
    assert health.uptime("e1", 5, minute) == (1 + 2 + 2, 2)
    assert health.uptime("e1", 30, minute) == (1 + 2 + 3 + 4 + 4, 4)


@given(st.lists(st.tuples(st.integers(0, 29 * 60_000), st.booleans()), max_size=60))
def test_events_may_come_in_any_order(ages: list[tuple[int, bool]]) -> None:
    made = [failed(ago_ms) if bad else fine(ago_ms) for ago_ms, bad in ages]
    forward, backward = taken(*made), taken(*reversed(made))
    for minutes in (5, 30):
        assert forward.uptime("e1", minutes, NOW_MS) == backward.uptime("e1", minutes, NOW_MS)
    counted, bad = forward.uptime("e1", 30, NOW_MS)
    assert (counted, bad) == (len(ages), sum(bad for _, bad in ages))


def test_a_clock_ahead_of_ours_counts_now() -> None:
    health = taken(*(attempt(finished_ms=NOW_MS + 3_600_000) for _ in range(3)))
    assert health.uptime("e1", 5, NOW_MS) == (3, 0)


def test_what_is_older_than_half_an_hour_is_forgotten() -> None:
    health = taken(failed(status=429), *(failed() for _ in range(5)))
    health.apply([], NOW_MS + 31 * MINUTE_MS)
    assert not health._endpoints


def test_a_batch_sent_twice_counts_once() -> None:
    made = [attempt(worker="w", boot="b", seq=seq) for seq in (1, 2, 4)]
    health = taken(*made)
    taken(*made, health=health)
    assert health.uptime("e1", 5, NOW_MS) == (3, 0)
    taken(attempt(worker="w", boot="another", seq=1), health=health)
    assert health.uptime("e1", 5, NOW_MS) == (4, 0)


def test_an_unreadable_record_is_passed_over() -> None:
    good = generation_record(attempt())
    bad = type(good)("generations", 0, 1, b"a", b"\xff\xff\xff", NOW_MS)
    health = Health()
    health.apply([bad, good], NOW_MS)
    assert health.uptime("e1", 5, NOW_MS) == (1, 0)


# Cool-downs.


def refused_at(ms: int, status: int = 429, duration_ms: int = 100, **facts: Any) -> AttemptFinished:
    return attempt(finished_ms=ms, status=status, duration_ms=duration_ms, **facts)


def ends(status: int, *, times: int) -> list[int]:
    """How long each cool-down lasts when every attempt right after its end is refused again."""
    health, now_ms, lengths = Health(), NOW_MS, []
    for _ in range(times):
        taken(refused_at(now_ms, status), now_ms=now_ms, health=health)
        until_ms = health.condition("e1", now_ms).cooling_until_ms
        lengths.append(until_ms - now_ms)
        now_ms = until_ms + 100  # the next attempt begins at the very end and takes 100 ms
    return lengths


def test_S13_cool_downs_double_up_to_their_longest() -> None:
    assert ends(429, times=5) == [10_000, 20_000, 40_000, 60_000, 60_000]
    minute = 60_000
    expected = [minute, 2 * minute, 4 * minute, 8 * minute, 15 * minute, 15 * minute]
    for status in (401, 402):
        assert ends(status, times=6) == expected


def test_S13_a_cool_down_has_one_absolute_end() -> None:
    in_flight = [
        refused_at(NOW_MS), refused_at(NOW_MS + 1_000, duration_ms=5_000),
        refused_at(NOW_MS + 9_999), refused_at(NOW_MS + 12_000, duration_ms=2_100),
    ]  # fmt: skip
    health = taken(*in_flight, now_ms=NOW_MS + 12_000)
    assert health.condition("e1", NOW_MS + 9_999).cooling_until_ms == NOW_MS + 10_000
    assert health.condition("e1", NOW_MS + 10_000).cooling_until_ms == 0


def test_S13_a_success_ends_it_early_unless_it_was_under_way_before() -> None:
    health = taken(refused_at(NOW_MS))
    before = attempt(finished_ms=NOW_MS + 2_000, duration_ms=2_001)
    taken(before, now_ms=NOW_MS + 2_000, health=health)
    assert health.condition("e1", NOW_MS + 2_000).cooling_until_ms
    after = attempt(finished_ms=NOW_MS + 2_000, duration_ms=2_000)
    taken(after, now_ms=NOW_MS + 2_000, health=health)
    assert not health.condition("e1", NOW_MS + 2_000).cooling_until_ms
    taken(refused_at(NOW_MS + 3_000), now_ms=NOW_MS + 3_000, health=health)
    assert health.condition("e1", NOW_MS + 3_000).cooling_until_ms == NOW_MS + 13_000, "from anew"


@pytest.mark.parametrize(
    ("asked_ms", "length_ms"), [(3_000, 3_000), (10**9, 300_000), (-5, 10_000)]
)
def test_retry_after_is_kept_up_to_five_minutes(asked_ms: int, length_ms: int) -> None:
    found = condition(refused_at(NOW_MS, retry_after_ms=asked_ms))
    assert found.cooling_until_ms == NOW_MS + length_ms


def test_an_overload_is_no_cool_down_but_counts() -> None:
    found = taken(*(failed(status=529) for _ in range(3)))
    assert found.condition("e1", NOW_MS).cooling_until_ms == 0
    assert not found.condition("e1", NOW_MS).stable


# Measures.


def measured(
    first_token_ms: int, tokens: int, duration_ms: int, ago_ms: int = 0
) -> AttemptFinished:
    return attempt(
        finished_ms=NOW_MS - ago_ms,
        duration_ms=duration_ms,
        first_token_ms=first_token_ms,
        had_content=True,
        usage=[UnitCount(unit=Unit.UNIT_COMPLETION, count=tokens)],
    )


def test_medians_are_of_five_minutes_and_within_one_percent() -> None:
    health = taken(
        *(measured(ms, 100, 2_000) for ms in (100, 200, 300, 400, 500)),
        measured(60_000, 1, 60_000, ago_ms=6 * MINUTE_MS),
    )
    assert health.latency_ms("e1", NOW_MS) == pytest.approx(300, rel=0.01)
    assert health.throughput("e1", NOW_MS) == pytest.approx(50, rel=0.01)
    assert health.latency_ms("e2", NOW_MS) is None
    assert health.latency_ms("e1", NOW_MS + 11 * MINUTE_MS) is None


@given(st.floats(1, 600_000))
def test_a_bucket_tells_its_values_within_one_percent(value: float) -> None:
    number = histogram.bucket(value)
    assert histogram.middle(number) == pytest.approx(value, rel=0.0101)
    assert 0 <= number <= 680


@given(st.lists(st.floats(1, 600_000), min_size=1), st.sampled_from([0.5, 0.75, 0.9, 0.99]))
def test_a_percentile_is_the_nearest_rank_within_one_percent(
    values: list[float], part: float
) -> None:
    counts: dict[int, int] = {}
    for value in values:
        counts[histogram.bucket(value)] = counts.get(histogram.bucket(value), 0) + 1
    rank = next(n for n in range(1, len(values) + 1) if n >= part * len(values) - 1e-9)
    exact = sorted(values)[rank - 1]
    assert histogram.percentile(counts, part) == pytest.approx(exact, rel=0.0101)
    assert histogram.percentile({}, part) is None
