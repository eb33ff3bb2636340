"""How attempts are ordered: hard filters, soft preference, stability, balance. Pure.

Source: docs/api.md sections 8 and 9. The same code answers the request path and its explanation:
whoever is not a candidate is an exclusion that says why.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.routing.ask import Ask, Sort
from services.routing.endpoint import Endpoint
from services.routing.filters import Excluded, exclusion
from services.routing.price import Price, in_force

DYNAMIC_VARIANTS = {"floor": Sort.PRICE, "nitro": Sort.THROUGHPUT}
ELIGIBLE_TIERS = {"floor": "flex", "nitro": "priority"}
"""The service tier that a dynamic variant adds to the ordinary endpoints."""

SOFT_PARAMETERS = frozenset({"tools", "response_format", "verbosity"})
"""Parameters that put the endpoints supporting them first, and exclude nobody."""

UPTIME_GOOD = 95.0
UPTIME_POOR = 80.0
UPTIME_COUNTED = 100


class Catalogue(Protocol):
    def of_model(self, model: str) -> Sequence[Endpoint]: ...


class Condition(Protocol):
    @property
    def stable(self) -> bool: ...
    @property
    def uptime(self) -> float | None: ...
    @property
    def cooling_until_ms(self) -> int: ...
    @property
    def cooling_after(self) -> str: ...


class Health(Protocol):
    def condition(self, endpoint: str, now_ms: int) -> Condition: ...
    def latency_ms(self, endpoint: str, now_ms: int) -> float | None: ...
    def throughput(self, endpoint: str, now_ms: int) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint that may serve. Lower tiers first; within one, drawn by weight."""

    endpoint: Endpoint
    price: Price
    tier: int
    weight: float
    model_index: int
    blended_pico: int


@dataclass(frozen=True, slots=True)
class Plan:
    candidates: list[Candidate]
    excluded: list[Excluded]
    unknown_models: list[str]
    expires_at_ms: int


@dataclass(slots=True)
class _Option:
    """A candidate in the making. `key` orders; options of equal key share a tier."""

    endpoint: Endpoint
    price: Price
    model_index: int
    blended_pico: int
    condition: Condition
    sort: Sort
    rank: int
    key: tuple[float, ...] = ()


def plan(ask: Ask, catalogue: Catalogue, health: Health, now_ms: int) -> Plan:
    """Return every candidate with its tier and weight, and every exclusion with its reason."""
    options: list[_Option] = []
    excluded: list[Excluded] = []
    unknown: list[str] = []
    boundaries: list[int] = []
    for index, name in enumerate(ask.models):
        endpoints, sort, service_tier = _named(name, ask.sort, catalogue)
        if not endpoints:
            unknown.append(name)
            continue
        found: list[_Option] = []
        for endpoint in endpoints:
            price, boundary_ms = in_force(endpoint.prices, now_ms)
            if boundary_ms:
                boundaries.append(boundary_ms)
            why = exclusion(endpoint, price, ask, service_tier)
            if why is not None or price is None:
                excluded.append(why or Excluded(endpoint, "price", "", "no price is in force"))
                continue
            blended = price.blended_for(ask.prompt_tokens)
            condition = health.condition(endpoint.id, now_ms)
            rank = _rank(endpoint, ask.order)
            found.append(_Option(endpoint, price, index, blended, condition, sort, rank))
        found = _without_cooling(found, excluded)
        _set_keys(found, ask, health, now_ms)
        if ask.forbid_fallbacks and not ask.order:
            found = _first_choice(found, excluded)
        options.extend(found)
    candidates = _candidates(options)
    return Plan(candidates, excluded, unknown, min(boundaries, default=0))


def _named(name: str, sort: Sort, catalogue: Catalogue) -> tuple[Sequence[Endpoint], Sort, str]:
    """Resolve a name to endpoints, how they are sorted, and the service tier that joins them.

    A listing's own name wins, so that `:free` and its like are rows; `:floor` and `:nitro` are
    ways of sorting the model before the colon.
    """
    endpoints = catalogue.of_model(name)
    if not endpoints:
        model, _, variant = name.rpartition(":")
        if model and variant in DYNAMIC_VARIANTS:
            found = catalogue.of_model(model)
            return found, DYNAMIC_VARIANTS[variant], ELIGIBLE_TIERS[variant]
        if model and variant == "exacto":
            return catalogue.of_model(model), sort, ""
    return endpoints, sort, ""


def _rank(endpoint: Endpoint, order: Sequence[str]) -> int:
    """The first entry of `order` that means this endpoint, else the place after all of them."""
    for place, wanted in enumerate(order):
        if endpoint.matches(wanted):
            return place
    return len(order)


def _without_cooling(found: list[_Option], excluded: list[Excluded]) -> list[_Option]:
    """Pass over what is cooling down, unless that would leave the model without candidates."""
    if not any(option.condition.cooling_until_ms for option in found):
        return found
    rested = [option for option in found if not option.condition.cooling_until_ms]
    if not rested:
        return found
    for option in found:
        condition = option.condition
        if condition.cooling_until_ms:
            detail = f"answered {condition.cooling_after}: passed over until"
            excluded.append(
                Excluded(option.endpoint, "state", "", f"{detail} {condition.cooling_until_ms} ms")
            )
    return rested


def _set_keys(found: Iterable[_Option], ask: Ask, health: Health, now_ms: int) -> None:
    soft = ask.parameters & SOFT_PARAMETERS
    for option in found:
        endpoint = option.endpoint
        option.key = (
            0 if ask.across_models and option.sort is not Sort.BALANCE else option.model_index,
            option.rank,
            0 if soft <= endpoint.parameters else 1,
            _stability(endpoint, option.condition),
            *_place(option, bool(ask.order), health, now_ms),
        )


def _stability(endpoint: Endpoint, condition: Condition) -> int:
    """0: uptime of 95 % or more; 1: of 80 % or more; 2: below; 3: unstable.

    What the registry says of the state (lower priority, fallback only) is at least that class.
    """
    if not condition.stable:
        return 3
    uptime = condition.uptime
    if uptime is None and endpoint.uptime_1d_counted >= UPTIME_COUNTED:
        uptime = endpoint.uptime_1d
    by_uptime = 0
    if uptime is not None and 0 <= uptime < UPTIME_GOOD:
        by_uptime = 1 if uptime >= UPTIME_POOR else 2
    return max(by_uptime, endpoint.state_class)


def _place(option: _Option, ordered: bool, health: Health, now_ms: int) -> tuple[float, float]:
    """Where an option stands within its class: drawn together, or one place each."""
    price = option.blended_pico
    if option.sort is Sort.THROUGHPUT:
        measured = health.throughput(option.endpoint.id, now_ms)
        return (float("inf") if measured is None else -measured, price)
    if option.sort is Sort.LATENCY:
        measured = health.latency_ms(option.endpoint.id, now_ms)
        return (float("inf") if measured is None else measured, price)
    if option.sort is Sort.PRICE or ordered:
        return (price, 0)
    return (0, 0) if price == 0 else (1, 0)  # free ones share the draw before the rest


def _first_choice(found: list[_Option], excluded: list[Excluded]) -> list[_Option]:
    """Keep the best tier alone: of it the caller draws one and tries no other."""
    best = min((option.key for option in found), default=())
    for option in found:
        if option.key != best:
            detail = "fallbacks are not allowed and another endpoint comes first"
            excluded.append(
                Excluded(option.endpoint, "allowed_providers", "provider.allow_fallbacks", detail)
            )
    return [option for option in found if option.key == best]


def _candidates(options: list[_Option]) -> list[Candidate]:
    tiers: dict[tuple[float, ...], list[_Option]] = defaultdict(list)
    for option in options:
        tiers[option.key].append(option)
    candidates: list[Candidate] = []
    for tier, key in enumerate(sorted(tiers)):
        together = tiers[key]
        cheapest = min(option.blended_pico for option in together)
        together.sort(key=lambda option: (option.blended_pico, option.endpoint.id))
        candidates.extend(
            Candidate(
                endpoint=option.endpoint,
                price=option.price,
                tier=tier,
                weight=_weight(option, cheapest),
                model_index=option.model_index,
                blended_pico=option.blended_pico,
            )
            for option in together
        )
    return candidates


def _weight(option: _Option, cheapest_pico: int) -> float:
    """1/price², scaled so that the cheapest of its tier weighs 1. No cut-off."""
    if option.blended_pico == 0:
        return 1.0
    ratio = cheapest_pico / option.blended_pico
    return ratio * ratio
