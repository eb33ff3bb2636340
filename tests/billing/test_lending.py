"""Leases lent, spent, returned and reclaimed on real books."""

import asyncio

import pytest
from sqlalchemy import select

from bourse.rpc import RpcError, StatusCode
from bourse.v1 import billing_pb2 as pb
from bourse.v1.events_pb2 import AccountState, AttemptFinished, Envelope
from services.billing.leases import Rule
from services.billing.tables import metadata
from tests.billing.builders import CONTEXT, RULE, Books, finished

CHARGE = 600_000


async def told(books: Books) -> list[AccountState]:
    """The account states in the outbox, in order."""
    outbox = metadata.tables["outbox"]
    async with books.database.read() as connection:
        rows = await connection.execute(
            select(outbox.c.topic, outbox.c.key, outbox.c.value).order_by(outbox.c.id)
        )
        states = []
        for topic, key, value in rows:
            assert topic == "accounts"
            states.append(AccountState.FromString(Envelope.FromString(value).data))
            assert key.decode() == states[-1].account
    return states


async def test_a_lease_reserves_what_it_lends(books: Books) -> None:
    await books.grant(10 * CHARGE)
    grant = await books.lease(CHARGE)
    assert grant.amount_nano == CHARGE
    assert grant.ttl_ms == RULE.ttl_ms
    assert grant.available_nano == 9 * CHARGE
    assert (await books.balance()).reserved_nano == CHARGE


async def test_M2_an_account_never_seen_gets_no_lease(books: Books) -> None:
    grant = await books.lease(1, "nobody")
    assert (grant.refusal, grant.lease) == ("unknown_account", "")


async def test_many_accounts_are_answered_in_one_call_in_their_order(books: Books) -> None:
    await books.grant(CHARGE, "alice")
    await books.grant(10, "bob")
    wants = [
        pb.LeaseWant(account=account, estimate_nano=CHARGE)
        for account in ("bob", "alice", "nobody", "alice")
    ]
    response = await books.api.Lease(pb.LeaseRequest(edge="edge-1", wants=wants), CONTEXT)
    assert [g.account for g in response.grants] == ["bob", "alice", "nobody", "alice"]
    assert [g.refusal for g in response.grants] == [
        "insufficient_credits",
        "",
        "unknown_account",
        "insufficient_credits",
    ]
    assert [g.available_nano for g in response.grants] == [10, 0, 0, 0]


async def test_M1_two_hundred_calls_at_once_lend_no_more_than_there_is(books: Books) -> None:
    await books.grant(50 * CHARGE)
    grants = await asyncio.gather(
        *(books.lease(CHARGE, edge=f"edge-{number % 3}") for number in range(200))
    )
    lent = [g.amount_nano for g in grants if g.lease]
    balance = await books.balance()
    assert sum(lent) == balance.reserved_nano <= balance.posted_nano
    # No false refusal: what is left does not cover another estimate.
    assert balance.posted_nano - balance.reserved_nano < CHARGE
    assert {g.refusal for g in grants if not g.lease} == {"insufficient_credits"}


async def test_credit_is_spread_over_the_edges_that_ask(books: Books) -> None:
    books.rule = Rule(cap_nano=10**12, ttl_ms=30_000, grace_ms=0, estimates_min=1)
    await books.grant(1_000)
    await books.lease(1, edge="edge-1")
    assert (await books.lease(10, edge="edge-2", burn=10**9)).amount_nano == 999 // 4


async def test_a_settle_moves_its_part_from_reserved_to_used(books: Books) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(3 * CHARGE)).lease
    await books.post(finished(spends=[(lease, CHARGE)]))
    balance = await books.balance()
    assert (balance.used_nano, balance.reserved_nano) == (CHARGE, 2 * CHARGE)


async def test_a_settle_beyond_its_lease_posts_and_releases_no_more_than_was_lent(
    books: Books,
) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(100)).lease
    await books.post(finished(spends=[(lease, CHARGE)]))
    balance = await books.balance()
    assert (balance.used_nano, balance.reserved_nano) == (CHARGE, 0)


async def test_a_spend_on_another_accounts_lease_releases_nothing(books: Books) -> None:
    await books.grant(CHARGE, "alice")
    await books.grant(CHARGE, "bob")
    lease = (await books.lease(CHARGE, "alice")).lease
    await books.post(finished(account="bob", spends=[(lease, CHARGE), ("unheard-of", 0)]))
    assert (await books.balance("alice")).reserved_nano == CHARGE
    assert (await books.balance("bob")).used_nano == CHARGE


async def test_what_is_returned_can_be_lent_again(books: Books) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE)).lease
    await books.give_back(lease, 400_000)
    assert (await books.balance()).reserved_nano == 200_000
    await books.give_back(lease, 10**9)  # no more than is on loan
    assert (await books.balance()).reserved_nano == 0
    assert (await books.lease(CHARGE)).lease


async def test_M14_a_closed_lease_leaves_nothing_reserved(books: Books) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(5 * CHARGE)).lease
    await books.post(finished("01A", spends=[(lease, CHARGE)]))
    await books.close(lease, 1, CHARGE)
    balance = await books.balance()
    assert (balance.reserved_nano, balance.used_nano) == (0, CHARGE)


async def test_M14_a_lease_closed_before_its_events_ends_with_the_last_of_them(
    books: Books,
) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(5 * CHARGE)).lease
    await books.close(lease, 2, 2 * CHARGE)
    assert (await books.balance()).reserved_nano == 5 * CHARGE
    await books.post(finished("01A", spends=[(lease, CHARGE)]))
    assert (await books.balance()).reserved_nano == 4 * CHARGE
    await books.post(finished("01B", spends=[(lease, CHARGE)]))
    await books.post(finished("01B", spends=[(lease, CHARGE)]))
    assert (await books.balance()).reserved_nano == 0


async def test_M14_two_quanta_of_one_lease_are_one_charged_attempt(books: Books) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(5 * CHARGE)).lease
    await books.post(finished("01A", spends=[(lease, CHARGE - 10), (lease, 10)]))
    await books.close(lease, 1, CHARGE)
    assert (await books.balance()).reserved_nano == 0


async def test_M14_a_lease_never_used_is_given_back_on_close(books: Books) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE)).lease
    await books.close(lease, 0, 0)
    await books.close(lease, 0, 0)
    assert (await books.balance()).reserved_nano == 0
    assert (await books.lease(CHARGE)).lease


async def test_M14_a_lost_edges_lease_is_reclaimed_once_every_worker_carries_none_of_it(
    books: Books,
) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE)).lease
    assert await books.sweep() == 0
    books.now_ms += RULE.ttl_ms + RULE.grace_ms
    await books.report("worker-1")  # at its very end: not after it
    books.now_ms += 1
    assert await books.sweep() == 0
    await books.report("worker-2", lease)
    await books.report("worker-1")
    assert await books.sweep() == 0
    books.now_ms += 10_000
    await books.report("worker-2", "another-lease")
    assert await books.sweep() == 1
    assert (await books.balance()).reserved_nano == 0
    assert await books.sweep() == 0


async def test_a_lease_is_not_reclaimed_while_its_events_may_lie_in_the_log(books: Books) -> None:
    await books.grant(CHARGE)
    await books.lease(CHARGE)
    books.now_ms += RULE.ttl_ms + RULE.grace_ms + 1
    await books.report("worker-1")
    for backlog in (None, 1, 10**6):
        books.backlog = backlog
        assert await books.sweep() == 0
    books.now_ms += 61_000
    await books.report("worker-1")
    for backlog, reclaimed in ((None, 0), (10**6, 0), (1, 1)):
        books.backlog = backlog
        assert await books.sweep() == reclaimed


async def test_a_lease_in_doubt_waits_for_the_workers(books: Books) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE)).lease
    await books.close(lease, 0, 0, in_doubt=["01A:attempt:1"])
    books.now_ms += RULE.ttl_ms + RULE.grace_ms + 1
    assert await books.sweep() == 0
    await books.report("worker-1")
    assert await books.sweep() == 1


@pytest.mark.parametrize("named_first", [True, False])
async def test_an_attempt_whose_end_no_edge_saw_is_paid_by_the_platform(
    books: Books, named_first: bool
) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(CHARGE)).lease
    event = finished(spends=[(lease, CHARGE)])
    if not named_first:
        await books.post(event)
    await books.close(lease, 0, 0, in_doubt=["01A:attempt:1", "nonsense", "01B:attempt:x"])
    if named_first:
        await books.post(event)
    await books.close(lease, 0, 0, in_doubt=["01A:attempt:1"])
    assert (await books.balance()).used_nano == 0
    assert (await books.generation()).posted_nano == 0
    assert (await books.ledger())["insurance"] == -CHARGE


async def test_the_attempt_that_was_served_stands_beside_one_in_doubt(books: Books) -> None:
    await books.grant(10 * CHARGE)
    lease = (await books.lease(5 * CHARGE)).lease
    await books.close(lease, 1, 60_000, in_doubt=["01A:attempt:2"])
    await books.post(finished(attempt=2, spends=[(lease, CHARGE)]))
    await books.post(finished(attempt=1, tokens=100, spends=[(lease, 60_000)]))
    assert (await books.generation()).posted_nano == 60_000


async def test_an_edge_cannot_have_another_accounts_charge_given_back(books: Books) -> None:
    await books.grant(CHARGE, "alice")
    await books.grant(CHARGE, "bob")
    await books.post(finished(account="bob"))
    lease = (await books.lease(1, "alice")).lease
    await books.close(lease, 0, 0, in_doubt=["01A:attempt:1", "01C:attempt:1"])
    await books.post(finished("01C", account="bob"))
    assert (await books.balance("bob")).used_nano == 2 * CHARGE


async def test_an_event_after_the_reclaim_still_posts(books: Books) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE)).lease
    books.now_ms += RULE.ttl_ms + RULE.grace_ms + 1
    await books.report("worker-1")
    assert await books.sweep() == 1
    await books.post(finished(spends=[(lease, CHARGE)]))
    balance = await books.balance()
    assert (balance.used_nano, balance.reserved_nano) == (CHARGE, 0)


async def test_M14_two_edges_that_served_while_billing_was_away_add_up_exactly(
    books: Books,
) -> None:
    """Both spend from their leases; nothing posts until later, then all of it does."""
    requests = 40
    await books.grant(requests * CHARGE)
    left: dict[str, int] = {}
    for edge in ("edge-1", "edge-2"):
        grant = await books.lease(CHARGE, edge=edge, burn=requests * CHARGE)
        left[grant.lease] = grant.amount_nano
    lent = dict(left)
    served: list[AttemptFinished] = []
    for lease in left:
        while left[lease] >= CHARGE:  # billing is away: no more than the lease
            left[lease] -= CHARGE
            served.append(finished(f"01{len(served):04d}", spends=[(lease, CHARGE)]))
    assert 0 < len(served) < requests
    books.now_ms += 10 * RULE.ttl_ms
    for event in served:
        await books.post(event)
    balance = await books.balance()
    assert balance.used_nano == len(served) * CHARGE
    assert balance.reserved_nano == sum(left.values())
    for edge, lease in zip(("edge-1", "edge-2"), left, strict=True):
        spent = lent[lease] - left[lease]
        await books.close(lease, spent // CHARGE, spent, edge=edge)
    assert (await books.balance()).reserved_nano == 0


async def test_M17_new_credit_makes_a_remembered_refusal_stale(books: Books) -> None:
    await books.grant(1)
    refused = await books.lease(CHARGE)
    assert refused.refusal == "insufficient_credits"
    await books.grant(CHARGE)
    epochs = [state.credit_epoch for state in await told(books)]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] > refused.credit_epoch
    assert (await books.lease(CHARGE)).lease
    assert books.woken == 2


async def test_M17_credit_that_comes_back_from_a_loan_makes_a_refusal_stale_too(
    books: Books,
) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE, edge="edge-1")).lease
    refused = await books.lease(CHARGE, edge="edge-2")
    assert refused.refusal == "insufficient_credits"
    await books.close(lease, 0, 0, edge="edge-1")
    assert (await told(books))[-1].credit_epoch > refused.credit_epoch
    assert (await books.lease(CHARGE, edge="edge-2")).lease


async def test_M18_a_grant_with_the_same_id_counts_once(books: Books) -> None:
    assert await books.grant(CHARGE, name="one") == CHARGE
    assert await books.grant(CHARGE, name="one") == CHARGE
    with pytest.raises(RpcError) as refused:
        await books.grant(CHARGE + 1, name="one")
    assert (refused.value.code, refused.value.field) == (StatusCode.ALREADY_EXISTS, "id")
    assert (await books.balance()).granted_nano == CHARGE


async def test_promotional_credit_is_a_cost_of_the_platform(books: Books) -> None:
    await books.grant(CHARGE, kind="promo", name="welcome")
    assert await books.ledger() == {"promo": -CHARGE, "cust:alice:promo:welcome": CHARGE}


async def test_an_account_never_seen_has_a_balance_of_zero(books: Books) -> None:
    assert await books.balance("nobody") == pb.GetBalanceResponse()


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Lease", pb.LeaseRequest(), "edge"),
        ("Lease", pb.LeaseRequest(edge="e", wants=[pb.LeaseWant()]), "wants[0].account"),
        (
            "Lease",
            pb.LeaseRequest(edge="e", wants=[pb.LeaseWant(account="a", estimate_nano=-1)]),
            "wants[0].estimate_nano",
        ),
        ("ReturnLease", pb.ReturnLeaseRequest(amount_nano=-1), "amount_nano"),
        ("CloseLease", pb.CloseLeaseRequest(charged_nano=-1), "charged_nano"),
        ("ConfirmLeases", pb.ConfirmLeasesRequest(), "worker"),
        ("Grant", pb.GrantRequest(), "id"),
        ("Grant", pb.GrantRequest(id="a:b", account="a", actor="o"), "id"),
        ("Grant", pb.GrantRequest(id="i", account="a", actor="o", kind="gift"), "kind"),
        ("Grant", pb.GrantRequest(id="i", account="a", actor="o", kind="paid"), "amount_nano"),
    ],
)
async def test_bad_input_is_refused_with_the_field_at_fault(
    books: Books, method: str, request_: object, field: str
) -> None:
    with pytest.raises(RpcError) as refused:
        await getattr(books.api, method)(request_, CONTEXT)
    assert (refused.value.code, refused.value.field) == (StatusCode.INVALID_ARGUMENT, field)


async def test_an_edge_can_touch_its_own_leases_only(books: Books) -> None:
    await books.grant(CHARGE)
    lease = (await books.lease(CHARGE, edge="edge-1")).lease
    for call in (
        books.close(lease, 0, 0, edge="edge-2"),
        books.give_back(lease, 1, edge="edge-2"),
        books.close("unheard-of", 0, 0),
    ):
        with pytest.raises(RpcError) as refused:
            await call
        assert (refused.value.code, refused.value.field) == (StatusCode.NOT_FOUND, "lease")
    assert (await books.balance()).reserved_nano == CHARGE
