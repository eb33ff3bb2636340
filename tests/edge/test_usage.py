"""Money and counts as clients read them."""

from decimal import Decimal

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bourse.rating import rate
from bourse.v1.events_pb2 import PriceVersion, Unit, UnitCount, UnitPrice
from services.edge.usage import prompt_nano, usage_json, usd


@given(st.integers(-(2**63), 2**63 - 1))
def test_usd_is_printed_exactly_with_at_most_nine_decimals(nano: int) -> None:
    printed = usd(nano)
    assert Decimal(printed) * 10**9 == nano
    assert "e" not in printed
    assert not printed.endswith(".")
    _, _, decimals = printed.partition(".")
    assert len(decimals) <= 9
    assert not decimals.endswith("0")


UNITS = [unit for unit in Unit.values() if unit]


@given(
    st.lists(st.tuples(st.sampled_from(UNITS), st.integers(0, 10**6)), max_size=8),
    st.lists(st.tuples(st.sampled_from(UNITS), st.integers(0, 10**8)), max_size=8),
    st.integers(1, 20),
)
def test_the_parts_of_a_cost_are_ratings_and_add_up(
    counts: list[tuple[int, int]], prices: list[tuple[int, int]], numerator: int
) -> None:
    price = PriceVersion(
        entries=[UnitPrice(unit=Unit.ValueType(u), price_pico=p) for u, p in prices],
        discount_numerator=numerator,
        discount_denominator=20,
    )
    usage = [UnitCount(unit=Unit.ValueType(u), count=c) for u, c in counts]
    rated = rate(usage, price)
    assert prompt_nano(rated.cost_lines, price, rated.total_nano) == rated.prompt_nano
    shown = orjson.loads(
        usage_json(usage, rated.cost_lines, price, rated.total_nano, rated.total_nano)
    )
    assert shown["total_tokens"] == shown["prompt_tokens"] + shown["completion_tokens"]


def test_cached_and_reasoning_tokens_are_parts_of_the_totals() -> None:
    usage = [
        UnitCount(unit=Unit.UNIT_PROMPT, count=100),
        UnitCount(unit=Unit.UNIT_CACHE_READ, count=900),
        UnitCount(unit=Unit.UNIT_CACHE_WRITE_1H, count=7),
        UnitCount(unit=Unit.UNIT_COMPLETION, count=20),
        UnitCount(unit=Unit.UNIT_REASONING, count=30),
    ]
    shown = orjson.loads(usage_json(usage, [], PriceVersion(), 0, 0))
    assert (shown["prompt_tokens"], shown["completion_tokens"]) == (1_007, 50)
    assert shown["prompt_tokens_details"]["cached_tokens"] == 900
    assert shown["prompt_tokens_details"]["cache_write_tokens"] == 7
    assert shown["completion_tokens_details"]["reasoning_tokens"] == 30
    assert shown["cost"] == 0
    assert shown["cost_details"]["upstream_inference_cost"] is None
