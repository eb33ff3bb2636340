"""Plans: reused, asked for once, never beyond a price boundary; and the draw of attempts."""

import asyncio
import itertools
from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse.rating import bound_nano
from bourse.rpc import Network
from bourse.v1.events_pb2 import PriceOverride, PriceVersion, Unit, UnitPrice
from bourse.v1.routing_pb2 import PlanResponse
from bourse.v1.routing_pb2_grpc import RoutingStub
from services.edge.breakers import Breakers
from services.edge.call import Call, parse
from services.edge.errors import ApiError
from services.edge.plans import Attempt, Plan, PlanCache
from tests.edge.world import MODEL, FakeRouting, candidate, price


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def call(**body: object) -> Call:
    messages = [{"role": "user", "content": "Hi"}]
    return parse(orjson.dumps({"model": MODEL, "messages": messages, **body}), {})


def cache(routing: FakeRouting, clock: Clock, **changes: object) -> PlanCache:
    network = Network()
    network.serve(RoutingStub, routing)
    return PlanCache(network.connect("local:", RoutingStub), clock=clock, **changes)  # type: ignore[arg-type]


async def test_requests_of_one_kind_wait_for_one_answer() -> None:
    routing, clock = FakeRouting(), Clock()
    routing.gate = asyncio.Event()
    plans = cache(routing, clock)
    waiting = [asyncio.create_task(plans.wait(call())) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # one that gives up does not take the answer from the others
    routing.gate.set()
    got = await asyncio.gather(*waiting[1:])
    assert len(routing.requests) == 1
    assert len({id(plan) for plan in got}) == 1


async def test_a_fresh_plan_is_reused_and_a_stale_one_is_asked_for_anew_meanwhile() -> None:
    routing, clock = FakeRouting(), Clock()
    plans = cache(routing, clock)
    first = await plans.wait(call())
    clock.now += 0.09
    assert plans.ready(call()) is first
    assert len(routing.requests) == 1
    clock.now += 0.5
    assert plans.ready(call()) is first
    assert plans.ready(call()) is first  # still one question
    await asyncio.sleep(0.01)
    assert len(routing.requests) == 2
    assert plans.ready(call()) is not first
    clock.now += 10
    assert plans.ready(call()) is None


async def test_a_plan_never_outlives_a_price_boundary() -> None:
    routing, clock = FakeRouting(), Clock()
    now_ms = 5_000
    routing.response = PlanResponse(candidates=[candidate("a")], expires_at_ms=5_050)
    plans = cache(routing, clock, wall_ms=lambda: now_ms)
    first = await plans.wait(call())
    assert plans.ready(call()) is first
    now_ms = 5_050
    assert plans.ready(call()) is None
    routing.down = True
    with pytest.raises(ApiError):
        await plans.wait(call())


async def test_an_old_plan_serves_while_routing_is_away() -> None:
    routing, clock = FakeRouting(), Clock()
    plans = cache(routing, clock)
    first = await plans.wait(call())
    routing.down = True
    clock.now += 60
    assert plans.ready(call()) is None
    assert await plans.wait(call()) is first


async def test_refusals_are_not_remembered() -> None:
    routing, clock = FakeRouting(), Clock()
    routing.candidates = []
    plans = cache(routing, clock)
    assert (await plans.wait(call())).attempts == []
    assert plans.ready(call()) is None


def drawn(plan: Plan, asked: Call | None = None, per_model: int = 5) -> list[str]:
    usable = Breakers().usable
    return [one.endpoint for one in plan.draw(asked or call(), "acct", per_model, usable)]


def test_tiers_come_in_order_and_equal_tiers_are_drawn_by_weight() -> None:
    plan = Plan(
        PlanResponse(
            candidates=[
                candidate("heavy", weight=9.0),
                candidate("light", weight=1.0),
                candidate("later", tier=1, weight=100.0),
            ]
        ),
        0.0,
    )
    orders = Counter(tuple(drawn(plan)) for _ in range(4_000))
    assert all(order[-1] == "later" for order in orders)
    first = orders["heavy", "light", "later"] / 4_000
    assert 0.87 < first < 0.93  # 9 to 1: six standard deviations to either side


def test_a_session_draws_the_same_order_every_time_and_others_do_not() -> None:
    plan = Plan(PlanResponse(candidates=[candidate(f"e{n}") for n in range(6)]), 0.0)
    one = {tuple(drawn(plan, call(session_id="one"), 6)) for _ in range(10)}
    assert len(one) == 1
    others = {tuple(drawn(plan, call(session_id=str(n)), 6)) for n in range(20)}
    assert len(others) > 10


def test_each_model_keeps_its_first_five() -> None:
    candidates = [candidate(f"a{n}", tier=n) for n in range(7)]
    candidates += [candidate(f"b{n}", tier=10 + n, model="b", model_index=1) for n in range(7)]
    plan = Plan(PlanResponse(candidates=candidates), 0.0)
    assert drawn(plan) == [f"a{n}" for n in range(5)] + [f"b{n}" for n in range(5)]


def test_no_fallbacks_without_an_order_means_one_attempt() -> None:
    plan = Plan(PlanResponse(candidates=[candidate("a"), candidate("b")]), 0.0)
    assert len(drawn(plan, call(provider={"allow_fallbacks": False}))) == 1
    assert len(drawn(plan, call(provider={"allow_fallbacks": False, "order": ["a", "b"]}))) == 2


def test_unusable_endpoints_are_passed_over_unless_none_is_left() -> None:
    plan = Plan(PlanResponse(candidates=[candidate("a"), candidate("b", tier=1)]), 0.0)
    asked = call()
    kept = plan.draw(asked, "acct", 5, lambda endpoint: endpoint == "b")
    assert [one.endpoint for one in kept] == ["b"]
    assert len(plan.draw(asked, "acct", 5, lambda _: False)) == 2


amounts = st.integers(0, 10**7)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 5, 6, 13]), amounts), min_size=1, max_size=6),
    st.lists(st.tuples(st.sampled_from([1, 5]), amounts), max_size=2),
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.integers(1, 20),
)
def test_the_precomputed_bound_is_that_of_rating(
    entries: list[tuple[int, int]],
    over: list[tuple[int, int]],
    prompt: int,
    completion: int,
    numerator: int,
) -> None:
    made = PriceVersion(
        entries=[UnitPrice(unit=Unit.ValueType(u), price_pico=p) for u, p in entries],
        overrides=[
            PriceOverride(
                prompt_tokens_over=100,
                entries=[UnitPrice(unit=Unit.ValueType(u), price_pico=p) for u, p in over],
            )
        ],
        discount_numerator=numerator,
        discount_denominator=20,
    )
    attempt = Attempt(candidate("a", at=made))
    assert attempt.bound_nano(prompt, completion) == bound_nano(made, prompt, completion)


@given(st.integers(0, 10**12), st.integers(0, 10**6))
def test_affordable_tokens_are_the_most_that_the_bound_allows(nano: int, prompt: int) -> None:
    attempt = Attempt(candidate("a", at=price()))
    tokens = attempt.affordable_tokens(nano, prompt)
    if tokens < 0:
        assert attempt.bound_nano(prompt, 0) > nano
    else:
        assert attempt.bound_nano(prompt, tokens) <= nano < attempt.bound_nano(prompt, tokens + 1)


def test_weights_of_zero_come_last() -> None:
    plan = Plan(PlanResponse(candidates=[candidate("z", weight=0.0), candidate("a")]), 0.0)
    assert {tuple(drawn(plan)) for _ in itertools.repeat(None, 50)} == {("a", "z")}
