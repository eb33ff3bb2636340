"""The rules of prices: immutable versions, never retroactive, increases announced. Pure."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

from bourse import rating
from bourse.v1.events_pb2 import PriceVersion, Unit, UnitCount, UnitPrice
from services.providers.registration import Invalid

MINUTE_MS = 60_000
PRICE_PICO_MAX = 10**15
"""A thousand dollars a unit: what is dearer is a mistake."""
FACTOR_MAX = 10
_OVERRIDES_MAX = 16

_UNITS = frozenset(Unit.values()) - {Unit.UNIT_UNSPECIFIED}


def next_version(
    asked: PriceVersion,
    existing: Sequence[PriceVersion],
    *,
    id: str,
    now_ms: int,
    commission_bps: int,
    increase_notice_ms: int,
    house: bool = False,
    confirm: bool = False,
    free: bool = False,
) -> PriceVersion:
    """Return the version to store, with its id, its moment and the commission frozen into it.

    `existing` are the endpoint's versions by `effective_at_ms`. An `effective_at_ms` of 0 asks for
    the earliest moment the rules allow: at once for a first price and for the house, the next full
    minute for a decrease, after the notice for an increase.
    """
    check(asked)
    version = PriceVersion(
        id=id,
        entries=sorted(asked.entries, key=lambda entry: entry.unit),
        overrides=asked.overrides,
        discount_numerator=asked.discount_numerator,
        discount_denominator=asked.discount_denominator,
        commission_bps=commission_bps,
    )
    if 0 < asked.effective_at_ms < now_ms:
        raise Invalid("/effective_at", "a price is never retroactive")
    before = _before(existing, asked.effective_at_ms or now_ms)
    dearer = before is not None and _ratios_exceed(before, version, 1)
    if before is None or house:
        earliest_ms = now_ms
    elif dearer:
        earliest_ms = now_ms + increase_notice_ms
    else:
        earliest_ms = (now_ms // MINUTE_MS + 1) * MINUTE_MS
    taken = {other.effective_at_ms for other in existing}
    while not asked.effective_at_ms and earliest_ms in taken:
        earliest_ms += 1 if house else MINUTE_MS
    version.effective_at_ms = asked.effective_at_ms or earliest_ms
    if version.effective_at_ms < earliest_ms:
        raise Invalid(
            "/effective_at",
            f"an increase needs {increase_notice_ms // 3_600_000} hours' notice"
            if dearer
            else "a decrease starts with the next full minute at the earliest",
        )
    if version.effective_at_ms in taken:
        raise Invalid("/effective_at", "another price starts at that moment")
    if not confirm:
        _check_jump(_before(existing, version.effective_at_ms), version, free=free)
    return version


def check(price: PriceVersion) -> None:
    """Judge a price list by itself."""
    _check_entries("/entries", price.entries)
    named = {entry.unit for entry in price.entries}
    for unit in (Unit.UNIT_PROMPT, Unit.UNIT_COMPLETION):
        if unit not in named:
            raise Invalid("/entries", f"{Unit.Name(unit)} has no price")
    if len(price.overrides) > _OVERRIDES_MAX:
        raise Invalid("/overrides", f"at most {_OVERRIDES_MAX}")
    above = 0
    for index, override in enumerate(price.overrides):
        if override.prompt_tokens_over <= above:
            raise Invalid(f"/overrides/{index}/prompt_tokens_over", "must grow from entry to entry")
        above = override.prompt_tokens_over
        _check_entries(f"/overrides/{index}/entries", override.entries)
        if not override.entries:
            raise Invalid(f"/overrides/{index}/entries", "must not be empty")
    if price.discount_denominator < 0 or price.discount_denominator > 1_000_000:
        raise Invalid("/discount/denominator", "0 (no discount) to 1000000")
    if price.discount_denominator == 0 and price.discount_numerator != 0:
        raise Invalid("/discount/denominator", "missing")
    if not 0 <= price.discount_numerator <= 100 * max(price.discount_denominator, 1):
        raise Invalid("/discount/numerator", "must not be negative or above a hundredfold")


def in_force(versions: Sequence[PriceVersion], now_ms: int) -> PriceVersion | None:
    """Return the version that is charged now, if there is one."""
    return _before(versions, now_ms)


def published(versions: Sequence[PriceVersion], now_ms: int) -> list[PriceVersion]:
    """The version in force and those dated, each with the moment it ends."""
    shown = []
    for index, version in enumerate(versions):
        following = versions[index + 1].effective_at_ms if index + 1 < len(versions) else 0
        if following and following <= now_ms:
            continue
        copy = PriceVersion()
        copy.CopyFrom(version)
        copy.ends_at_ms = following
        shown.append(copy)
    return shown


def same(one: PriceVersion, other: PriceVersion) -> bool:
    """Whether two versions charge the same, whatever their ids and dates."""
    return (
        _by_unit(one.entries) == _by_unit(other.entries)
        and [(o.prompt_tokens_over, _by_unit(o.entries)) for o in one.overrides]
        == [(o.prompt_tokens_over, _by_unit(o.entries)) for o in other.overrides]
        and _discount(one) == _discount(other)
    )


def _before(versions: Sequence[PriceVersion], moment_ms: int) -> PriceVersion | None:
    found = None
    for version in versions:
        if version.effective_at_ms <= moment_ms:
            found = version
    return found


def _check_entries(field: str, entries: Iterable[UnitPrice]) -> None:
    seen = set()
    for index, entry in enumerate(entries):
        if entry.unit not in _UNITS:
            raise Invalid(f"{field}/{index}/unit", "unknown unit")
        if entry.unit in seen:
            raise Invalid(f"{field}/{index}/unit", "named twice")
        seen.add(entry.unit)
        if not 0 <= entry.price_pico <= PRICE_PICO_MAX:
            raise Invalid(f"{field}/{index}/price_pico", f"0 to {PRICE_PICO_MAX}")


def _check_jump(before: PriceVersion | None, version: PriceVersion, *, free: bool) -> None:
    if before is None:
        if not free and all(entry.price_pico == 0 for entry in version.entries):
            raise Invalid("/confirm", "everything is free: confirm it")
        return
    if _ratios_exceed(before, version, FACTOR_MAX) or _ratios_exceed(version, before, FACTOR_MAX):
        raise Invalid("/confirm", f"a price changes by more than x{FACTOR_MAX}: confirm it")
    if not free and any(
        new == 0 < old
        for old, new in zip(_rates(before, version), _rates(version, before), strict=True)
    ):
        raise Invalid("/confirm", "a price falls to zero: confirm it")


def _ratios_exceed(before: PriceVersion, after: PriceVersion, factor: int) -> bool:
    """Whether any unit, at any size of prompt, costs more than `factor` times what it did."""
    return any(
        new > old * factor
        for old, new in zip(_rates(before, after), _rates(after, before), strict=True)
        if factor == 1 or old > 0
    )


def _rates(price: PriceVersion, other: PriceVersion) -> list[Fraction]:
    """What each unit costs at each size of prompt at which one of the two lists changes.

    It asks `rating`, so that units without an entry count as what they are charged as.
    """
    sizes = sorted({1, *(o.prompt_tokens_over + 1 for o in (*price.overrides, *other.overrides))})
    rates = []
    for size in sizes:
        for unit in sorted(_UNITS):
            counts = [UnitCount(unit=unit, count=size)]
            if unit not in rating.PROMPT_UNITS:
                counts = [UnitCount(unit=Unit.UNIT_PROMPT, count=size), *counts]
            line = rating.rate(counts, price).cost_lines[-1]
            rates.append(line.price_pico * _discount(price))
    return rates


def _discount(price: PriceVersion) -> Fraction:
    if price.discount_denominator == 0:
        return Fraction(1)
    return Fraction(price.discount_numerator, price.discount_denominator)


def _by_unit(entries: Iterable[UnitPrice]) -> dict[int, int]:
    return {entry.unit: entry.price_pico for entry in entries}
