"""Credit on loan: how much an edge gets, what a settle releases, when a loan is over.

Pure. Conservation, for each lease: amount = spent + live + returned; an account's `reserved` is the
live sum of its leases. What posts beyond a lease's live part is its excess: it overdraws the
account and is never refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """How leases are sized. Amounts in nano-USD."""

    cap_nano: int
    ttl_ms: int
    grace_ms: int
    """How much longer than the TTL billing waits: an edge counts from the receipt of its lease."""
    estimates_min: int
    """A lease is worth so many of the asking estimates where the account can pay that, so that a
    cold account does not call for every request until its burn is known."""


@dataclass(slots=True)
class Lease:
    """One loan with what has become of it."""

    id: str
    account: str
    edge: str
    amount_nano: int
    spent_nano: int = 0
    excess_nano: int = 0
    returned_nano: int = 0
    attempts: int = 0
    closed_at_ms: int = 0
    closed_attempts: int = 0
    closed_nano: int = 0
    in_doubt: str = ""
    """Event ids whose terminal frame never reached the edge, one a line."""
    state: str = "open"
    expires_at_ms: int = 0

    @property
    def live_nano(self) -> int:
        """What is still on loan: reserved on the account."""
        return self.amount_nano - self.spent_nano - self.returned_nano

    def spend(self, amount_nano: int) -> int:
        """Post a charge under the lease; return how much of `reserved` it releases."""
        released_nano = min(amount_nano, self.live_nano)
        self.spent_nano += released_nano
        self.excess_nano += amount_nano - released_nano
        if amount_nano:
            self.attempts += 1
        return released_nano

    def give_back(self, amount_nano: int) -> int:
        """Take unspent credit back from the edge; return how much of `reserved` it releases."""
        returned_nano = max(0, min(amount_nano, self.live_nano))
        self.returned_nano += returned_nano
        return returned_nano

    def close(self, attempts: int, nano: int, in_doubt: Iterable[str], at_ms: int) -> None:
        """Note what the edge says was spent. Saying it again changes nothing."""
        if self.state == "open":
            self.state = "closed"
            self.closed_at_ms = at_ms
            self.closed_attempts = attempts
            self.closed_nano = nano
            self.in_doubt = "\n".join(sorted(set(in_doubt)))

    def proven(self) -> bool:
        """Whether what has posted is all that the edge says can come."""
        return (
            self.state == "closed"
            and not self.in_doubt
            and self.attempts == self.closed_attempts
            and self.spent_nano + self.excess_nano == self.closed_nano
        )

    def reclaim(self) -> int:
        """End the loan; return how much of `reserved` it releases."""
        self.state = "reclaimed"
        return self.give_back(self.live_nano)


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker process last said: the leases of its open intents and unshipped events."""

    worker: str
    reported_at_ms: int
    leases: frozenset[str]


def grant_nano(
    available_nano: int, estimate_nano: int, burn_nano_per_s: int, edges: int, rule: Rule
) -> int:
    """Return how much to lend of what is available: at least the estimate, or 0 for a refusal."""
    estimate_nano = max(1, estimate_nano)
    if available_nano < estimate_nano:
        return 0
    wanted_nano = max(
        2 * max(0, burn_nano_per_s) * rule.ttl_ms // 1000, rule.estimates_min * estimate_nano
    )
    share_nano = available_nano // (2 * max(1, edges))
    return max(estimate_nano, min(rule.cap_nano, share_nano, wanted_nano))


def clear(lease: Lease, reports: Sequence[Report], wait_ms: int = 0) -> bool:
    """Whether every worker, reporting `wait_ms` after the lease's end, carried nothing of it.

    With no worker known there is nobody to say so: not clear.
    """
    ended_at_ms = max(lease.expires_at_ms, lease.closed_at_ms) + wait_ms
    return bool(reports) and all(
        report.reported_at_ms > ended_at_ms and lease.id not in report.leases for report in reports
    )
