"""An endpoint as routing sees it: its listing, read once, when it changes."""

from dataclasses import dataclass

from bourse.v1.events_pb2 import Listing, ListingState
from services.routing.price import Price, prices

SERVICE_TIERS = frozenset({"priority", "flex"})
"""Last parts of a tag that name a service tier: a bare provider slug does not mean those."""

SERVING = frozenset(
    {
        ListingState.LISTING_STATE_LISTED,
        ListingState.LISTING_STATE_DEGRADED,
        ListingState.LISTING_STATE_FALLBACK_ONLY,
    }
)

_STATE_CLASS = {
    ListingState.LISTING_STATE_DEGRADED: 1,
    ListingState.LISTING_STATE_FALLBACK_ONLY: 2,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model at one provider, as policy reads it."""

    id: str
    model: str
    provider: str
    tag: str
    service_tier: str
    """`priority`, `flex`, or empty for an ordinary endpoint."""
    state: "ListingState.ValueType"
    listing: Listing
    """The listing without `prices`, as a candidate carries it. Never changed."""
    prices: tuple[Price, ...]
    parameters: frozenset[str]
    input_modalities: frozenset[str]
    context_length: int
    max_prompt_tokens: int
    max_completion_tokens: int
    trains: bool
    retention_days: int
    uptime_1d: float
    """Percent, over `uptime_1d_counted` attempts; -1: nothing was counted."""
    uptime_1d_counted: int

    @property
    def serves(self) -> bool:
        return self.state in SERVING

    @property
    def state_class(self) -> int:
        """0: normal, 1: lower priority, 2: fallback only."""
        return _STATE_CLASS.get(self.state, 0)

    @property
    def stores(self) -> bool:
        """Whether prompts stay with the provider after the answer; unknown (negative) is yes."""
        return self.retention_days != 0

    def matches(self, wanted: str) -> bool:
        """Whether an entry of `order`, `only` or `ignore` means this endpoint."""
        return wanted == self.tag or (wanted == self.provider and not self.service_tier)


def from_listing(listing: Listing) -> Endpoint:
    """Read a listing. The message is not kept; a ValueError names what is missing."""
    for field in ("endpoint", "model", "provider"):
        if not getattr(listing, field):
            raise ValueError(f"listing without {field}")
    kept = Listing()
    kept.CopyFrom(listing)
    kept.ClearField("prices")
    tail = listing.tag.rpartition("/")[2]
    return Endpoint(
        id=listing.endpoint,
        model=listing.model,
        provider=listing.provider,
        tag=listing.tag or listing.provider,
        service_tier=tail if "/" in listing.tag and tail in SERVICE_TIERS else "",
        state=_known(listing.state),
        listing=kept,
        prices=prices(list(listing.prices)),
        parameters=frozenset(listing.supported_parameters),
        input_modalities=frozenset(listing.input_modalities) | {"text"},
        context_length=listing.context_length,
        max_prompt_tokens=listing.max_prompt_tokens,
        max_completion_tokens=listing.max_completion_tokens,
        trains=listing.trains,
        retention_days=listing.retention_days,
        uptime_1d=listing.uptime_1d,
        uptime_1d_counted=listing.uptime_1d_counted,
    )


def _known(state: "ListingState.ValueType") -> "ListingState.ValueType":
    """A state of a later contract serves nobody here."""
    if state in ListingState.values():
        return state
    return ListingState.LISTING_STATE_UNSPECIFIED
