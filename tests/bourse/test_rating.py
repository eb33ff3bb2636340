"""Rating is pure arithmetic, so it is tested against exact fractions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse import rating
from bourse.v1.events_pb2 import PriceOverride, PriceVersion, Unit, UnitCount, UnitPrice

UNITS = [unit for unit in Unit.values() if unit != Unit.UNIT_UNSPECIFIED]


def price(
    *,
    overrides: list[PriceOverride] | None = None,
    discount: tuple[int, int] = (0, 0),
    **entries: int,
) -> PriceVersion:
    return PriceVersion(
        id="p1",
        entries=[
            UnitPrice(unit=Unit.Value(f"UNIT_{name.upper()}"), price_pico=pico)
            for name, pico in entries.items()
        ],
        overrides=overrides or [],
        discount_numerator=discount[0],
        discount_denominator=discount[1],
    )


def usage(**counts: int) -> list[UnitCount]:
    return [
        UnitCount(unit=Unit.Value(f"UNIT_{name.upper()}"), count=count)
        for name, count in counts.items()
    ]


counts = st.lists(
    st.builds(UnitCount, unit=st.sampled_from(UNITS), count=st.integers(0, 10**7)),
    max_size=8,
    unique_by=lambda c: c.unit,
)
prices = st.builds(
    PriceVersion,
    entries=st.lists(
        st.builds(UnitPrice, unit=st.sampled_from(UNITS), price_pico=st.integers(0, 10**9)),
        max_size=8,
        unique_by=lambda e: e.unit,
    ),
    discount_numerator=st.integers(0, 100),
    discount_denominator=st.integers(0, 100),
)


@given(counts, prices)
def test_the_total_is_the_exact_sum_rounded_once(used: list[UnitCount], at: PriceVersion) -> None:
    rated = rating.rate(used, at)
    discount = (
        Fraction(at.discount_numerator, at.discount_denominator)
        if at.discount_denominator
        else Fraction(1)
    )
    exact = sum(Fraction(line.count * line.price_pico) for line in rated.cost_lines) * discount
    # round() of a Fraction rounds halves to even
    assert rated.total_nano == round(exact / rating.PICO_PER_NANO)
    assert 0 <= rated.prompt_nano <= rated.total_nano


@given(counts, prices)
def test_the_order_of_the_counts_changes_no_total(used: list[UnitCount], at: PriceVersion) -> None:
    forward, backward = rating.rate(used, at), rating.rate(used[::-1], at)
    assert (forward.total_nano, forward.prompt_nano) == (backward.total_nano, backward.prompt_nano)


@pytest.mark.parametrize(("pico", "nano"), [(500, 0), (501, 1), (1_500, 2), (2_500, 2), (2_501, 3)])
def test_halves_round_to_even(pico: int, nano: int) -> None:
    assert rating.rate(usage(prompt=1), price(prompt=pico)).total_nano == nano


def test_a_cache_read_without_a_price_is_a_prompt_token_and_reasoning_is_completion() -> None:
    plain = rating.rate(usage(prompt=30, completion=50), price(prompt=3_000, completion=15_000))
    fine = rating.rate(
        usage(prompt=10, cache_read=15, cache_write_1h=5, completion=20, reasoning=30),
        price(prompt=3_000, completion=15_000),
    )
    assert fine.total_nano == plain.total_nano == 30 * 3 + 50 * 15


def test_an_hour_long_cache_write_without_its_own_price_costs_the_short_one() -> None:
    rated = rating.rate(usage(cache_write_1h=1_000), price(prompt=3_000, cache_write=3_750))
    assert rated.total_nano == 3_750


def test_an_override_applies_above_its_bound_and_only_to_the_units_it_names() -> None:
    tiered = price(
        prompt=1_000,
        completion=4_000,
        overrides=[
            PriceOverride(
                prompt_tokens_over=200,
                entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=2_000)],
            )
        ],
    )
    assert rating.rate(usage(prompt=200, completion=10), tiered).total_nano == 200 + 40
    assert rating.rate(usage(prompt=201, completion=10), tiered).total_nano == 402 + 40
    # cached tokens count towards the size of the prompt
    assert rating.rate(usage(prompt=200, cache_read=1), tiered).total_nano == 402


def test_negative_usage_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="UNIT_COMPLETION"):
        rating.rate(usage(completion=-1), price(completion=1))


@given(st.integers(0, 10**10), st.integers(0, 10_000))
def test_commission_is_floored_and_never_more_than_the_charge(charge: int, bps: int) -> None:
    assert rating.commission_nano(charge, bps) == int(Fraction(charge * bps, 10_000))
    assert 0 <= rating.commission_nano(charge, bps) <= charge


@given(prices, st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_split_of_the_tokens_costs_more_than_the_bound(
    at: PriceVersion, prompt: int, completion: int
) -> None:
    bound = rating.bound_nano(at, prompt, completion)
    for prompt_unit in rating.PROMPT_UNITS:
        for completion_unit in rating.COMPLETION_UNITS:
            used = [
                UnitCount(unit=prompt_unit, count=prompt),
                UnitCount(unit=completion_unit, count=completion),
                UnitCount(unit=Unit.UNIT_REQUEST, count=1),
            ]
            assert rating.rate(used, at).total_nano <= bound
