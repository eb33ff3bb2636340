"""Turn the registry's rows into what others see: listings, workers' endpoints, providers. Pure."""

from typing import Any

from sqlalchemy import Row

from bourse.v1.events_pb2 import Listing, ListingState, ProviderProfile
from bourse.v1.registry_pb2 import Connection, Policies, Provider, WorkerEndpoint
from services.providers import prices
from services.providers.store import Offer

_DERIVED_STATES = (ListingState.LISTING_STATE_STAGED, ListingState.LISTING_STATE_LISTED)
GONE = (ListingState.LISTING_STATE_DELISTED,)


def catalogue_key(offer: Offer) -> bytes:
    """The key of an endpoint on the `catalog` topic."""
    row = offer.endpoint
    return f"{row.provider}/{row.model}/{row.id}".encode()


def state(offer: Offer, now_ms: int) -> ListingState.ValueType:
    """What an endpoint's state is now.

    Listed is an endpoint that can be called and has a price in force. The other states are
    decided elsewhere (by the provider, by measures) and stay as they are.
    """
    stored: ListingState.ValueType = offer.endpoint.state
    if stored not in _DERIVED_STATES:
        return stored
    callable_ = bool(
        (offer.endpoint.base_url or offer.provider.base_url)
        and (offer.endpoint.dialect or offer.provider.dialect)
        and offer.provider.credential_kind
    )
    if callable_ and prices.in_force(offer.prices, now_ms) is not None:
        return ListingState.LISTING_STATE_LISTED
    return ListingState.LISTING_STATE_STAGED


def listing(offer: Offer, now_ms: int) -> Listing:
    """An endpoint as everyone but the worker sees it."""
    row, seller = offer.endpoint, offer.provider
    made = Listing.FromString(row.facts)
    made.endpoint = row.id
    made.model = row.model
    made.model_name = made.model_name or row.model
    made.author = row.model.partition("/")[0]
    made.provider = seller.slug
    made.provider_name = seller.name
    made.tag = row.tag
    made.state = state(offer, now_ms)
    made.house = seller.house
    made.created_at_ms = made.created_at_ms or row.created_at_ms
    made.quantization = made.quantization or "unknown"
    made.trains = seller.trains
    made.retention_days = seller.retention_days
    made.moderated = seller.moderated
    del made.prices[:]
    made.prices.extend(prices.published(offer.prices, now_ms))
    made.uptime_1d = -1.0
    made.prompt_tokens_per_byte = row.prompt_tokens_per_byte
    made.completion_tokens_per_byte = row.completion_tokens_per_byte
    made.profile.CopyFrom(profile(seller))
    return made


def worker_endpoint(offer: Offer) -> WorkerEndpoint:
    """An endpoint as the worker needs it, with the sealed credential."""
    row, seller = offer.endpoint, offer.provider
    facts = Listing.FromString(row.facts)
    return WorkerEndpoint(
        endpoint=row.id,
        provider=seller.slug,
        provider_name=seller.name,
        house=seller.house,
        base_url=row.base_url or seller.base_url,
        dialect=row.dialect or seller.dialect,
        preset=row.preset or seller.preset,
        upstream_model=row.upstream_model,
        sealed_credential=seller.sealed_credential,
        credential_kind=seller.credential_kind or "none",
        credential_header=seller.credential_header,
        first_byte_timeout_ms=seller.first_byte_timeout_ms,
        supported_parameters=facts.supported_parameters,
        max_completion_tokens=facts.max_completion_tokens,
        prompt_tokens_per_byte=row.prompt_tokens_per_byte,
        completion_tokens_per_byte=row.completion_tokens_per_byte,
        version=row.revision,
        context_length=facts.context_length,
    )


def profile(row: Row[Any]) -> ProviderProfile:
    return ProviderProfile(
        slug=row.slug,
        name=row.name,
        privacy_policy_url=row.privacy_policy_url,
        terms_of_service_url=row.terms_of_service_url,
        status_page_url=row.status_page_url,
        headquarters=row.headquarters,
        datacenters=row.datacenters.split(",") if row.datacenters else [],
    )


def provider(row: Row[Any]) -> Provider:
    """A provider as its owner sees it: never the secret, only its mask."""
    return Provider(
        account=row.account,
        profile=profile(row),
        policies=Policies(
            trains=row.trains,
            retention_days=row.retention_days,
            can_publish=row.can_publish,
            moderated=row.moderated,
            requires_user_id=row.requires_user_id,
        ),
        connection=Connection(
            base_url=row.base_url,
            dialect=row.dialect,
            models_url=row.models_url,
            preset=row.preset,
            first_byte_timeout_ms=row.first_byte_timeout_ms,
        ),
        has_credential=row.credential_kind not in ("", "none"),
        credential_label=row.credential_label,
        house=row.house,
        created_at_ms=row.created_at_ms,
    )
