"""The one number per endpoint that balancing compares: pico-USD per token of an ordinary mix."""

from dataclasses import dataclass

from bourse.rating import round_half_even
from bourse.v1.events_pb2 import PriceVersion, Unit

PROMPT_PARTS = 10
COMPLETION_PARTS = 1
REQUEST_TOKENS = 1_100
"""Over how many tokens a price per request is spread: 1,000 of prompt and 100 of completion."""


@dataclass(frozen=True, slots=True)
class Price:
    """A price version as policy reads it; in force in `[from_ms, until_ms)`, 0: no end is known."""

    version: PriceVersion
    from_ms: int
    until_ms: int
    blended_pico: int
    """0 only where an ordinary request costs nothing."""
    sold: bool
    """Whether prompt and completion both have a price: a missing one is not sold, never free."""
    override_tokens: int
    """Prompts of more tokens than this have other prices; -1: there is no override."""

    def blended_for(self, prompt_tokens: int) -> int:
        """The blended price of a request whose prompt has so many tokens."""
        if self.override_tokens < 0 or prompt_tokens <= self.override_tokens:
            return self.blended_pico
        return _blended(self.version, prompt_tokens)


def prices(versions: list[PriceVersion]) -> tuple[Price, ...]:
    """Return the versions by the time they take effect, each ending where the next begins."""
    ordered = sorted(versions, key=lambda version: version.effective_at_ms)
    made = []
    for place, version in enumerate(ordered):
        ends = [version.ends_at_ms] if version.ends_at_ms else []
        if place + 1 < len(ordered):
            ends.append(ordered[place + 1].effective_at_ms)
        made.append(_price(version, min(ends, default=0)))
    return tuple(made)


def in_force(dated: tuple[Price, ...], now_ms: int) -> tuple[Price | None, int]:
    """Return the price in force now, and when that changes next (0: not known to change)."""
    upcoming = 0
    for price in reversed(dated):
        if price.from_ms > now_ms:
            upcoming = price.from_ms
        elif price.until_ms and price.until_ms <= now_ms:
            return None, upcoming
        else:
            return price, price.until_ms
    return None, upcoming


def _price(version: PriceVersion, until_ms: int) -> Price:
    base = {entry.unit: entry.price_pico for entry in version.entries}
    thresholds = [override.prompt_tokens_over for override in version.overrides]
    return Price(
        version=version,
        from_ms=version.effective_at_ms,
        until_ms=until_ms,
        blended_pico=_blended(version, 0),
        sold=Unit.UNIT_PROMPT in base and Unit.UNIT_COMPLETION in base,
        override_tokens=min(thresholds, default=-1),
    )


def _blended(version: PriceVersion, prompt_tokens: int) -> int:
    """Weigh the list price in force after discount; a price above zero never rounds to zero."""
    by_unit = {entry.unit: entry.price_pico for entry in version.entries}
    for override in version.overrides:
        if prompt_tokens > override.prompt_tokens_over:
            by_unit.update({entry.unit: entry.price_pico for entry in override.entries})
    tokens = PROMPT_PARTS + COMPLETION_PARTS
    pico = (
        by_unit.get(Unit.UNIT_PROMPT, 0) * PROMPT_PARTS
        + by_unit.get(Unit.UNIT_COMPLETION, 0) * COMPLETION_PARTS
    ) * REQUEST_TOKENS + by_unit.get(Unit.UNIT_REQUEST, 0) * tokens
    denominator = tokens * REQUEST_TOKENS
    if version.discount_denominator:
        pico *= version.discount_numerator
        denominator *= version.discount_denominator
    return max(1, round_half_even(pico, denominator)) if pico > 0 else 0
