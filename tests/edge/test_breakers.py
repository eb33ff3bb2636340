"""Breakers and cool-downs: what counts, for how long, and what ends them."""

from bourse.v1.events_pb2 import Outcome
from bourse.v1.generation_pb2 import Failed
from services.edge.breakers import Breakers


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def failed(status: int, retry_after_ms: int = 0, outcome: int = Outcome.OUTCOME_FAILED) -> Failed:
    return Failed(
        outcome=Outcome.ValueType(outcome),
        status=502,
        upstream_status=status,
        retry_after_ms=retry_after_ms,
    )


def test_five_failures_in_a_row_open_it_for_two_seconds_then_one_probe() -> None:
    clock = Clock()
    breakers = Breakers(clock)
    for _ in range(4):
        breakers.failed("e", failed(500))
        assert breakers.usable("e")
    breakers.failed("e", failed(500))
    assert not breakers.usable("e")
    clock.now += 2.01
    assert breakers.usable("e")
    breakers.began("e")
    assert not breakers.usable("e")  # one probe at a time
    breakers.failed("e", failed(500))
    clock.now += 2.01
    assert not breakers.usable("e")  # twice as long
    clock.now += 2.0
    assert breakers.usable("e")
    breakers.began("e")
    breakers.succeeded("e")
    assert breakers.usable("e")
    breakers.failed("e", failed(500))
    assert breakers.usable("e")


def test_half_of_ten_within_two_seconds_open_it() -> None:
    clock = Clock()
    breakers = Breakers(clock)
    for _ in range(5):
        breakers.failed("e", failed(500))
        breakers.succeeded("e")
    assert breakers.usable("e")  # five failures, five successes, but the last is a success
    breakers.failed("e", failed(500))
    assert not breakers.usable("e")


def test_the_open_time_doubles_to_a_minute_at_most() -> None:
    clock = Clock()
    breakers = Breakers(clock)
    for _ in range(5):
        breakers.failed("e", failed(500))
    for _ in range(10):
        clock.now += 61
        assert breakers.usable("e")
        breakers.began("e")
        breakers.failed("e", failed(500))
    assert 59 < breakers.cools_for_s("e") <= 60


def test_clients_and_our_own_faults_never_count() -> None:
    breakers = Breakers(Clock())
    for _ in range(50):
        breakers.failed("e", failed(0, outcome=Outcome.OUTCOME_CLIENT_LEFT))
        breakers.failed("e", failed(0, outcome=Outcome.OUTCOME_LOST))
        breakers.failed("e", failed(400))
        breakers.failed("e", failed(422))
    assert breakers.usable("e")


def test_S13_a_cool_down_has_one_end_and_ends_early_on_a_success() -> None:
    clock = Clock()
    breakers = Breakers(clock)
    breakers.failed("e", failed(429, retry_after_ms=30_000))
    assert not breakers.usable("e")
    clock.now += 29
    assert not breakers.usable("e")
    clock.now += 1.01
    assert breakers.usable("e")
    breakers.failed("e", failed(429, retry_after_ms=10**9))
    assert breakers.cools_for_s("e") <= 300
    breakers.succeeded("e")
    assert breakers.usable("e")


def test_429_without_a_time_doubles_from_ten_seconds_to_a_minute() -> None:
    clock = Clock()
    breakers = Breakers(clock)
    lengths = []
    for _ in range(5):
        breakers.failed("e", failed(429))
        lengths.append(breakers.cools_for_s("e"))
        clock.now += 100
    assert lengths == [10, 20, 40, 60, 60]


def test_S12_refused_credentials_and_spent_budgets_cool_down_for_minutes() -> None:
    for status in (401, 402):
        breakers = Breakers(Clock())
        breakers.failed("e", failed(status))
        assert breakers.cools_for_s("e") == 60
