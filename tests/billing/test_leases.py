"""The rules of loans alone."""

from hypothesis import given
from hypothesis import strategies as st

from services.billing.leases import Lease, Report, Rule, clear, grant_nano

RULE = Rule(cap_nano=1_000, ttl_ms=30_000, grace_ms=10_000, estimates_min=4)


def lent(nano: int = 100, expires_at_ms: int = 0) -> Lease:
    return Lease("lease", "alice", "edge", nano, expires_at_ms=expires_at_ms)


def test_a_loan_is_twice_the_burn_within_cap_and_share() -> None:
    assert grant_nano(10_000, 1, 10, 1, RULE) == 600
    assert grant_nano(10_000, 1, 100, 1, RULE) == 1_000  # the cap
    assert grant_nano(10_000, 1, 100, 10, RULE) == 500  # the share of one edge in ten
    assert grant_nano(10_000, 5, 0, 1, RULE) == 20  # a cold account: some estimates' worth


def test_a_loan_is_at_least_the_estimate_and_at_most_what_is_available() -> None:
    assert grant_nano(100, 90, 0, 10, RULE) == 90
    assert grant_nano(5_000, 4_000, 0, 1, RULE) == 4_000
    assert grant_nano(100, 100, 0, 1, RULE) == 100
    assert grant_nano(100, 101, 0, 1, RULE) == 0
    assert grant_nano(0, 0, 0, 1, RULE) == 0
    assert grant_nano(-5, 0, 0, 1, RULE) == 0


@given(
    st.integers(-(10**12), 10**12),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.integers(1, 50),
)
def test_M1_a_loan_never_exceeds_what_is_available(
    available: int, estimate: int, burn: int, edges: int
) -> None:
    amount = grant_nano(available, estimate, burn, edges, RULE)
    assert amount == 0 or max(1, estimate) <= amount <= available
    assert (amount == 0) == (available < max(1, estimate))


@given(
    st.integers(1, 10**6),
    st.lists(st.tuples(st.sampled_from(["spend", "return"]), st.integers(0, 10**6)), max_size=20),
)
def test_a_loan_is_conserved(amount: int, steps: list[tuple[str, int]]) -> None:
    lease = lent(amount)
    released = posted = 0
    for what, nano in steps:
        if what == "spend":
            released += lease.spend(nano)
            posted += nano
        else:
            released += lease.give_back(nano)
        assert lease.amount_nano == lease.spent_nano + lease.live_nano + lease.returned_nano
        assert lease.live_nano >= 0
        assert released == lease.amount_nano - lease.live_nano
    assert lease.spent_nano + lease.excess_nano == posted
    released += lease.reclaim()
    assert released == lease.amount_nano
    assert lease.live_nano == 0


def test_a_closed_loan_is_proven_by_count_and_sum() -> None:
    lease = lent()
    lease.spend(30)
    lease.close(2, 50, (), at_ms=1)
    lease.spend(0)  # a hold that was not used is no charged attempt
    assert not lease.proven()
    lease.spend(20)
    assert lease.proven()


def test_a_loan_with_attempts_in_doubt_is_not_proven_by_its_edge() -> None:
    lease = lent()
    lease.close(0, 0, ("01A:attempt:1",), at_ms=1)
    assert not lease.proven()


def test_closing_twice_keeps_the_first_word() -> None:
    lease = lent()
    lease.close(1, 10, (), at_ms=1)
    lease.close(9, 90, (), at_ms=2)
    assert (lease.closed_attempts, lease.closed_nano, lease.closed_at_ms) == (1, 10, 1)


def test_a_loan_is_clear_when_every_worker_reported_after_its_end_without_it() -> None:
    lease = lent(expires_at_ms=1_000)

    def report(worker: str, at_ms: int, *leases: str) -> Report:
        return Report(worker, at_ms, frozenset(leases))

    assert not clear(lease, [])
    assert clear(lease, [report("a", 1_001), report("b", 1_001, "other")])
    assert not clear(lease, [report("a", 1_001), report("b", 1_000)])
    assert not clear(lease, [report("a", 1_001), report("b", 2_000, "lease")])
    assert not clear(lease, [report("a", 1_001)], wait_ms=1)
