"""How money moves: events and grants in, transactions whose postings sum to zero out.

Pure: no database, no clock, no framework. Credits are positive, debits negative, in nano-USD; a
customer's balance is a liability, so what a customer may spend is a positive balance.

    Unpostable            an event that must never post: it is quarantined and seen by people
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from bourse import rating
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Envelope,
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
)

BANK = "bank"
PROMO = "promo"
SHARDS = 16
"""Rows over which the hottest accounts are spread, so that consumers do not queue for one."""

COUNT_MAX = 1 << 31
"""More of one unit than any generation can have: an absurd count, not a large one."""
PRICE_PICO_MAX = 1_000 * rating.PICO_PER_USD
CHARGE_NANO_MAX = 10_000 * rating.NANO_PER_USD
"""The most one attempt may cost; beyond it a person looks first."""

ATTEMPT_DIGITS_MAX = 9

NEVER_MS = 1 << 62
"""Where credit that never expires stands in the order of draw-down."""

CHARGED = frozenset(
    {Outcome.OUTCOME_COMPLETED, Outcome.OUTCOME_CLIENT_LEFT, Outcome.OUTCOME_CREDIT_EXHAUSTED}
)
INSURED = frozenset({Outcome.OUTCOME_LOST, Outcome.OUTCOME_HEDGE_LOST})

# Looking an enum's value up costs more than comparing with it.
_COMPLETED: int = Outcome.OUTCOME_COMPLETED
_FAILED: int = Outcome.OUTCOME_FAILED


class Unpostable(Exception):
    """An event whose figures do not hold. `reason` is a short word for dashboards."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Attempt(NamedTuple):
    """What billing needs of one AttemptFinished, checked and re-rated."""

    id: str
    generation: str
    attempt: int
    account: str
    key_hash: str
    provider: str
    house: bool
    list_nano: int
    charge_nano: int
    insured_nano: int
    commission_nano: int
    spends: Mapping[str, int]
    """Lease -> what the attempt took from it in all."""
    occurred_at_ms: int
    content_hash: bytes
    event: bytes


class Posting(NamedTuple):
    """One signed entry on the ledger account of this name."""

    account: str
    amount_nano: int


class Transaction(NamedTuple):
    """Postings that stand or fall together and sum to zero."""

    id: str
    kind: str
    account: str
    occurred_at_ms: int
    postings: Sequence[Posting]
    reverses: str = ""


@dataclass(slots=True)
class Grant:
    """Credit with what is left of it, as the draw-down sees it."""

    id: str
    ledger_account: str
    remaining_nano: int
    priority: int
    expires_at_ms: int
    """0: never."""

    def spendable(self, at_ms: int) -> bool:
        return self.remaining_nano > 0 and (self.expires_at_ms == 0 or self.expires_at_ms > at_ms)


@dataclass(slots=True)
class Wallet:
    """An account's grants. Drawing changes what remains, so one wallet serves a whole batch."""

    account: str
    grants: list[Grant] = field(default_factory=list)

    def sort(self) -> None:
        """Put the grants into the order of draw-down: priority, then expiry, then id."""
        self.grants.sort(key=lambda g: (g.priority, g.expires_at_ms or NEVER_MS, g.id))

    def draw(self, amount_nano: int, at_ms: int) -> list[Posting]:
        """Take `amount_nano` from the grants in order; what they lack is overdrawn."""
        drawn = []
        for grant in self.grants:
            if amount_nano == 0:
                break
            if grant.spendable(at_ms):
                taken = min(grant.remaining_nano, amount_nano)
                grant.remaining_nano -= taken
                amount_nano -= taken
                drawn.append(Posting(grant.ledger_account, -taken))
        if amount_nano:
            drawn.append(Posting(overdraft(self.account), -amount_nano))
        return drawn


def customer(account: str, kind: str, grant: str) -> str:
    """The ledger account of one grant; `kind` is `paid` or `promo`."""
    return f"cust:{account}:{kind}:{grant}"


def overdraft(account: str) -> str:
    """Where an account's use beyond all its credit stands, until credit covers it."""
    return f"cust:{account}:paid:overdraft"


def provider_share(provider: str, house: bool) -> str:
    """Who is credited for a provider's work; our own providers are never payable."""
    return f"provider_prepaid:{provider}" if house else f"prov:{provider}:pending"


def sharded(name: str, shard: int) -> str:
    return f"{name}:{shard % SHARDS}"


def kind_and_owner(name: str) -> tuple[str, str]:
    """Return the class and the owner of a ledger account of the chart, from its name."""
    first, _, rest = name.partition(":")
    if first == "cust":
        return "customer", rest.rpartition(":")[0].rpartition(":")[0]
    if first == "prov":
        return "provider", rest.rpartition(":")[0]
    if first == "provider_prepaid":
        return "asset", rest
    if first in ("bank", "stripe_clearing"):
        return "asset", ""
    if first in ("commission", "topup_fee", "byok_fee", "breakage"):
        return "revenue", ""
    if first in ("promo", "insurance", "stripe_fees", "bad_debt"):
        return "expense", ""
    raise ValueError(f"no such ledger account in the chart: {name}")


def attempt_id(generation: str, attempt: int) -> str:
    return f"{generation}:attempt:{attempt}"


def reversal_id(generation: str, attempt: int) -> str:
    return f"{generation}:reversed:{attempt}"


def attempt_key(event_id: str) -> tuple[str, int] | None:
    """The (generation, attempt) that an event id names; None: it names no attempt."""
    generation, _, number = event_id.partition(":attempt:")
    if not generation or not number.isdecimal() or len(number) > ATTEMPT_DIGITS_MAX:
        return None
    return generation, int(number)


def read(envelope: Envelope) -> Attempt:
    """Check one event and rate it again. Raises Unpostable, which quarantines it."""
    if envelope.type != "AttemptFinished":
        raise Unpostable("unknown_type", f"event type {envelope.type!r}")
    data = envelope.data
    try:
        event = AttemptFinished.FromString(data)
    except DecodeError as error:
        raise Unpostable("undecodable", str(error)) from error
    generation, number, account = event.generation, event.attempt, event.account
    if not generation or not account or ":" in generation:
        raise Unpostable("incomplete", "generation and account are required")
    if envelope.id != f"{generation}:attempt:{number}":
        raise Unpostable("id_mismatch", f"envelope {envelope.id!r} names another attempt")
    list_nano = _rated_again(event)
    charge_nano, insured_nano = event.charge_nano, event.insured_nano
    commission_nano = _checked_sums(event, list_nano)
    spends = _spends(event.lease_spends, charge_nano) if event.lease_spends else {}
    if (charge_nano or insured_nano) and not event.provider:
        raise Unpostable("incomplete", "a provider is owed but not named")
    return Attempt(
        envelope.id,
        generation,
        number,
        account,
        event.key_hash,
        event.provider,
        event.house,
        list_nano,
        charge_nano,
        insured_nano,
        commission_nano,
        spends,
        event.started_at_ms + event.duration_ms,
        hashlib.sha256(data).digest(),
        data,
    )


def settle(attempt: Attempt, wallet: Wallet, shard: int) -> Transaction:
    """The customer pays the charge: the provider's share and our commission."""
    charge_nano, commission_nano = attempt.charge_nano, attempt.commission_nano
    postings = wallet.draw(charge_nano, attempt.occurred_at_ms)
    if charge_nano != commission_nano:
        name = provider_share(attempt.provider, attempt.house)
        postings.append(Posting(name, charge_nano - commission_nano))
    if commission_nano:
        postings.append(Posting(sharded("commission", shard), commission_nano))
    return Transaction(attempt.id, "settle", attempt.account, attempt.occurred_at_ms, postings)


def insure(attempt: Attempt, shard: int) -> Transaction:
    """The platform pays the provider's share of what was delivered but not charged."""
    return Transaction(
        attempt.id,
        "insure",
        attempt.account,
        attempt.occurred_at_ms,
        [
            Posting(sharded("insurance", shard), -attempt.insured_nano),
            Posting(provider_share(attempt.provider, attempt.house), attempt.insured_nano),
        ],
    )


def reverse(
    generation: str,
    attempt: int,
    account: str,
    allocation: Iterable[Posting],
    at_ms: int,
    shard: int,
) -> Transaction:
    """Give a charge back at the platform's cost, to the very grants it was drawn from.

    `allocation` is the customer's part of the settle's postings; the provider keeps its share.
    """
    restored = [Posting(posting.account, -posting.amount_nano) for posting in allocation]
    cost_nano = sum(posting.amount_nano for posting in restored)
    return Transaction(
        reversal_id(generation, attempt),
        "reverse",
        account,
        at_ms,
        [*restored, Posting(sharded("insurance", shard), -cost_nano)],
        reverses=attempt_id(generation, attempt),
    )


def grant(grant_id: str, account: str, kind: str, amount_nano: int, at_ms: int) -> Transaction:
    """The operator gives credit: paid credit arrived at the bank, promotional credit is a cost."""
    source = BANK if kind == "paid" else PROMO
    return Transaction(
        f"grant:{grant_id}",
        "grant",
        account,
        at_ms,
        [Posting(source, -amount_nano), Posting(customer(account, kind, grant_id), amount_nano)],
    )


def cover(cause: str, wallet: Wallet, overdrawn_nano: int, at_ms: int) -> Transaction | None:
    """Pay an overdraft off from the credit that there is now, because of transaction `cause`."""
    available_nano = sum(g.remaining_nano for g in wallet.grants if g.spendable(at_ms))
    covered_nano = min(overdrawn_nano, available_nano)
    if covered_nano <= 0:
        return None
    postings = wallet.draw(covered_nano, at_ms)
    postings.append(Posting(overdraft(wallet.account), covered_nano))
    return Transaction(f"cover:{cause}", "cover", wallet.account, at_ms, postings)


def superseded(charged: Iterable[int]) -> list[int]:
    """Of a generation's charged attempts, those that may not stand: all but the highest."""
    return sorted(charged)[:-1]


def _rated_again(event: AttemptFinished) -> int:
    for count in event.usage:
        if not 0 <= count.count <= COUNT_MAX:
            raise Unpostable("absurd_usage", f"{Unit.Name(count.unit)} {count.count}")
    price = event.price
    _check_price(price)
    list_nano = rating.rate(event.usage, price).total_nano
    if list_nano != event.list_nano:
        raise Unpostable(
            "rate_mismatch", f"the event says {event.list_nano} nano, its usage {list_nano}"
        )
    return list_nano


def _check_price(price: PriceVersion) -> None:
    for entry in price.entries:
        if not 0 <= entry.price_pico <= PRICE_PICO_MAX:
            raise Unpostable("absurd_price", f"{entry.price_pico} pico")
    for override in price.overrides:
        for entry in override.entries:
            if not 0 <= entry.price_pico <= PRICE_PICO_MAX:
                raise Unpostable("absurd_price", f"{entry.price_pico} pico")
    if price.discount_denominator and not (
        0 <= price.discount_numerator <= price.discount_denominator
    ):
        raise Unpostable("absurd_price", "discount outside 0 to 1")
    if not 0 <= price.commission_bps <= rating.BPS:
        raise Unpostable("absurd_price", f"commission of {price.commission_bps} bps")


def _checked_sums(event: AttemptFinished, list_nano: int) -> int:
    """Return the commission; raise where the three sums do not fit the outcome."""
    charge_nano, insured_nano, outcome = event.charge_nano, event.insured_nano, event.outcome
    bps = event.price.commission_bps
    if list_nano > CHARGE_NANO_MAX:
        raise Unpostable("absurd_charge", f"{list_nano} nano")
    if not 0 <= charge_nano <= list_nano:
        raise Unpostable("charge_mismatch", f"charge {charge_nano} of list {list_nano}")
    if charge_nano != list_nano and outcome == _COMPLETED:
        raise Unpostable("charge_mismatch", f"completed at {charge_nano} of list {list_nano}")
    if charge_nano and outcome not in CHARGED and outcome != _FAILED:
        raise Unpostable("charge_mismatch", f"{Outcome.Name(outcome)} is not charged")
    commission_nano = rating.commission_nano(charge_nano, bps)
    if commission_nano != event.commission_nano:
        raise Unpostable(
            "commission_mismatch", f"the event says {event.commission_nano}, not {commission_nano}"
        )
    if insured_nano:
        share_nano = list_nano - rating.commission_nano(list_nano, bps)
        if outcome not in INSURED or charge_nano or not 0 < insured_nano <= share_nano:
            raise Unpostable("insurance_mismatch", f"{insured_nano} of a share of {share_nano}")
    return commission_nano


def _spends(spends: Iterable[LeaseSpend], charge_nano: int) -> dict[str, int]:
    total: dict[str, int] = {}
    for spend in spends:
        if not spend.lease or spend.amount_nano < 0:
            raise Unpostable("spend_mismatch", "a lease spend without a lease or below zero")
        total[spend.lease] = total.get(spend.lease, 0) + spend.amount_nano
    if sum(total.values()) > charge_nano:
        raise Unpostable("spend_mismatch", f"leases spent beyond the charge of {charge_nano}")
    return total
