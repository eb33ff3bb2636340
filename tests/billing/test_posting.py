"""Events posted to real books: once each, whatever comes twice, late or out of order."""

import random

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bourse.database import Database
from bourse.rating import NANO_PER_USD
from bourse.v1 import billing_pb2 as pb
from bourse.v1.events_pb2 import AttemptFinished, Outcome, PriceVersion
from services.billing.ledger import Unpostable
from tests.billing.builders import CONTEXT, PRICE, Books, finished

CHARGE = 600_000  # of finished(): 1,000 tokens
SHARE = 570_000


async def test_a_completion_moves_money_from_customer_to_provider_and_commission(
    books: Books,
) -> None:
    await books.grant(NANO_PER_USD)
    await books.post(finished())
    assert await books.ledger() == {
        "bank": -NANO_PER_USD,
        f"cust:alice:paid:grant-alice-{NANO_PER_USD}": NANO_PER_USD - CHARGE,
        "prov:provider:pending": SHARE,
        "commission": CHARGE - SHARE,
    }
    balance = await books.balance()
    assert (balance.granted_nano, balance.used_nano) == (NANO_PER_USD, CHARGE)
    assert balance.posted_nano == NANO_PER_USD - CHARGE


async def test_M15_what_a_generation_shows_is_what_the_ledger_took(books: Books) -> None:
    await books.grant(NANO_PER_USD)
    failed = finished(attempt=1, outcome=Outcome.OUTCOME_FAILED, final=False)
    served = finished(attempt=2)
    await books.post(failed, served)
    answer = await books.generation()
    assert list(answer.attempts) == [failed, served]
    assert answer.final
    assert answer.posted_nano == served.charge_nano == CHARGE


async def test_a_generation_is_shown_to_its_own_account_only(books: Books) -> None:
    await books.post(finished())
    answer = await books.generation(account="mallory")
    assert not answer.attempts
    assert answer.posted_nano == 0


async def test_a_generation_is_not_final_before_its_final_attempt(books: Books) -> None:
    await books.post(finished(outcome=Outcome.OUTCOME_FAILED, final=False))
    assert not (await books.generation()).final


async def test_M13_the_same_event_twenty_times_posts_once(books: Books) -> None:
    await books.grant(NANO_PER_USD)
    await books.post(*[finished()] * 10)
    for _ in range(10):
        await books.post(finished())
    assert (await books.balance()).used_nano == CHARGE
    assert len((await books.rows())["attempt"]) == 1


async def test_M13_a_replay_changes_no_row(books: Books) -> None:
    await books.grant(NANO_PER_USD)
    lease = await books.lease(CHARGE)
    events = [
        finished("01A", spends=[(lease.lease, CHARGE)]),
        finished("01B", 1),
        finished("01B", 2),
        finished("01C", outcome=Outcome.OUTCOME_LOST),
        finished("01D", outcome=Outcome.OUTCOME_FAILED),
    ]
    await books.post(*events)
    before = await books.rows()
    books.now_ms += 60_000
    await books.post(*events)
    await books.post(*reversed(events))
    assert await books.rows() == before


async def test_any_order_and_cut_into_batches_gives_the_same_books(books: Books) -> None:
    """Several accounts with the same history, each in an order of its own."""
    orders = random.Random(7)
    for number in range(6):
        account = f"account-{number}"
        await books.grant(2 * CHARGE, account, kind="promo", name=f"promo-{number}")
        await books.grant(3 * CHARGE, account, name=f"paid-{number}")
        history = [
            finished(f"01A{number}", account=account),
            finished(f"01B{number}", 1, account=account, tokens=700),
            finished(f"01B{number}", 2, account=account, tokens=900),
            finished(f"01B{number}", 3, account=account, tokens=800),
            finished(f"01C{number}", 1, account=account, outcome=Outcome.OUTCOME_HEDGE_LOST),
            finished(f"01C{number}", 2, account=account),
            finished(f"01D{number}", account=account, outcome=Outcome.OUTCOME_CLIENT_LEFT),
            finished(f"01E{number}", account=account, tokens=2_500),
        ]
        orders.shuffle(history)
        while history:
            size = orders.randint(1, 3)
            await books.post(*history[:size])
            history = history[size:]
    used = [(await books.balance(f"account-{number}")).used_nano for number in range(6)]
    assert used == [CHARGE + 480_000 + CHARGE + CHARGE + 1_500_000] * 6
    ledger = await books.ledger()
    left = [
        sum(nano for name, nano in ledger.items() if name.startswith(f"cust:account-{number}:"))
        for number in range(6)
    ]
    assert left == [5 * CHARGE - used[0]] * 6


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize("together", [True, False])
async def test_M9_a_retry_that_was_charged_too_is_paid_by_the_platform(
    books: Books, order: tuple[int, int], together: bool
) -> None:
    await books.grant(NANO_PER_USD)
    events = {1: finished(attempt=1, tokens=500), 2: finished(attempt=2)}
    if together:
        await books.post(*(events[number] for number in order))
    else:
        for number in order:
            await books.post(events[number])
    assert (await books.balance()).used_nano == CHARGE
    assert (await books.generation()).posted_nano == CHARGE
    ledger = await books.ledger()
    assert ledger["insurance"] == -300_000
    assert ledger["prov:provider:pending"] == SHARE + 285_000
    usage = await books.api.GetUsage(
        pb.GetUsageRequest(account="alice", key_hashes=["key-of-alice"]), CONTEXT
    )
    assert usage.by_key["key-of-alice"].total_nano == CHARGE


async def test_M9_a_third_charged_attempt_leaves_one_charge(books: Books) -> None:
    for attempt in (2, 3, 1):
        await books.post(finished(attempt=attempt, tokens=attempt * 100))
    assert (await books.balance()).used_nano == 180_000
    assert (await books.generation()).posted_nano == 180_000


async def test_a_charge_given_back_returns_to_the_grant_it_was_drawn_from(books: Books) -> None:
    await books.grant(CHARGE, kind="promo", name="promo")
    await books.grant(CHARGE, kind="paid", name="paid")
    await books.post(finished(attempt=1))  # all of the promo credit
    await books.post(finished("01B"))  # all of the paid credit
    await books.post(finished(attempt=2, tokens=100))  # overdraws, until the charge above is back
    ledger = await books.ledger()
    assert ledger["cust:alice:promo:promo"] == CHARGE - 60_000
    assert not {"cust:alice:paid:paid", "cust:alice:paid:overdraft"} & ledger.keys()
    assert (await books.balance()).posted_nano == CHARGE - 60_000


@pytest.mark.parametrize(
    "outcome", [Outcome.OUTCOME_FAILED, Outcome.OUTCOME_LOST, Outcome.OUTCOME_HEDGE_LOST]
)
async def test_who_was_told_of_an_error_pays_nothing(
    books: Books, outcome: Outcome.ValueType
) -> None:
    await books.grant(NANO_PER_USD)
    await books.post(finished(outcome=outcome))
    assert (await books.balance()).used_nano == 0
    insured = outcome != Outcome.OUTCOME_FAILED
    assert (await books.ledger()).get("prov:provider:pending", 0) == (SHARE if insured else 0)


async def test_free_use_is_recorded_without_entries(books: Books) -> None:
    await books.post(finished(price=PriceVersion(id="free")))
    assert len((await books.generation()).attempts) == 1
    rows = await books.rows()
    assert rows["entry"] == rows["ledger_transaction"] == []


async def test_house_providers_are_credited_to_our_balance_there(books: Books) -> None:
    price = PriceVersion(entries=PRICE.entries)
    await books.post(finished(price=price, house=True))
    ledger = await books.ledger()
    assert ledger == {"cust:alice:paid:overdraft": -CHARGE, "provider_prepaid:provider": CHARGE}


async def test_a_settle_beyond_all_credit_posts_and_overdraws(books: Books) -> None:
    await books.grant(CHARGE // 2)
    await books.post(finished())
    balance = await books.balance()
    assert balance.posted_nano == -CHARGE // 2
    assert (await books.lease(1)).refusal == "insufficient_credits"
    assert (await books.ledger())["cust:alice:paid:overdraft"] == -CHARGE // 2


async def test_new_credit_first_covers_the_overdraft(books: Books) -> None:
    await books.post(finished())
    assert await books.grant(NANO_PER_USD, name="late") == NANO_PER_USD - CHARGE
    ledger = await books.ledger()
    assert ledger["cust:alice:paid:late"] == NANO_PER_USD - CHARGE
    assert "cust:alice:paid:overdraft" not in ledger


async def test_an_event_opens_its_account(books: Books) -> None:
    await books.post(finished(account="new"))
    assert (await books.balance("new")).used_nano == CHARGE


async def test_the_same_id_with_other_content_never_posts(books: Books) -> None:
    await books.post(finished())
    with pytest.raises(Unpostable) as refused:
        await books.post(finished(tokens=1))
    assert refused.value.reason == "other_content"
    with pytest.raises(Unpostable):
        await books.post(finished("01B"), finished("01B", tokens=1))
    assert (await books.balance()).used_nano == CHARGE


async def test_a_generation_cannot_be_charged_to_two_accounts(books: Books) -> None:
    await books.post(finished(attempt=1))
    with pytest.raises(Unpostable) as refused:
        await books.post(finished(attempt=2, account="bob"))
    assert refused.value.reason == "other_account"


async def test_usage_is_counted_in_windows_cut_at_midnight(books: Books) -> None:
    day_ms = 86_400_000
    monday_ms = 1_759_708_800_000  # Monday, 6 October 2025, midnight UTC
    books.now_ms = monday_ms + day_ms + 1
    for generation, at_ms in (
        ("01A", monday_ms - 10 * day_ms),  # last month
        ("01B", monday_ms - 1),  # Sunday
        ("01C", monday_ms),
        ("01D", monday_ms + day_ms),  # today
    ):
        await books.post(finished(generation, started_at_ms=at_ms, duration_ms=0))
    usage = await books.api.GetUsage(
        pb.GetUsageRequest(account="alice", key_hashes=["key-of-alice", "unused"]), CONTEXT
    )
    window = usage.by_key["key-of-alice"]
    assert [n // CHARGE for n in (window.total_nano, window.monthly_nano)] == [4, 3]
    assert [n // CHARGE for n in (window.weekly_nano, window.daily_nano)] == [2, 1]
    assert usage.by_key["unused"] == pb.UsageWindow()


@pytest.mark.parametrize("table", ["attempt", "credit_grant", "ledger_transaction", "entry"])
@pytest.mark.parametrize("change", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
async def test_what_is_written_can_be_neither_changed_nor_deleted(
    books: Books, table: str, change: str
) -> None:
    await books.grant(NANO_PER_USD)
    await books.post(finished())
    column = {"attempt": "charge_nano", "credit_grant": "issued_nano", "entry": "amount_nano"}
    statement = change.format(table, column.get(table, "kind"))
    with pytest.raises(DBAPIError, match="append-only"):
        async with books.database.begin() as connection:
            await connection.execute(text(statement))


TAMPERINGS = {
    "an entry": ("entry", "UPDATE entry SET amount_nano = amount_nano + 1 WHERE line = 0"),
    "two entries": ("entry", "UPDATE entry SET amount_nano = 2 * amount_nano"),
    "a lost entry": ("entry", "DELETE FROM entry WHERE line = 2"),
    "a lost transaction": ("ledger_transaction", "DELETE FROM ledger_transaction"),
    "a charge": ("attempt", "UPDATE attempt SET charge_nano = charge_nano - 1"),
    "an event": ("attempt", "UPDATE attempt SET event = content_hash"),
    "a grant": ("credit_grant", "UPDATE credit_grant SET issued_nano = issued_nano + 1"),
    "a balance": ("", "UPDATE ledger_account SET balance_nano = balance_nano + 1"),
    "an account's use": ("", "UPDATE account SET used_nano = used_nano - 1"),
    "an account's credit": ("", "UPDATE account SET granted_nano = granted_nano + 1"),
    "an account's loans": ("", "UPDATE account SET reserved_nano = reserved_nano + 1"),
    "a key's use": ("", "UPDATE usage_day SET charge_nano = charge_nano - 1"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_verify_sees_every_tampering(database: Database, what: str) -> None:
    books = Books(database)
    await books.grant(NANO_PER_USD)
    await books.lease(CHARGE)
    await books.post(finished())
    assert await books.failing_checks() == []
    table, statement = TAMPERINGS[what]
    async with database.begin() as connection:
        if table and database.is_sqlite:
            await connection.execute(text(f"DROP TRIGGER {table}_no_update"))
            await connection.execute(text(f"DROP TRIGGER {table}_no_delete"))
        elif table:
            await connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        await connection.execute(text(statement))
    assert await books.failing_checks()


async def test_a_batch_with_one_bad_event_writes_nothing(books: Books) -> None:
    bad: AttemptFinished = finished("01B")
    bad.list_nano += 1
    before = await books.rows()
    with pytest.raises(Unpostable):
        await books.post(finished(), bad)
    assert await books.rows() == before
