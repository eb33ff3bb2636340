"""Plan over rpc, on views fed by an event log."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from bourse.event_log import CATALOG, GENERATIONS, CaughtUp, EventLog, LogUnavailable, Record, Topic
from bourse.rpc import Network, RpcError, StatusCode
from bourse.v1.events_pb2 import ListingState
from bourse.v1.routing_pb2 import PlanRequest, PlanResponse, ProviderPreferences, Sort
from bourse.v1.routing_pb2_grpc import RoutingStub
from services.routing.grpc_api import RoutingApi
from services.routing.views import Views
from tests.routing.builders import (
    MODEL,
    NOW_MS,
    attempt,
    catalog_record,
    flat,
    generation_record,
    listing,
    price,
)

Item = Sequence[Record] | CaughtUp | LogUnavailable


class Script:
    """An event log that plays what a test puts in; one `follow` per topic at a time."""

    def __init__(self) -> None:
        self.queues: dict[str, asyncio.Queue[Item]] = {}
        self.since_ms: dict[str, int | None] = {}

    def put(self, topic: Topic, *items: Item) -> None:
        for item in items:
            self.queues.setdefault(topic.name, asyncio.Queue()).put_nowait(item)

    async def follow(
        self, topic: Topic, since_ms: int | None = None
    ) -> AsyncIterator[Sequence[Record] | CaughtUp]:
        self.since_ms[topic.name] = since_ms
        queue = self.queues.setdefault(topic.name, asyncio.Queue())
        while True:
            item = await queue.get()
            if isinstance(item, LogUnavailable):
                raise item
            yield item


class Routing:
    """Routing as `main.start` wires it, on a scripted log and clock."""

    def __init__(self) -> None:
        self.log = Script()
        self.now_ms = NOW_MS
        self.views = Views(cast(EventLog, self.log), replay_ms=1_800_000, clock=lambda: self.now_ms)
        self.network = Network()
        self.network.serve(RoutingStub, RoutingApi(self.views, clock=lambda: self.now_ms))
        self._client = self.network.connect("local:", RoutingStub)
        self.tasks = [
            asyncio.create_task(self.views.follow_catalogue()),
            asyncio.create_task(self.views.follow_health()),
        ]

    async def plan(self, *models: str, **facts: object) -> PlanResponse:
        request = PlanRequest(models=models or (MODEL,), **facts)  # type: ignore[arg-type]
        return cast(PlanResponse, await self._client.Plan(request))

    async def until(self, count: int) -> PlanResponse:
        """Plan until there are `count` candidates."""
        deadline = time.monotonic() + 10
        while True:
            if self.views.caught_up:
                plan = await self.plan()
                if len(plan.candidates) == count:
                    return plan
            assert time.monotonic() < deadline, "the views never got there"
            await asyncio.sleep(0.01)


@pytest.fixture
async def routing() -> AsyncIterator[Routing]:
    made = Routing()
    yield made
    for task in made.tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await made.network.close()


async def caught_up(routing: Routing, *records: Record) -> None:
    routing.log.put(CATALOG, list(records), CaughtUp())
    routing.log.put(GENERATIONS, CaughtUp())
    await routing.until(len(records))


async def test_there_is_no_plan_before_both_topics_have_been_read(routing: Routing) -> None:
    for topic in (CATALOG, GENERATIONS):
        with pytest.raises(RpcError) as raised:
            await routing.plan()
        assert raised.value.code is StatusCode.UNAVAILABLE
        routing.log.put(topic, CaughtUp())
        await asyncio.sleep(0)
    await routing.until(0)
    assert routing.log.since_ms == {"catalog": None, "generations": NOW_MS - 1_800_000}


async def test_a_candidate_carries_its_listing_and_its_frozen_price(routing: Routing) -> None:
    dated = price(1_100_000, 2_200_000, id="v1", ends_at_ms=NOW_MS + 1, commission_bps=500)
    shown = listing("e1", "p1", prices=[dated], description="words", context_length=9_000)
    await caught_up(routing, catalog_record(6, shown))
    plan = await routing.plan()
    (candidate,) = plan.candidates
    shown.ClearField("prices")
    assert candidate.listing == shown
    assert candidate.price == dated
    assert (candidate.tier, candidate.weight, candidate.model_index) == (0, 1.0, 0)
    assert candidate.price_blended_pico == 1_200_000
    assert plan.expires_at_ms == NOW_MS + 1
    assert plan.version == "7.0"


async def test_the_last_state_of_a_key_holds_and_a_tombstone_removes_it(routing: Routing) -> None:
    key = "p1/author/model/e1"
    await caught_up(
        routing, catalog_record(0, listing("e1", "p1")), catalog_record(1, listing("e2", "p2"))
    )
    hidden = listing("e1", "p1", state=ListingState.LISTING_STATE_HIDDEN)
    routing.log.put(CATALOG, [catalog_record(2, hidden)])
    plan = await routing.until(1)
    assert [(each.endpoint, each.excluded_by) for each in plan.exclusions] == [("e1", "state")]
    routing.log.put(
        CATALOG, [catalog_record(3, None, key), catalog_record(4, None, "p2/author/model/e2")]
    )
    gone = await routing.until(0)
    assert not gone.exclusions
    assert gone.unknown_models == [MODEL]


async def test_an_unreadable_listing_leaves_the_others_and_itself_as_they_were(
    routing: Routing,
) -> None:
    good = catalog_record(0, listing("e1", "p1"))
    await caught_up(routing, good)
    spoiled = Record("catalog", 0, 1, good.key, b"\xff", NOW_MS)
    nameless = catalog_record(2, listing("", "p9"))
    routing.log.put(CATALOG, [spoiled, nameless, catalog_record(3, listing("e2", "p2"))])
    await routing.until(2)


async def test_a_log_that_breaks_off_is_read_again_while_plans_go_on(routing: Routing) -> None:
    await caught_up(routing, catalog_record(0, listing("e1")), catalog_record(1, listing("e2")))
    routing.log.put(CATALOG, LogUnavailable("away"))
    await asyncio.sleep(0)
    assert len((await routing.plan()).candidates) == 2
    routing.log.put(CATALOG, [catalog_record(1, listing("e2"))], CaughtUp())
    await routing.until(1)  # the tombstone that was compacted away meanwhile is not missed


async def test_failures_on_the_log_move_an_endpoint_behind_within_the_next_plan(
    routing: Routing,
) -> None:
    await caught_up(
        routing,
        catalog_record(0, listing("e1", prices=[flat(1)])),
        catalog_record(1, listing("e2", prices=[flat(100)])),
    )
    assert [c.listing.endpoint for c in (await routing.plan()).candidates] == ["e1", "e2"]
    routing.log.put(GENERATIONS, [generation_record(attempt("e1", status=503)) for _ in range(3)])
    deadline = time.monotonic() + 10
    while [c.listing.endpoint for c in (await routing.plan()).candidates] != ["e2", "e1"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    routing.now_ms += 31_000
    assert [c.listing.endpoint for c in (await routing.plan()).candidates] == ["e1", "e2"]


async def test_preferences_arrive_as_they_were_sent(routing: Routing) -> None:
    records = [catalog_record(n, listing(f"e{n}", f"p{n}", prices=[flat(n + 1)])) for n in range(4)]
    await caught_up(routing, *records)
    plan = await routing.plan(
        preferences=ProviderPreferences(
            order=["p3"], ignore=["p1"], only=["p1", "p2", "p3"], forbid_fallbacks=False
        )
    )
    assert [c.listing.endpoint for c in plan.candidates] == ["e3", "e2"]
    assert {each.endpoint: each.field for each in plan.exclusions} == {
        "e0": "provider.only",
        "e1": "provider.ignore",
    }
    cheapest = await routing.plan(preferences=ProviderPreferences(sort=Sort.SORT_PRICE))
    assert [c.tier for c in cheapest.candidates] == [0, 1, 2, 3]
    strict = await routing.plan(
        preferences=ProviderPreferences(require_parameters=True, zero_data_retention=True),
        parameters=["seed"],
    )
    assert {each.excluded_by for each in strict.exclusions} == {"require_parameters"}


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"models": []}, "model"),
        ({"models": [f"m/{n}" for n in range(51)]}, "models"),
        ({"models": ["m/1"], "max_tokens": -1}, "max_tokens"),
        ({"models": ["m/1"], "prompt_tokens": -1}, "prompt_tokens"),
    ],
)
async def test_a_bad_request_names_its_field(
    routing: Routing, facts: dict[str, object], field: str
) -> None:
    with pytest.raises(RpcError) as raised:
        await routing._client.Plan(PlanRequest(**facts))  # type: ignore[arg-type]
    assert (raised.value.code, raised.value.field) == (StatusCode.INVALID_ARGUMENT, field)
