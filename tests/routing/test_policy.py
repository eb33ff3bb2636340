"""Who may serve, in which order, and why not the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse.v1.events_pb2 import Listing, ListingState, PriceOverride, PriceVersion, Unit, UnitPrice
from services.routing import policy
from services.routing.ask import Ask, Sort
from services.routing.endpoint import Endpoint, from_listing
from services.routing.health import UNKNOWN, Condition
from tests.routing.builders import MODEL, NOW_MS, flat, listing, price

UNSTABLE = replace(UNKNOWN, stable=False)


class Shelf:
    """A catalogue of given listings."""

    def __init__(self, *listings: Listing) -> None:
        self._endpoints = [from_listing(made) for made in listings]

    def of_model(self, model: str) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if endpoint.model == model]


@dataclass
class Told:
    """Health as a test says it is."""

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    latencies: Mapping[str, float] = field(default_factory=dict)
    throughputs: Mapping[str, float] = field(default_factory=dict)

    def condition(self, endpoint: str, now_ms: int) -> Condition:
        return self.conditions.get(endpoint, UNKNOWN)

    def latency_ms(self, endpoint: str, now_ms: int) -> float | None:
        return self.latencies.get(endpoint)

    def throughput(self, endpoint: str, now_ms: int) -> float | None:
        return self.throughputs.get(endpoint)


def planned(
    *listings: Listing, health: Told | None = None, now_ms: int = NOW_MS, **ask: Any
) -> policy.Plan:
    wishes = Ask(**({"models": (MODEL,)} | ask))
    return policy.plan(wishes, Shelf(*listings), health or Told(), now_ms)


def order_of(plan: policy.Plan) -> list[list[str]]:
    """Endpoint ids by tier."""
    tiers: dict[int, list[str]] = {}
    for candidate in plan.candidates:
        tiers.setdefault(candidate.tier, []).append(candidate.endpoint.id)
    assert list(tiers) == list(range(len(tiers))), "tiers are dense and ascending"
    return [sorted(tiers[tier]) for tier in tiers]


def reasons(plan: policy.Plan) -> dict[str, tuple[str, str]]:
    assert all(each.detail for each in plan.excluded)
    return {each.endpoint.id: (each.excluded_by, each.field) for each in plan.excluded}


# Balance.


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_weights_are_exactly_inverse_square_of_the_price(prices: list[int]) -> None:
    plan = planned(*(listing(f"e{n}", prices=[flat(pico)]) for n, pico in enumerate(prices)))
    assert {candidate.tier for candidate in plan.candidates} == {0}
    cheapest = min(prices)
    for candidate in plan.candidates:
        exact = Fraction(cheapest, prices[int(candidate.endpoint.id[1:])]) ** 2
        assert candidate.weight == pytest.approx(float(exact), rel=1e-12)
        assert candidate.weight > 0


def test_one_three_times_dearer_comes_first_nine_times_less_often() -> None:
    plan = planned(listing("cheap", prices=[flat(100)]), listing("dear", prices=[flat(300)]))
    weights = {candidate.endpoint.id: candidate.weight for candidate in plan.candidates}
    assert weights["cheap"] / weights["dear"] == pytest.approx(9)


def test_the_blend_is_ten_prompt_tokens_to_one_completion_token() -> None:
    plan = planned(listing("e", prices=[price(1_100_000, 11_000_000)]))
    assert plan.candidates[0].blended_pico == (1_100_000 * 10 + 11_000_000) // 11


def test_a_discount_lowers_the_price_that_is_compared() -> None:
    dated = flat(1_000_000, discount_numerator=3, discount_denominator=4)
    assert planned(listing("e", prices=[dated])).candidates[0].blended_pico == 750_000


def test_a_price_per_request_is_not_free() -> None:
    asked = flat(0)
    asked.entries.append(UnitPrice(unit=Unit.UNIT_REQUEST, price_pico=1_100_000_000))
    plan = planned(listing("e", prices=[asked]), listing("paid", prices=[flat(10)]))
    assert order_of(plan) == [["e", "paid"]]
    assert {c.endpoint.id: c.blended_pico for c in plan.candidates}["e"] == 1_000_000


def test_a_large_prompt_is_compared_at_its_own_price() -> None:
    dated = flat(100)
    doubled = [UnitPrice(unit=u, price_pico=200) for u in (Unit.UNIT_PROMPT, Unit.UNIT_COMPLETION)]
    dated.overrides.append(PriceOverride(prompt_tokens_over=1_000, entries=doubled))
    for tokens, blended in ((1_000, 100), (1_001, 200)):
        plan = planned(listing("e", prices=[dated]), prompt_tokens=tokens)
        assert plan.candidates[0].blended_pico == blended


def test_free_endpoints_share_the_draw_before_paid_ones() -> None:
    plan = planned(
        listing("paid", prices=[flat(5)]),
        listing("free-1", prices=[flat(0)]),
        listing("free-2", prices=[flat(0)]),
    )
    assert order_of(plan) == [["free-1", "free-2"], ["paid"]]
    assert [candidate.weight for candidate in plan.candidates] == [1, 1, 1]


# Stability.


def test_classes_follow_each_other_and_balance_stays_within_them() -> None:
    def uptime(percent: float) -> Condition:
        return replace(UNKNOWN, uptime=percent)

    conditions = {
        "good": uptime(95), "fair": uptime(94.9), "fair-2": uptime(80), "poor": uptime(79.9),
        "down": UNSTABLE,
    }  # fmt: skip
    plan = planned(*(listing(name) for name in (*conditions, "new")), health=Told(conditions))
    assert order_of(plan) == [["good", "new"], ["fair", "fair-2"], ["poor"], ["down"]]


def test_thin_traffic_is_judged_by_the_day() -> None:
    plan = planned(
        listing("bad-day", uptime_1d=60, uptime_1d_counted=100),
        listing("hardly-counted", uptime_1d=60, uptime_1d_counted=99),
    )
    assert order_of(plan) == [["hardly-counted"], ["bad-day"]]


def test_lower_priority_and_fallback_only_come_later() -> None:
    plan = planned(
        listing("listed"),
        listing("degraded", state=ListingState.LISTING_STATE_DEGRADED),
        listing("fallback", state=ListingState.LISTING_STATE_FALLBACK_ONLY),
    )
    assert order_of(plan) == [["listed"], ["degraded"], ["fallback"]]


def test_supporting_the_sent_tools_comes_before_being_stable() -> None:
    plan = planned(
        listing("plain"),
        listing("able", supported_parameters=["tools"]),
        health=Told({"able": UNSTABLE}),
        parameters=frozenset({"tools", "temperature"}),
    )
    assert order_of(plan) == [["able"], ["plain"]]


# Cool-downs.

COOLING = replace(UNKNOWN, cooling_until_ms=NOW_MS + 5_000, cooling_after="429")


def test_a_cooling_endpoint_is_passed_over_and_says_so() -> None:
    plan = planned(listing("hot"), listing("rested"), health=Told({"hot": COOLING}))
    assert order_of(plan) == [["rested"]]
    assert reasons(plan) == {"hot": ("state", "")}


def test_S13_cool_downs_never_leave_a_model_without_candidates() -> None:
    health = Told({"e1": COOLING, "e2": COOLING, "only": COOLING})
    plan = planned(
        listing("e1"), listing("e2"), listing("only", model="author/other"),
        listing("rested", model="author/third"),
        health=health, models=(MODEL, "author/other", "author/third"),
    )  # fmt: skip
    assert order_of(plan) == [["e1", "e2"], ["only"], ["rested"]]


def test_S15_a_preferred_endpoint_that_is_cooling_orders_nobody_out() -> None:
    plan = planned(
        listing("hot", "p1"), listing("next", "p2"), health=Told({"hot": COOLING}), order=("p1",)
    )
    assert order_of(plan) == [["next"]]
    alone = planned(
        listing("hot", "p1"), listing("next", "p2"), health=Told({"hot": COOLING}), only=("p1",)
    )
    assert order_of(alone) == [["hot"]]


# What the caller says.


def test_order_puts_the_listed_first_and_then_the_rest_by_price() -> None:
    plan = planned(
        listing("a", "p1", prices=[flat(100)]),
        listing("b", "p2", prices=[flat(900)]),
        listing("c", "p3", prices=[flat(500)]),
        listing("d", "p4", prices=[flat(300)]),
        order=("p2", "nobody", "p1"),
    )
    assert order_of(plan) == [["b"], ["a"], ["d"], ["c"]]


def test_an_explicit_order_comes_before_stability() -> None:
    plan = planned(
        listing("a", "p1"), listing("b", "p2"), health=Told({"a": UNSTABLE}), order=("p1", "p2")
    )
    assert order_of(plan) == [["a"], ["b"]]


def test_without_fallbacks_only_the_listed_remain() -> None:
    plan = planned(listing("a", "p1"), listing("b", "p2"), order=("p2",), forbid_fallbacks=True)
    assert order_of(plan) == [["b"]]
    assert reasons(plan) == {"a": ("allowed_providers", "provider.allow_fallbacks")}


def test_without_fallbacks_and_order_only_the_first_choice_remains() -> None:
    plan = planned(
        listing("a"), listing("b"), listing("down"),
        health=Told({"down": UNSTABLE}), forbid_fallbacks=True,
    )  # fmt: skip
    assert order_of(plan) == [["a", "b"]]
    assert reasons(plan) == {"down": ("allowed_providers", "provider.allow_fallbacks")}


def test_only_and_ignore_name_themselves_in_the_exclusion() -> None:
    listings = [listing("a", "p1"), listing("b", "p2"), listing("c", "p3")]
    plan = planned(*listings, only=("p1", "p2"), ignore=("p2",))
    assert order_of(plan) == [["a"]]
    assert reasons(plan) == {
        "b": ("allowed_providers", "provider.ignore"),
        "c": ("allowed_providers", "provider.only"),
    }


def test_a_bare_slug_means_variants_and_regions_but_not_tiers() -> None:
    listings = [
        listing("plain", "p"), listing("region", "p", tag="p/eu"),
        listing("tier", "p", tag="p/priority"), listing("other", "q"),
    ]  # fmt: skip
    assert order_of(planned(*listings, only=("p",))) == [["plain", "region"]]
    assert order_of(planned(*listings, only=("p/eu",))) == [["region"]]
    assert order_of(planned(*listings, only=("p/priority",))) == [["tier"]]
    assert reasons(planned(*listings))["tier"] == ("allowed_providers", "service_tier")


def test_sort_gives_each_its_own_place_within_its_class() -> None:
    listings = [listing(name, prices=[flat(pico)]) for name, pico in (("a", 3), ("b", 1), ("c", 2))]
    health = Told({"b": UNSTABLE}, {"a": 50, "b": 10, "c": 70}, {"a": 20, "b": 90, "c": 30})
    assert order_of(planned(*listings, sort=Sort.PRICE, health=health)) == [["c"], ["a"], ["b"]]
    assert order_of(planned(*listings, sort=Sort.LATENCY, health=health)) == [["a"], ["c"], ["b"]]
    assert order_of(planned(*listings, sort=Sort.THROUGHPUT, health=health)) == [
        ["c"],
        ["a"],
        ["b"],
    ]


def test_sorting_by_a_measure_puts_the_unmeasured_last() -> None:
    listings = [listing("new", prices=[flat(1)]), listing("slow"), listing("fast")]
    health = Told(latencies={"slow": 900, "fast": 90}, throughputs={"slow": 1, "fast": 9})
    for sort in (Sort.LATENCY, Sort.THROUGHPUT):
        assert order_of(planned(*listings, sort=sort, health=health)) == [
            ["fast"],
            ["slow"],
            ["new"],
        ]


def test_floor_and_nitro_are_sorts_unless_a_listing_has_the_name() -> None:
    listings = [listing("a", prices=[flat(3)]), listing("b", prices=[flat(1)])]
    assert order_of(planned(*listings, models=(f"{MODEL}:floor",))) == [["b"], ["a"]]
    health = Told(throughputs={"a": 9, "b": 3})
    assert order_of(planned(*listings, models=(f"{MODEL}:nitro",), health=health)) == [["a"], ["b"]]
    row = listing("own", model=f"{MODEL}:floor")
    assert order_of(planned(*listings, row, models=(f"{MODEL}:floor",))) == [["own"]]
    tiers = [listing("flex", "p", tag="p/flex", prices=[flat(1)]), listing("plain", "p")]
    assert order_of(planned(*tiers, models=(f"{MODEL}:floor",))) == [["flex"], ["plain"]]


def test_models_are_tried_in_turn_and_unknown_ones_are_named() -> None:
    other = "author/other"
    listings = [listing("a", prices=[flat(9)]), listing("b", model=other, prices=[flat(1)])]
    plan = planned(*listings, models=(MODEL, "no/such", other, f"{MODEL}:free"))
    assert order_of(plan) == [["a"], ["b"]]
    assert [candidate.model_index for candidate in plan.candidates] == [0, 2]
    assert plan.unknown_models == ["no/such", f"{MODEL}:free"]
    across = planned(*listings, models=(MODEL, other), sort=Sort.PRICE, across_models=True)
    assert order_of(across) == [["b"], ["a"]]


# Prices in time.


def test_the_price_in_force_is_frozen_and_the_next_boundary_ends_the_plan() -> None:
    dated = [
        flat(30, id="later", effective_at_ms=NOW_MS + 60_000),
        flat(10, id="old", effective_at_ms=NOW_MS - 60_000),
        flat(20, id="now", effective_at_ms=NOW_MS),
    ]
    for now_ms, version, expires_ms in (
        (NOW_MS - 1, "old", NOW_MS), (NOW_MS, "now", NOW_MS + 60_000),
        (NOW_MS + 60_000, "later", 0),
    ):  # fmt: skip
        plan = planned(listing("e", prices=dated), now_ms=now_ms)
        assert [candidate.price.version.id for candidate in plan.candidates] == [version]
        assert plan.expires_at_ms == expires_ms
        assert not plan.candidates[0].endpoint.listing.prices


@pytest.mark.parametrize(
    "dated",
    [
        [],
        [flat(1, effective_at_ms=NOW_MS + 1)],
        [flat(1, ends_at_ms=NOW_MS)],
        [PriceVersion(entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=0)])],
    ],
    ids=["none", "not yet", "over", "no completion price"],
)
def test_no_price_in_force_is_no_candidate(dated: list[PriceVersion]) -> None:
    plan = planned(listing("e", prices=dated))
    assert not plan.candidates
    assert reasons(plan) == {"e": ("price", "")}


# The hard filters.


@pytest.mark.parametrize(
    ("facts", "ask", "excluded_by", "field"),
    [
        ({}, {"prompt_tokens": 1_001}, "context_length", "messages"),
        ({}, {"prompt_tokens": 801, "max_tokens": 200}, "context_length", "max_tokens"),
        ({"max_prompt_tokens": 99}, {"prompt_tokens": 100}, "context_length", "messages"),
        ({"max_completion_tokens": 99}, {"max_tokens": 100}, "context_length", "max_tokens"),
        ({}, {"input_modalities": frozenset({"image"})}, "capability", "messages"),
        ({}, {"parameters": frozenset({"seed"})}, "require_parameters", "seed"),
        ({"trains": True}, {}, "data_policy:training", "provider.data_collection"),
        ({"retention_days": 1}, {}, "data_policy:zdr", "provider.zdr"),
        ({"state": ListingState.LISTING_STATE_SUSPENDED}, {}, "state", ""),
        ({"state": ListingState.LISTING_STATE_MAINTENANCE}, {}, "state", ""),
        ({"state": 99}, {}, "state", ""),
    ],
)
def test_each_hard_filter_names_itself_and_the_field(
    facts: dict[str, Any], ask: dict[str, Any], excluded_by: str, field: str
) -> None:
    strict: dict[str, Any] = {
        "prompt_tokens": 800, "max_tokens": 200, "input_modalities": frozenset({"text"}),
        "parameters": frozenset({"max_tokens"}), "require_parameters": True,
        "deny_data_collection": True, "zero_data_retention": True,
    }  # fmt: skip
    if excluded_by == "data_policy:training":
        strict["zero_data_retention"] = False
    fits = listing("fits", context_length=1_000)
    limited = listing("limited", **({"context_length": 1_000} | facts))
    assert order_of(planned(fits, **strict)) == [["fits"]]
    plan = planned(limited, **(strict | ask))
    assert not plan.candidates
    assert reasons(plan) == {"limited": (excluded_by, field)}


# Every rule at once.

PROVIDERS = ("p1", "p2", "p3")
TAGS = ("", "/eu", "/priority", "/flex")
PARAMETERS = ("tools", "temperature", "response_format", "seed")
MODALITIES = ("image", "audio")


def subsets(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(values), unique=True).map(tuple)


@st.composite
def listings(draw: st.DrawFn) -> list[Listing]:
    made = []
    for number in range(draw(st.integers(0, 7))):
        provider = draw(st.sampled_from(PROVIDERS))
        made.append(
            listing(
                f"e{number}",
                provider,
                model=draw(st.sampled_from((MODEL, "author/other"))),
                tag=provider + draw(st.sampled_from(TAGS)),
                state=draw(st.sampled_from(ListingState.values())),
                context_length=draw(st.sampled_from((0, 1_000, 10_000))),
                max_completion_tokens=draw(st.sampled_from((0, 500))),
                supported_parameters=draw(subsets(PARAMETERS)),
                input_modalities=draw(subsets(MODALITIES)),
                trains=draw(st.booleans()),
                retention_days=draw(st.sampled_from((0, 0, 30, -1))),
                prices=[flat(draw(st.sampled_from((0, 10, 20, 7_000_000))))],
            )
        )
    return made


ENTRIES = tuple(provider + tag for provider in PROVIDERS for tag in TAGS)

asks = st.builds(
    Ask,
    models=st.sampled_from(((MODEL,), (MODEL, "author/other"), (f"{MODEL}:floor", "no/such"))),
    order=subsets(ENTRIES),
    only=st.just(()) | subsets(ENTRIES),
    ignore=st.just(()) | subsets(ENTRIES),
    forbid_fallbacks=st.booleans(),
    sort=st.sampled_from(Sort),
    across_models=st.booleans(),
    require_parameters=st.booleans(),
    deny_data_collection=st.booleans(),
    zero_data_retention=st.booleans(),
    prompt_tokens=st.sampled_from((0, 900, 5_000)),
    max_tokens=st.sampled_from((0, 200, 600)),
    parameters=subsets(PARAMETERS).map(frozenset),
    input_modalities=st.just(frozenset()) | subsets(MODALITIES).map(frozenset),
)
conditions = st.dictionaries(
    st.sampled_from([f"e{number}" for number in range(7)]),
    st.builds(
        Condition,
        stable=st.booleans(),
        uptime=st.none() | st.floats(0, 100),
        cooling_until_ms=st.sampled_from((0, NOW_MS + 1)),
        cooling_after=st.just("429"),
    ),
)


def means(entry: str, made: Listing) -> bool:
    tier = made.tag.endswith(("/priority", "/flex"))
    return entry == made.tag or (entry == made.provider and not tier)


def may_serve(made: Listing, ask: Ask, extra_tier: str) -> bool:
    """The rules of api.md once more, as one sentence each."""
    named_tier = made.tag.rpartition("/")[2] if made.tag.endswith(("/priority", "/flex")) else ""
    return all(
        (
            made.state in (2, 3, 4),
            not ask.only or any(means(entry, made) for entry in ask.only),
            not any(means(entry, made) for entry in ask.ignore),
            not (ask.forbid_fallbacks and ask.order) or any(means(e, made) for e in ask.order),
            named_tier in ("", extra_tier) or made.tag in (*ask.order, *ask.only),
            not (ask.zero_data_retention and made.retention_days),
            not (ask.deny_data_collection and (made.trains or made.retention_days)),
            not made.context_length or ask.prompt_tokens + ask.max_tokens <= made.context_length,
            not made.max_completion_tokens or ask.max_tokens <= made.max_completion_tokens,
            ask.input_modalities <= set(made.input_modalities),
            not ask.require_parameters or ask.parameters <= set(made.supported_parameters),
        )
    )


@given(listings(), asks, conditions)
def test_every_endpoint_is_a_candidate_or_excluded_with_a_reason(
    made: list[Listing], ask: Ask, told: dict[str, Condition]
) -> None:
    plan = policy.plan(ask, Shelf(*made), Told(told), NOW_MS)
    asked = {model.removesuffix(":floor") for model in ask.models}
    everyone = sorted(each.endpoint for each in made if each.model in asked)
    chosen = [candidate.endpoint.id for candidate in plan.candidates]
    assert sorted([*chosen, *reasons(plan)]) == everyone

    extra = "flex" if ask.models[0].endswith(":floor") else ""
    allowed = {
        each.endpoint for each in made if each.model in asked and may_serve(each, ask, extra)
    }
    assert set(chosen) <= allowed
    models = {each.endpoint: each.model for each in made}
    assert {models[each] for each in chosen} == {models[each] for each in allowed}, (
        "no model is emptied"
    )
    if not (ask.forbid_fallbacks and not ask.order):
        assert all(told[each].cooling_until_ms for each in allowed - set(chosen))


@given(listings(), asks, conditions)
def test_tiers_are_dense_and_weights_balance_each_of_them(
    made: list[Listing], ask: Ask, told: dict[str, Condition]
) -> None:
    plan = policy.plan(ask, Shelf(*made), Told(told), NOW_MS)
    for tier in order_of(plan):
        together = [each for each in plan.candidates if each.endpoint.id in tier]
        if any(each.blended_pico == 0 for each in together):
            assert {each.weight for each in together} == {1.0}
            assert {each.blended_pico for each in together} == {0}
        else:
            products = [each.weight * each.blended_pico**2 for each in together]
            assert products == pytest.approx([products[0]] * len(products))
        if ask.order or ask.sort is not Sort.BALANCE:
            assert len({each.blended_pico for each in together}) == 1, "nothing is left to draw"
        if not ask.across_models:
            assert len({each.model_index for each in together}) == 1
