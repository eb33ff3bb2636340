"""What requests take from loans: leases, and the holds on them.

A *lease* is a short loan of an account's balance to this edge. A *hold* is what one request takes
from leases before it starts; closing it returns what was not charged.
"""

from collections.abc import Collection
from typing import Protocol

from bourse.v1.billing_pb2 import LeaseGrant
from bourse.v1.generation_pb2 import AttemptFacts


class Pool(Protocol):
    def settle(self, parts: list[tuple["Lease", int]], charged: tuple[int, ...]) -> None: ...


class InsufficientCredit(Exception):
    """The account cannot pay: `spendable_nano` is all that could be had."""

    def __init__(self, spendable_nano: int, reason: str) -> None:
        super().__init__(reason)
        self.spendable_nano = spendable_nano
        self.reason = reason


class BillingUnreachable(Exception):
    """Billing did not answer, and no live lease covers the request."""


class Lease:
    """One loan."""

    __slots__ = (
        "account", "charged_attempts", "charged_nano", "dead", "expires_at", "granted_nano",
        "held_nano", "holds", "id", "in_doubt", "left_nano", "renew_at",
    )  # fmt: skip

    def __init__(self, account: str, grant: LeaseGrant, now: float) -> None:
        self.id = grant.lease
        self.account = account
        self.granted_nano = self.left_nano = grant.amount_nano
        self.held_nano = 0
        self.charged_nano = 0
        self.charged_attempts = 0
        self.holds = 0
        self.in_doubt: list[str] = []
        self.dead = False
        self.expires_at = now + grant.ttl_ms / 1_000
        self.renew_at = now + grant.ttl_ms / 2_000


class Hold:
    """What one generation may spend: parts of leases, spent in order."""

    __slots__ = ("_charged", "_pool", "account", "covers_nano", "parts")

    def __init__(
        self, pool: Pool, account: str, covers_nano: int, *parts: tuple[Lease, int]
    ) -> None:
        self._pool = pool
        self.parts = list(parts)
        self._charged: tuple[int, ...] = ()
        self.account = account
        self.covers_nano = covers_nano
        """What the account can pay in all, if that is less than the request could cost; else 0."""

    def tell(self, facts: AttemptFacts) -> None:
        """Put the holds into what the worker is told."""
        for lease, nano in self.parts:
            facts.holds.add(lease=lease.id, amount_nano=nano)

    @property
    def total_nano(self) -> int:
        return sum(nano for _, nano in self.parts)

    def charge_in_order(self, charge_nano: int) -> None:
        """Charge the parts in their order; what is above them all goes to the last one.

        At most one attempt is charged.
        """
        if len(self.parts) == 1:
            self._charged = (charge_nano,)
        else:
            self._charged = tuple(split(charge_nano, [nano for _, nano in self.parts]))

    def doubt(self, event: str) -> None:
        """An attempt's last frame never came: its event id goes with the closing of its leases."""
        for lease in {id(lease): lease for lease, _ in self.parts}.values():
            lease.in_doubt.append(event)

    def close(self) -> None:
        """Return what was not charged. Idempotent."""
        parts, self.parts = self.parts, []
        if parts:
            self._pool.settle(parts, self._charged)


def split(charge_nano: int, parts_nano: Collection[int]) -> list[int]:
    """Spend `charge_nano` from parts in order; an excess overdraws the last part."""
    spent = []
    for nano in parts_nano:
        here = min(nano, charge_nano)
        spent.append(here)
        charge_nano -= here
    if charge_nano > 0 and spent:
        spent[-1] += charge_nano
    return spent
