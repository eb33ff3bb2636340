"""Price usage: usage x price version -> cost lines and one total, in integers.

Pure. The worker rates an attempt once, the billing consumer rates the same event again and must
arrive at the same integers. Source of the formulas: docs/money.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bourse.v1.events_pb2 import (
    UNIT_REQUEST,
    CostLine,
    PriceVersion,
    Unit,
    UnitCount,
    UnitPrice,
)

PICO_PER_NANO = 1_000
NANO_PER_USD = 1_000_000_000
PICO_PER_USD = 1_000_000_000_000
BPS = 10_000

PROMPT_UNITS = frozenset(
    {
        Unit.UNIT_PROMPT,
        Unit.UNIT_CACHE_READ,
        Unit.UNIT_CACHE_WRITE,
        Unit.UNIT_CACHE_WRITE_1H,
        Unit.UNIT_PROMPT_IMAGE,
        Unit.UNIT_PROMPT_AUDIO,
        Unit.UNIT_PROMPT_VIDEO,
        Unit.UNIT_CACHE_READ_AUDIO,
        Unit.UNIT_TOOL_PROMPT,
    }
)
COMPLETION_UNITS = frozenset(
    {
        Unit.UNIT_COMPLETION,
        Unit.UNIT_REASONING,
        Unit.UNIT_COMPLETION_IMAGE,
        Unit.UNIT_COMPLETION_AUDIO,
    }
)

# A unit the price list does not name is charged as the first named one of these: a cache read
# without a price is an ordinary prompt token, reasoning is completion. Requests, images and
# searches have no stand-in: where they have no price they are not sold.
_STANDS_IN: Mapping[int, tuple[int, ...]] = {
    Unit.UNIT_CACHE_READ: (Unit.UNIT_PROMPT,),
    Unit.UNIT_CACHE_WRITE: (Unit.UNIT_PROMPT,),
    Unit.UNIT_CACHE_WRITE_1H: (Unit.UNIT_CACHE_WRITE, Unit.UNIT_PROMPT),
    Unit.UNIT_PROMPT_IMAGE: (Unit.UNIT_PROMPT,),
    Unit.UNIT_PROMPT_AUDIO: (Unit.UNIT_PROMPT,),
    Unit.UNIT_PROMPT_VIDEO: (Unit.UNIT_PROMPT,),
    Unit.UNIT_CACHE_READ_AUDIO: (Unit.UNIT_CACHE_READ, Unit.UNIT_PROMPT_AUDIO, Unit.UNIT_PROMPT),
    Unit.UNIT_TOOL_PROMPT: (Unit.UNIT_PROMPT,),
    Unit.UNIT_REASONING: (Unit.UNIT_COMPLETION,),
    Unit.UNIT_COMPLETION_IMAGE: (Unit.UNIT_COMPLETION,),
    Unit.UNIT_COMPLETION_AUDIO: (Unit.UNIT_COMPLETION,),
}


@dataclass(frozen=True, slots=True)
class Rated:
    """What a usage costs at one price version."""

    cost_lines: list[CostLine]
    total_nano: int
    prompt_nano: int
    """The prompt's part of `total_nano`; the rest is the completion's: one rounding serves both."""


def rate(usage: Iterable[UnitCount], price: PriceVersion) -> Rated:
    """Return the cost of `usage`: `round_half_even(sum(units * price) * discount)` in nano-USD.

    Counts must not be negative: a ValueError says which unit was.
    """
    counts = [(item.unit, item.count) for item in usage]
    prices = _prices(price, counts)
    lines = []
    total_pico = prompt_pico = 0
    for unit, count in counts:
        if count <= 0:
            if count < 0:
                raise ValueError(f"negative usage: {Unit.Name(unit)} {count}")
            continue
        price_pico = prices[unit] if unit in prices else _stand_in(prices, unit)
        cost_pico = count * price_pico
        total_pico += cost_pico
        if unit in PROMPT_UNITS:
            prompt_pico += cost_pico
        lines.append(CostLine(unit=unit, count=count, price_pico=price_pico, cost_pico=cost_pico))
    numerator, denominator = _discount(price)
    denominator *= PICO_PER_NANO
    total_nano = round_half_even(total_pico * numerator, denominator)
    prompt_nano = round_half_even(prompt_pico * numerator, denominator)
    return Rated(lines, total_nano, min(prompt_nano, total_nano))


def commission_nano(charge_nano: int, commission_bps: int) -> int:
    """Return the commission within a charge: `floor(charge * bps / 10000)`."""
    return charge_nano * commission_bps // BPS


def bound_nano(price: PriceVersion, prompt_tokens: int, completion_tokens: int) -> int:
    """Return the most that so many tokens can cost at this price version, rounded up."""
    prompt_pico = completion_pico = request_pico = 0
    for entry in _all_entries(price):
        if entry.unit in PROMPT_UNITS:
            prompt_pico = max(prompt_pico, entry.price_pico)
        elif entry.unit in COMPLETION_UNITS:
            completion_pico = max(completion_pico, entry.price_pico)
        elif entry.unit == UNIT_REQUEST:
            request_pico = max(request_pico, entry.price_pico)
    pico = prompt_tokens * prompt_pico + completion_tokens * completion_pico + request_pico
    numerator, denominator = _discount(price)
    return -(-pico * numerator // (denominator * PICO_PER_NANO))


def round_half_even(numerator: int, denominator: int) -> int:
    """Return `numerator / denominator` rounded to the nearest integer, halves to even."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2):
        quotient += 1
    return quotient


def _discount(price: PriceVersion) -> tuple[int, int]:
    if price.discount_denominator == 0:
        return 1, 1
    return price.discount_numerator, price.discount_denominator


def _all_entries(price: PriceVersion) -> Iterable[UnitPrice]:
    yield from price.entries
    for override in price.overrides:
        yield from override.entries


def _prices(price: PriceVersion, counts: Iterable[tuple[int, int]]) -> dict[int, int]:
    prices: dict[int, int] = {entry.unit: entry.price_pico for entry in price.entries}
    overrides = price.overrides
    if not overrides:
        return prices
    prompt_tokens = sum(count for unit, count in counts if unit in PROMPT_UNITS)
    for override in overrides:  # the later one wins, unit by unit
        if prompt_tokens > override.prompt_tokens_over:
            prices.update({entry.unit: entry.price_pico for entry in override.entries})
    return prices


def _stand_in(prices: Mapping[int, int], unit: int) -> int:
    """The price of a unit that has none of its own."""
    for other in _STANDS_IN.get(unit, ()):
        if other in prices:
            return prices[other]
    return 0
