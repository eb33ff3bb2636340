"""The ledger's rules alone: what an event must be, and which postings it makes."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse.v1.events_pb2 import AttemptFinished, Outcome, PriceVersion, Unit, UnitPrice
from services.billing import ledger
from services.billing.ledger import Grant, Posting, Unpostable, Wallet
from tests.billing.builders import PRICE, finished, wrapped


def wallet(*grants: Grant) -> Wallet:
    made = Wallet("alice", list(grants))
    made.sort()
    return made


def credit(nano: int, name: str = "g", *, priority: int = 10, expires_at_ms: int = 0) -> Grant:
    return Grant(name, f"cust:alice:paid:{name}", nano, priority, expires_at_ms)


def test_a_settled_generation_pays_provider_and_commission() -> None:
    attempt = ledger.read(wrapped(finished(tokens=1001)))
    made = ledger.settle(attempt, wallet(credit(10**9)), shard=3)
    charge = 1001 * 600  # pico per token / 1000
    commission = charge * 500 // 10_000
    assert made.postings == [
        Posting("cust:alice:paid:g", -charge),
        Posting("prov:provider:pending", charge - commission),
        Posting("commission:3", commission),
    ]


def test_a_house_provider_is_credited_to_our_balance_there_without_commission() -> None:
    price = PriceVersion(entries=PRICE.entries, commission_bps=0)
    attempt = ledger.read(wrapped(finished(price=price, house=True)))
    made = ledger.settle(attempt, wallet(credit(10**9)), shard=0)
    assert [p.account for p in made.postings] == ["cust:alice:paid:g", "provider_prepaid:provider"]


@pytest.mark.parametrize("outcome", [Outcome.OUTCOME_LOST, Outcome.OUTCOME_HEDGE_LOST])
def test_the_platform_pays_the_share_of_an_attempt_that_is_its_own_fault(
    outcome: Outcome.ValueType,
) -> None:
    attempt = ledger.read(wrapped(finished(tokens=1000, outcome=outcome)))
    made = ledger.insure(attempt, shard=1)
    assert made.postings == [
        Posting("insurance:1", -570_000),
        Posting("prov:provider:pending", 570_000),
    ]


def test_credit_is_drawn_by_priority_then_expiry_then_id() -> None:
    drawn_from = wallet(
        credit(10, "b"),
        credit(10, "a"),
        credit(10, "soon", expires_at_ms=2_000),
        credit(10, "promo", priority=0),
        credit(10, "expired", priority=0, expires_at_ms=1_000),
    )
    assert drawn_from.draw(35, at_ms=1_000) == [
        Posting("cust:alice:paid:promo", -10),
        Posting("cust:alice:paid:soon", -10),
        Posting("cust:alice:paid:a", -10),
        Posting("cust:alice:paid:b", -5),
    ]
    assert drawn_from.draw(7, at_ms=1_000) == [
        Posting("cust:alice:paid:b", -5),
        Posting("cust:alice:paid:overdraft", -2),
    ]


def test_a_reversal_restores_the_grants_that_were_drawn() -> None:
    drawn = wallet(credit(400_000, "a"), credit(10**9, "b")).draw(600_000, 1)
    made = ledger.reverse("01A", 1, "alice", drawn, 1, shard=0)
    assert made.postings == [
        Posting("cust:alice:paid:a", 400_000),
        Posting("cust:alice:paid:b", 200_000),
        Posting("insurance:0", -600_000),
    ]
    assert made.reverses == "01A:attempt:1"


@given(
    grants=st.lists(st.integers(1, 10**6), max_size=6),
    charges=st.lists(st.integers(1, 10**6), max_size=12),
)
def test_whatever_is_drawn_the_sums_hold(grants: list[int], charges: list[int]) -> None:
    drawn_from = wallet(*(credit(nano, f"g{n}") for n, nano in enumerate(grants)))
    taken: dict[str, int] = {}
    for charge in charges:
        postings = drawn_from.draw(charge, 1)
        assert sum(p.amount_nano for p in postings) == -charge
        for p in postings:
            taken[p.account] = taken.get(p.account, 0) - p.amount_nano
    # The model: one heap of credit, used up front to back.
    left = sum(charges)
    for n, nano in enumerate(grants):
        used = min(nano, left)
        assert taken.get(f"cust:alice:paid:g{n}", 0) == used
        left -= used
    assert taken.get("cust:alice:paid:overdraft", 0) == left


def break_rating(event: AttemptFinished) -> None:
    event.list_nano += 1


def negative_usage(event: AttemptFinished) -> None:
    event.usage[0].count = -1000


def absurd_usage(event: AttemptFinished) -> None:
    event.usage[0].count = 1 << 40


def charge_beyond_list(event: AttemptFinished) -> None:
    event.charge_nano = event.list_nano + 1


def negative_charge(event: AttemptFinished) -> None:
    event.charge_nano = -1


def completed_for_less(event: AttemptFinished) -> None:
    event.charge_nano -= 1
    event.commission_nano = event.charge_nano * 500 // 10_000


def other_commission(event: AttemptFinished) -> None:
    event.commission_nano += 1


def charged_though_lost(event: AttemptFinished) -> None:
    event.outcome = Outcome.OUTCOME_LOST


def insured_though_completed(event: AttemptFinished) -> None:
    event.insured_nano = 1


def spent_beyond_charge(event: AttemptFinished) -> None:
    event.lease_spends.add(lease="l", amount_nano=event.charge_nano + 1)


def negative_spend(event: AttemptFinished) -> None:
    event.lease_spends.add(lease="l", amount_nano=-1)


def negative_price(event: AttemptFinished) -> None:
    event.price.entries.append(UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=-1))


def no_account(event: AttemptFinished) -> None:
    event.account = ""


def no_provider(event: AttemptFinished) -> None:
    event.provider = ""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (break_rating, "rate_mismatch"),
        (negative_usage, "absurd_usage"),
        (absurd_usage, "absurd_usage"),
        (charge_beyond_list, "charge_mismatch"),
        (negative_charge, "charge_mismatch"),
        (completed_for_less, "charge_mismatch"),
        (other_commission, "commission_mismatch"),
        (charged_though_lost, "charge_mismatch"),
        (insured_though_completed, "insurance_mismatch"),
        (spent_beyond_charge, "spend_mismatch"),
        (negative_spend, "spend_mismatch"),
        (negative_price, "absurd_price"),
        (no_account, "incomplete"),
        (no_provider, "incomplete"),
    ],
)
def test_M10_an_event_whose_figures_do_not_hold_is_refused_with_a_reason(
    spoil: Callable[[AttemptFinished], None], reason: str
) -> None:
    event = finished()
    spoil(event)
    with pytest.raises(Unpostable) as refused:
        ledger.read(wrapped(event))
    assert refused.value.reason == reason


def test_an_insured_attempt_gets_no_more_than_the_providers_share() -> None:
    event = finished(outcome=Outcome.OUTCOME_LOST)
    event.insured_nano = event.list_nano
    with pytest.raises(Unpostable) as refused:
        ledger.read(wrapped(event))
    assert refused.value.reason == "insurance_mismatch"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "Something"}, "unknown_type"),
        ({"id": "01A:attempt:2"}, "id_mismatch"),
    ],
)
def test_an_envelope_must_name_what_it_carries(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(Unpostable) as refused:
        ledger.read(wrapped(finished(), **fields))
    assert refused.value.reason == reason


def test_bytes_that_are_no_event_are_refused() -> None:
    broken = wrapped(finished())
    broken.data = b"\xff\xff"
    with pytest.raises(Unpostable):
        ledger.read(broken)


@pytest.mark.parametrize(
    ("name", "kind", "owner"),
    [
        ("cust:alice:paid:grant-1", "customer", "alice"),
        ("cust:team:a:promo:g", "customer", "team:a"),
        ("prov:acme:pending", "provider", "acme"),
        ("provider_prepaid:acme", "asset", "acme"),
        ("commission:7", "revenue", ""),
        ("insurance:0", "expense", ""),
        ("promo", "expense", ""),
        ("bank", "asset", ""),
    ],
)
def test_the_chart_says_class_and_owner(name: str, kind: str, owner: str) -> None:
    assert ledger.kind_and_owner(name) == (kind, owner)


def test_only_names_of_the_chart_can_be_opened() -> None:
    with pytest.raises(ValueError, match="chart"):
        ledger.kind_and_owner("petty_cash")


@given(st.permutations([1, 2, 3, 5]))
def test_M9_of_several_charged_attempts_the_highest_stands(order: list[int]) -> None:
    assert ledger.superseded(order) == [1, 2, 3]
