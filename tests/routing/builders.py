"""Listings, attempts and records as other services would publish them."""

import itertools
from typing import Any

from bourse.event_log import Record
from bourse.event_log.envelope import envelope
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Listing,
    ListingState,
    Outcome,
    PriceVersion,
    Unit,
    UnitPrice,
)

NOW_MS = 1_800_000_000_000
MODEL = "author/model"

_numbers = itertools.count(1)


def price(
    prompt_pico: int = 1_000_000, completion_pico: int = 2_000_000, **facts: Any
) -> PriceVersion:
    return PriceVersion(
        id=facts.pop("id", f"price-{next(_numbers)}"),
        entries=[
            UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=prompt_pico),
            UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=completion_pico),
        ],
        **facts,
    )


def flat(pico: int, **facts: Any) -> PriceVersion:
    """A price whose blend is exactly `pico`."""
    return price(pico, pico, **facts)


def listing(endpoint: str, provider: str = "", **facts: Any) -> Listing:
    provider = provider or f"provider-{endpoint}"
    defaults: dict[str, Any] = {
        "model": MODEL,
        "tag": provider,
        "state": ListingState.LISTING_STATE_LISTED,
        "context_length": 100_000,
        "input_modalities": ["text"],
        "supported_parameters": ["max_tokens", "temperature"],
        "prices": [price()],
        "uptime_1d": -1,
    }
    return Listing(endpoint=endpoint, provider=provider, **(defaults | facts))


def catalog_record(offset: int, made: Listing | None, key: str = "") -> Record:
    """A record of `catalog`; without a listing, the tombstone of `key`."""
    if made is None:
        return Record("catalog", 0, offset, key.encode(), None, NOW_MS)
    name = key or f"{made.provider}/{made.model}/{made.endpoint}"
    wrapped = envelope(
        f"{made.endpoint}:{offset}", "Listing", "registry", made.endpoint, made.SerializeToString()
    )
    return Record("catalog", 0, offset, name.encode(), wrapped.SerializeToString(), NOW_MS)


def attempt(endpoint: str = "e1", finished_ms: int = NOW_MS, **facts: Any) -> AttemptFinished:
    """A completed attempt of 200 ms; `status` or `error_type` make it a failed one."""
    duration_ms = facts.pop("duration_ms", 200)
    failed = "status" in facts or "error_type" in facts
    outcome = Outcome.OUTCOME_FAILED if failed else Outcome.OUTCOME_COMPLETED
    defaults: dict[str, Any] = {"outcome": outcome, "account": "a", "first_token_ms": -1}
    return AttemptFinished(
        generation=f"g{next(_numbers)}",
        attempt=1,
        endpoint=endpoint,
        started_at_ms=finished_ms - duration_ms,
        duration_ms=duration_ms,
        **(defaults | facts),
    )


def generation_record(made: AttemptFinished, offset: int = 0, partition: int = 0) -> Record:
    event_id = f"{made.generation}:attempt:{made.attempt}"
    wrapped = envelope(
        event_id, "AttemptFinished", "worker/w", made.generation, made.SerializeToString()
    )
    value = wrapped.SerializeToString()
    return Record("generations", partition, offset, made.account.encode(), value, NOW_MS)
