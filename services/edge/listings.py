"""The public catalogue: listings in memory, as the `catalog` topic tells them."""

import time
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

from bourse.event_log import CATALOG, EventLog, Record
from bourse.event_log.envelope import NotAnEnvelope, read_envelope
from bourse.rating import PICO_PER_USD
from bourse.v1.events_pb2 import Listing, ListingState, PriceVersion, ProviderProfile, Unit
from services.edge.views import follow

PRICE_KEYS: Sequence[tuple[str, "Unit.ValueType"]] = (
    ("prompt", Unit.UNIT_PROMPT),
    ("completion", Unit.UNIT_COMPLETION),
    ("request", Unit.UNIT_REQUEST),
    ("image", Unit.UNIT_IMAGE),
    ("image_token", Unit.UNIT_PROMPT_IMAGE),
    ("image_output", Unit.UNIT_COMPLETION_IMAGE),
    ("audio", Unit.UNIT_PROMPT_AUDIO),
    ("audio_output", Unit.UNIT_COMPLETION_AUDIO),
    ("input_audio_cache", Unit.UNIT_CACHE_READ_AUDIO),
    ("web_search", Unit.UNIT_WEB_SEARCH),
    ("internal_reasoning", Unit.UNIT_REASONING),
    ("input_cache_read", Unit.UNIT_CACHE_READ),
    ("input_cache_write", Unit.UNIT_CACHE_WRITE),
    ("input_cache_write_1h", Unit.UNIT_CACHE_WRITE_1H),
)
"""Catalogue key → unit."""

_PUBLIC = frozenset(
    {
        ListingState.LISTING_STATE_LISTED,
        ListingState.LISTING_STATE_DEGRADED,
        ListingState.LISTING_STATE_FALLBACK_ONLY,
        ListingState.LISTING_STATE_MAINTENANCE,
        ListingState.LISTING_STATE_SUSPENDED,
    }
)
STATUS = {
    ListingState.LISTING_STATE_LISTED: 0,
    ListingState.LISTING_STATE_DEGRADED: -1,
    ListingState.LISTING_STATE_FALLBACK_ONLY: -2,
    ListingState.LISTING_STATE_MAINTENANCE: -3,
    ListingState.LISTING_STATE_SUSPENDED: -5,
    ListingState.LISTING_STATE_DELISTED: -10,
}


class Listings:
    """Every endpoint that everyone may see."""

    def __init__(self, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._listings: dict[bytes, Listing] = {}
        self._wall_ms = wall_ms
        self.caught_up = False

    def of_model(self, model: str) -> list[Listing]:
        """Return the public listings of one model with a price in force, by price."""
        return [one for one in self._public() if one.model == model]

    def models(self) -> dict[str, list[Listing]]:
        """Return model → its public listings, the cheapest first; models by name."""
        found: dict[str, list[Listing]] = {}
        for one in self._public():
            found.setdefault(one.model, []).append(one)
        return dict(sorted(found.items()))

    def providers(self) -> list[ProviderProfile]:
        found = {one.provider: one.profile for one in self._public() if one.profile.slug}
        return [found[slug] for slug in sorted(found)]

    def in_force(self, listing: Listing) -> PriceVersion | None:
        now_ms = self._wall_ms()
        current = None
        for price in listing.prices:
            if price.effective_at_ms <= now_ms:
                current = price
        return current

    async def run(self, log: EventLog) -> None:
        """Follow the topic. Never ends."""
        await follow(log, CATALOG, self._read, self._reached_end)

    def _public(self) -> Iterable[Listing]:
        priced = [
            (blended_pico(price), one.endpoint, one)
            for one in self._listings.values()
            if one.state in _PUBLIC and (price := self.in_force(one)) is not None
        ]
        priced.sort(key=lambda found: found[:2])
        return [one for _, _, one in priced]

    def _reached_end(self) -> None:
        self.caught_up = True

    def _read(self, record: Record) -> None:
        if record.value is None:
            self._listings.pop(record.key, None)
            return
        event = read_envelope(record)
        if event.type != "Listing":
            raise NotAnEnvelope(f"a {event.type} on the catalog topic")
        self._listings[record.key] = Listing.FromString(event.data)


def blended_pico(price: PriceVersion) -> int:
    """Ten prompt tokens to one of the completion: enough to order a page."""
    prices = {entry.unit: entry.price_pico for entry in price.entries}
    return 10 * prices.get(Unit.UNIT_PROMPT, 0) + prices.get(Unit.UNIT_COMPLETION, 0)


def usd_per_unit(price_pico: int) -> str:
    """Print a price as the decimal string clients read, exactly."""
    text = format(Decimal(price_pico).scaleb(-12), "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def price_pico(usd: str) -> tuple[int, bool]:
    """Return a USD decimal string as pico-USD, and whether that lost digits. Raises ValueError."""
    try:
        value = Decimal(usd)
    except ArithmeticError as error:
        raise ValueError("not a decimal number") from error
    if not value.is_finite() or value < 0 or value > 1_000_000:
        raise ValueError("must be between 0 and 1000000")
    exact = value * PICO_PER_USD
    rounded = round(exact)  # halves to even
    return int(rounded), exact != rounded


def pricing(price: PriceVersion | None) -> dict[str, Any]:
    """Return a price as the catalogue's `pricing` object."""
    if price is None:
        return {"prompt": "0", "completion": "0"}
    shown: dict[str, Any] = {"prompt": "0", "completion": "0", **_keys(price.entries)}
    if price.discount_denominator and price.discount_numerator != price.discount_denominator:
        shown["discount"] = round(1 - price.discount_numerator / price.discount_denominator, 9)
    if price.overrides:
        shown["overrides"] = [
            {"min_prompt_tokens": one.prompt_tokens_over, **_keys(one.entries)}
            for one in price.overrides
        ]
    return shown


def model(listings: Sequence[Listing], price: PriceVersion | None, base_url: str) -> dict[str, Any]:
    """Return one model of `/models`: its facts from all its listings, its price the lowest."""
    first = listings[0]
    parameters = sorted({name for one in listings for name in one.supported_parameters})
    return {
        "id": first.model,
        "canonical_slug": first.model,
        "name": first.model_name or first.model,
        "created": first.created_at_ms // 1_000,
        "description": first.description,
        "context_length": max(one.context_length for one in listings) or None,
        "architecture": architecture(listings),
        "pricing": pricing(price),
        "top_provider": {
            "context_length": first.context_length or None,
            "max_completion_tokens": first.max_completion_tokens or None,
            "is_moderated": first.moderated,
        },
        "per_request_limits": None,
        "supported_parameters": parameters,
        "default_parameters": None,
        "supported_voices": None,
        "hugging_face_id": first.hugging_face_id or None,
        "expiration_date": None,
        "links": {"details": f"{base_url}/api/v1/models/{first.model}/endpoints"},
    }


def architecture(listings: Sequence[Listing]) -> dict[str, Any]:
    inputs = _union(one.input_modalities for one in listings) or ["text"]
    outputs = _union(one.output_modalities for one in listings) or ["text"]
    return {
        "modality": f"{'+'.join(inputs)}->{'+'.join(outputs)}",
        "input_modalities": inputs,
        "output_modalities": outputs,
        "tokenizer": listings[0].tokenizer or "Other",
        "instruct_type": None,
    }


def endpoint(listing: Listing, price: PriceVersion | None) -> dict[str, Any]:
    """Return one endpoint of `/models/{author}/{slug}/endpoints`."""
    uptime = listing.uptime_1d
    return {
        "id": listing.endpoint,
        "name": f"{listing.provider_name} | {listing.model}",
        "model_id": listing.model,
        "model_name": listing.model_name or listing.model,
        "provider_name": listing.provider_name,
        "tag": listing.tag or listing.provider,
        "status": STATUS.get(listing.state, 0),
        "context_length": listing.context_length,
        "max_completion_tokens": listing.max_completion_tokens or None,
        "max_prompt_tokens": listing.max_prompt_tokens or None,
        "quantization": listing.quantization or "unknown",
        "pricing": pricing(price),
        "supported_parameters": list(listing.supported_parameters),
        "supports_implicit_caching": listing.supports_implicit_caching,
        "uptime_last_5m": None,
        "uptime_last_30m": None,
        "uptime_last_1d": uptime if uptime > 0 else None,
        "latency_last_30m": None,
        "throughput_last_30m": None,
    }


def _keys(entries: Iterable[Any]) -> dict[str, str]:
    prices = {entry.unit: entry.price_pico for entry in entries}
    return {name: usd_per_unit(prices[unit]) for name, unit in PRICE_KEYS if unit in prices}


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))
