"""Credit on loan: never over-admitted, never leaked, never falsely refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bourse.rpc import Network
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.events_pb2 import AccountState
from services.edge.holds import BillingUnreachable, Hold, InsufficientCredit, split
from services.edge.leases import LeasePool
from tests.edge.world import FakeBilling, eventually

ACCOUNT = "acct"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def lending(
    balance_nano: int, clock: Clock | None = None
) -> AsyncIterator[tuple[LeasePool, FakeBilling]]:
    network, billing = Network(), FakeBilling(balance_nano)
    network.serve(BillingStub, billing)
    client = network.connect("local:", BillingStub)
    pool = LeasePool(client, "edge-1", clock=clock) if clock else LeasePool(client, "edge-1")
    try:
        yield pool, billing
    finally:
        billing.down, billing.gate = False, None
        await settled(pool)


async def settled(pool: LeasePool) -> None:
    """Let background calls end, then close everything."""
    await quiet(pool)
    await pool.shutdown()


async def quiet(pool: LeasePool) -> None:
    """Return when no call to billing is under way."""
    await eventually(lambda: not pool._tasks)


async def take(pool: LeasePool, nano: int, floor: int | None = None) -> Hold:
    floor_nano = nano if floor is None else floor
    return await pool.hold(ACCOUNT, floor_nano=floor_nano, want_nano=nano, full_nano=nano)


async def test_a_warm_account_is_admitted_without_a_call() -> None:
    async with lending(10_000) as (pool, billing):
        (await take(pool, 100)).close()
        calls = billing.lease_calls
        for _ in range(20):
            hold = pool.take(ACCOUNT, 100, 100)
            assert hold is not None
            hold.close()
        assert billing.lease_calls == calls


async def test_M2_an_unknown_account_gets_nothing() -> None:
    async with lending(0) as (pool, _):
        assert pool.take(ACCOUNT, 1, 1) is None
        with pytest.raises(InsufficientCredit):
            await take(pool, 1)


async def test_M1_two_hundred_at_once_on_credit_for_k_admit_exactly_k() -> None:
    async with lending(70 * 100) as (pool, billing):
        results = await asyncio.gather(
            *(take(pool, 100) for _ in range(200)), return_exceptions=True
        )
        holds = [one for one in results if isinstance(one, Hold)]
        refused = [one for one in results if isinstance(one, InsufficientCredit)]
        assert len(holds) == 70  # none over, and no false refusal
        assert len(holds) + len(refused) == 200
        for hold in holds:
            hold.charge_in_order(100)
            hold.close()
        await settled(pool)
        assert (billing.balance_nano, billing.reserved_nano) == (0, 0)
        assert sum(one.charged_attempts for one in billing.closed.values()) >= 70


async def test_M16_less_than_wanted_is_held_when_the_floor_is_covered() -> None:
    async with lending(1_000) as (pool, _):
        hold = await pool.hold(ACCOUNT, floor_nano=100, want_nano=5_000, full_nano=50_000)
        assert hold.total_nano == 1_000
        assert hold.covers_nano == 1_000
        hold.close()
        with pytest.raises(InsufficientCredit) as refusal:
            await pool.hold(ACCOUNT, floor_nano=1_001, want_nano=5_000, full_nano=50_000)
        assert refusal.value.spendable_nano == 1_000


async def test_a_request_the_balance_covers_in_full_is_not_clamped() -> None:
    async with lending(1_000) as (pool, _):
        hold = await pool.hold(ACCOUNT, floor_nano=10, want_nano=100, full_nano=900)
        assert hold.covers_nano == 0
        hold.close()


async def test_M17_a_clamp_is_never_made_of_what_billing_said_before_a_top_up() -> None:
    clock = Clock()
    async with lending(1_000, clock) as (pool, billing):
        hold = await pool.hold(ACCOUNT, floor_nano=10, want_nano=100, full_nano=50_000)
        assert hold.covers_nano == 1_000
        hold.close()
        billing.balance_nano, billing.epoch = 1_000_000, 2
        pool.account_changed(AccountState(account=ACCOUNT, credit_epoch=2))
        hold = await pool.hold(ACCOUNT, floor_nano=10, want_nano=100, full_nano=50_000)
        assert hold.covers_nano == 0
        hold.close()


async def test_a_refusal_is_remembered_until_there_is_new_credit() -> None:
    clock = Clock()
    async with lending(0, clock) as (pool, billing):
        for _ in range(5):
            with pytest.raises(InsufficientCredit):
                await take(pool, 10)
        assert billing.lease_calls == 1
        billing.balance_nano, billing.epoch = 1_000, 2
        with pytest.raises(InsufficientCredit):
            await take(pool, 10)
        pool.account_changed(AccountState(account=ACCOUNT, credit_epoch=2))
        (await take(pool, 10)).close()  # M17: usable at once


async def test_a_refusal_that_is_older_than_the_credit_is_not_remembered() -> None:
    async with lending(0) as (pool, billing):
        billing.gate = asyncio.Event()
        asking = asyncio.create_task(take(pool, 10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool.account_changed(AccountState(account=ACCOUNT, credit_epoch=9))
        billing.gate.set()
        with suppress(InsufficientCredit):
            await asking
        billing.balance_nano, billing.epoch = 1_000, 9
        (await take(pool, 10)).close()


async def test_a_frozen_account_is_refused_and_thawed() -> None:
    async with lending(1_000) as (pool, _):
        (await take(pool, 10)).close()
        pool.account_changed(AccountState(account=ACCOUNT, frozen=True))
        assert pool.take(ACCOUNT, 10, 10) is None
        with pytest.raises(InsufficientCredit):
            await take(pool, 10)
        with pytest.raises(InsufficientCredit):
            pool.free(ACCOUNT)
        pool.account_changed(AccountState(account=ACCOUNT))
        (await take(pool, 10)).close()


async def test_billing_away_serves_from_live_leases_then_fails_closed() -> None:
    clock = Clock()
    async with lending(100_000, clock) as (pool, billing):
        (await take(pool, 100)).close()
        billing.down = True
        (await take(pool, 100)).close()
        clock.now += 31
        with pytest.raises(BillingUnreachable):
            await take(pool, 100)


async def test_nothing_is_taken_from_a_lease_past_its_time_and_what_is_held_stays_held() -> None:
    clock = Clock()
    async with lending(1_000, clock) as (pool, billing):
        hold = await take(pool, 100)
        clock.now += 31
        pool._sweep()
        assert pool.take(ACCOUNT, 1, 1) is None
        assert await pool.grow(hold, 10)  # from a new lease
        hold.charge_in_order(105)
        hold.close()
        await settled(pool)
        assert (billing.balance_nano, billing.reserved_nano) == (895, 0)


async def test_credit_of_an_expired_lease_is_lent_again_at_once() -> None:
    clock = Clock()
    async with lending(1_000, clock) as (pool, billing):
        billing.lease_max_nano = 1_000
        (await take(pool, 1_000)).close()
        clock.now += 31
        hold = await take(pool, 1_000)
        assert hold.total_nano == 1_000
        hold.close()


async def test_leases_are_renewed_in_the_background_before_they_run_out() -> None:
    clock = Clock()
    async with lending(1_000_000, clock) as (pool, billing):
        (await take(pool, 100)).close()
        calls = billing.lease_calls
        clock.now += 16
        hold = pool.take(ACCOUNT, 100, 100)
        assert hold is not None
        hold.close()
        await quiet(pool)
        assert billing.lease_calls == calls + 1
        clock.now += 15  # the first lease is over, the second is not
        hold = pool.take(ACCOUNT, 100, 100)
        assert hold is not None
        hold.close()


async def test_one_call_asks_for_many_accounts() -> None:
    async with lending(1_000_000) as (pool, billing):
        billing.gate = asyncio.Event()
        waiting = [
            asyncio.create_task(pool.hold(f"acct-{n}", floor_nano=10, want_nano=10, full_nano=10))
            for n in range(50)
        ]
        for _ in range(3):
            await asyncio.sleep(0)
        billing.gate.set()
        for hold in await asyncio.gather(*waiting):
            hold.close()
        assert billing.lease_calls <= 2


async def test_one_who_gives_up_waiting_does_not_take_the_answer_from_others() -> None:
    async with lending(1_000_000) as (pool, billing):
        billing.gate = asyncio.Event()
        waiting = [asyncio.create_task(take(pool, 10)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        billing.gate.set()
        for hold in await asyncio.gather(*waiting[1:]):
            hold.close()
        assert billing.lease_calls == 1


async def test_a_recalled_lease_ends_at_once() -> None:
    async with lending(1_000) as (pool, billing):
        (await take(pool, 10)).close()
        (lease,) = pool.leases_of(ACCOUNT)
        pool.account_changed(AccountState(account=ACCOUNT, recalled_leases=[lease.id]))
        assert pool.leases_of(ACCOUNT) == []
        await settled(pool)
        assert billing.reserved_nano == 0


async def test_a_charge_above_its_hold_is_never_refused() -> None:
    async with lending(1_000) as (pool, billing):
        hold = await take(pool, 100)
        hold.charge_in_order(130)
        hold.close()
        await settled(pool)
        assert billing.balance_nano == 870


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**5), min_size=1, max_size=6))
def test_a_charge_is_spent_from_its_parts_in_order(charge: int, parts: list[int]) -> None:
    spent = split(charge, parts)
    assert sum(spent) == charge
    for index, part in enumerate(parts[:-1]):
        assert spent[index] <= part
        if spent[index] < part:
            assert sum(spent[index + 1 :]) == 0


async def test_an_attempt_in_doubt_is_named_when_its_leases_close() -> None:
    async with lending(1_000) as (pool, billing):
        hold = await take(pool, 100)
        hold.doubt("gen:attempt:1")
        hold.close()
        await settled(pool)
        assert [list(one.in_doubt) for one in billing.closed.values()] == [["gen:attempt:1"]]


async def test_closing_is_repeated_until_billing_has_heard_it() -> None:
    clock = Clock()
    async with lending(1_000, clock) as (pool, billing):
        (await take(pool, 100)).close()
        billing.down = True
        clock.now += 31
        pool._sweep()
        assert not await pool._close_all(list(pool._closing.values()))
        billing.down = False
        await settled(pool)
        assert billing.reserved_nano == 0


steps = st.lists(
    st.tuples(
        st.sampled_from(["hold", "close", "charge", "grow", "expire", "cancel", "down", "up"]),
        st.integers(1, 400),
    ),
    max_size=40,
)


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 3_000), steps)
def test_M14_whatever_happens_nothing_is_over_admitted_and_nothing_stays_held(
    balance: int, script: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(balance, script))


async def _play(balance: int, script: list[tuple[str, int]]) -> None:
    clock = Clock()
    charged = 0
    async with lending(balance, clock) as (pool, billing):
        holds: list[Hold] = []
        for step, number in script:
            if step == "hold":
                with suppress(InsufficientCredit, BillingUnreachable):
                    holds.append(await take(pool, number, floor=1))
            elif step == "cancel":  # at each await in turn
                asking = asyncio.create_task(take(pool, number))
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                if asking.done():
                    if asking.exception() is None:
                        holds.append(asking.result())
                    continue
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking
            elif step == "expire":
                clock.now += number / 8
                pool._sweep()
            elif step in ("down", "up"):
                billing.down = step == "down"
            elif holds:
                hold = holds[number % len(holds)]
                if step == "grow":
                    await pool.grow(hold, number)
                    continue
                if step == "charge":
                    spent = min(number, hold.total_nano)
                    hold.charge_in_order(spent)
                    charged += spent
                holds.remove(hold)
                hold.close()
            held = sum(hold.total_nano for hold in holds)
            assert pool.held_nano == held
            for lease in pool.leases_of(ACCOUNT):
                used = lease.left_nano + lease.held_nano + lease.charged_nano
                assert used == lease.granted_nano
            assert charged + held <= balance
        for hold in holds:
            hold.close()
        assert pool.held_nano == 0
        billing.down = False
        await settled(pool)
        assert billing.reserved_nano == 0
        assert billing.balance_nano == balance - charged
