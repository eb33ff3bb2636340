"""Registration: a provider lists itself, step by step. The registry decides; this translates."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request

from bourse.v1 import registry_pb2 as pb
from bourse.v1.events_pb2 import Listing, ListingState, ProviderProfile
from services.edge import listings
from services.edge.errors import ApiError
from services.edge.http import Authorization, Json, asked, raw_headers
from services.edge.identity import Identity
from services.edge.provider_bodies import (
    ConnectionBody,
    CredentialBody,
    ModelBody,
    NewProvider,
    PoliciesBody,
    PriceBody,
    ProfileBody,
)
from services.edge.records import iso

if TYPE_CHECKING:
    from bourse.v1.registry_pb2_grpc import RegistryAsyncStub

ModelId = Annotated[str, Path(alias="id")]
T = TypeVar("T")

_SENT_AS = {
    "/model_name": "/name",
    "/upstream_model": "/upstream_model_id",
    "/first_byte_timeout_ms": "/first_byte_timeout_s",
}
"""The registry's field → the body's."""
EndpointId = Annotated[str, Path(alias="id")]


def routes(
    identity: Identity,
    registry: "RegistryAsyncStub",
    catalogue: listings.Listings,
    deadline_s: float,
) -> APIRouter:
    router = APIRouter(prefix="/providers", tags=["Providers"], default_response_class=Json)

    def owner(request: Request) -> str:
        return identity.management(raw_headers(request)).account

    @router.post("", summary="Register a provider", status_code=201)
    async def create(
        request: Request, wanted: NewProvider, authorization: Authorization = None
    ) -> Json:
        """Make a provider, owned by the caller's account. Needs a management key."""
        made = await asked(
            registry.CreateProvider(
                pb.CreateProviderRequest(
                    account=owner(request), profile=_profile(wanted), contact=wanted.contact
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": shown(made.provider)}, status_code=201)

    @router.get("/{slug}", summary="Get a provider of one's own")
    async def get(request: Request, slug: str, authorization: Authorization = None) -> Json:
        found = await asked(
            registry.GetProvider(
                pb.GetProviderRequest(account=owner(request), slug=slug), timeout=deadline_s
            )
        )
        return Json({"data": shown(found.provider)})

    @router.patch("/{slug}", summary="Change a provider's profile")
    async def change(
        request: Request, slug: str, wanted: ProfileBody, authorization: Authorization = None
    ) -> Json:
        changed = await asked(
            registry.UpdateProvider(
                pb.UpdateProviderRequest(
                    account=owner(request),
                    slug=slug,
                    profile=_profile(wanted),
                    fields=sorted(wanted.model_fields_set),
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": shown(changed.provider)})

    @router.put("/{slug}/policies", summary="Set policies")
    async def policies(
        request: Request, slug: str, wanted: PoliciesBody, authorization: Authorization = None
    ) -> Json:
        changed = await asked(
            registry.SetPolicies(
                pb.SetPoliciesRequest(account=owner(request), slug=slug, policies=wanted.message()),
                timeout=deadline_s,
            )
        )
        return Json({"data": shown(changed.provider)})

    @router.put("/{slug}/connection", summary="Set the connection")
    async def connection(
        request: Request, slug: str, wanted: ConnectionBody, authorization: Authorization = None
    ) -> Json:
        changed = await _named(
            registry.SetConnection(
                pb.SetConnectionRequest(
                    account=owner(request), slug=slug, connection=wanted.message()
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": shown(changed.provider)})

    @router.put("/{slug}/credential", summary="Set the credential")
    async def credential(
        request: Request, slug: str, wanted: CredentialBody, authorization: Authorization = None
    ) -> Json:
        """The secret is sealed on arrival and never returned."""
        changed = await asked(
            registry.SetCredential(
                pb.SetCredentialRequest(
                    account=owner(request),
                    slug=slug,
                    kind=wanted.kind,
                    header=wanted.header,
                    secret=wanted.secret,
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": shown(changed.provider)})

    @router.put("/{slug}/models/{id:path}", summary="Put a model on offer")
    async def put_model(
        request: Request,
        slug: str,
        model: ModelId,
        wanted: ModelBody,
        authorization: Authorization = None,
    ) -> Json:
        """Make or change the provider's endpoint of a model; `id` is `author/slug[:variant]`."""
        done = await _named(
            registry.PutModel(
                pb.PutModelRequest(
                    account=owner(request),
                    slug=slug,
                    listing=wanted.listing(model),
                    upstream_model=wanted.upstream_model_id or model,
                    price=wanted.price(),
                    preset=wanted.preset,
                    dialect=wanted.dialect,
                    base_url=wanted.base_url,
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": _endpoint(done.listing, catalogue)})

    @router.get("/{slug}/endpoints", summary="List one's own endpoints")
    async def endpoints(request: Request, slug: str, authorization: Authorization = None) -> Json:
        found = await _listings(registry, owner(request), slug, deadline_s)
        return Json({"data": [_endpoint(one, catalogue) for one in found]})

    @router.post("/{slug}/endpoints/{id:path}/prices", summary="Add a price", status_code=201)
    async def add_price(
        request: Request,
        slug: str,
        endpoint: EndpointId,
        wanted: PriceBody,
        authorization: Authorization = None,
    ) -> Json:
        """Add a dated price version. What was charged before never changes."""
        done = await _named(
            registry.AddPrice(
                pb.AddPriceRequest(
                    account=owner(request),
                    slug=slug,
                    endpoint=endpoint,
                    price=wanted.message(),
                    confirm=wanted.confirm,
                ),
                timeout=deadline_s,
            )
        )
        return Json({"data": _endpoint(done.listing, catalogue)}, status_code=201)

    @router.get("/{slug}/endpoints/{id:path}/prices", summary="List an endpoint's prices")
    async def prices(
        request: Request, slug: str, endpoint: EndpointId, authorization: Authorization = None
    ) -> Json:
        for one in await _listings(registry, owner(request), slug, deadline_s):
            if one.endpoint == endpoint:
                return Json({"data": [_price(price) for price in one.prices]})
        raise ApiError(404, "The provider has no such endpoint.", field="/endpoint")

    return router


async def _named(call: Awaitable[T]) -> T:
    """Await the registry; what it refuses is named as clients name it. Raises ApiError."""
    try:
        return await asked(call)
    except ApiError as error:
        error.field = _as_sent(error.field)
        raise


def _as_sent(field: str) -> str:
    """Return the pointer into the body that a client sent for one into the registry's message."""
    if field.startswith("/price"):
        field = field.removeprefix("/price") or "/pricing"
    if field.startswith("/overrides/"):
        return "/pricing" + field.removesuffix("/entries")
    if field.startswith("/entries"):
        return "/pricing"
    if field.startswith("/discount/"):
        return "/discount"
    return _SENT_AS.get(field, field)


def shown(provider: pb.Provider) -> dict[str, Any]:
    """Return a provider as its owner sees it."""
    profile, policies, connection = provider.profile, provider.policies, provider.connection
    return {
        "slug": profile.slug,
        "name": profile.name,
        "headquarters": profile.headquarters or None,
        "datacenters": list(profile.datacenters),
        "privacy_policy_url": profile.privacy_policy_url or None,
        "terms_of_service_url": profile.terms_of_service_url or None,
        "status_page_url": profile.status_page_url or None,
        "policies": {
            "trains": policies.trains,
            "retention_days": policies.retention_days,
            "can_publish": policies.can_publish,
            "moderated": policies.moderated,
            "requires_user_id": policies.requires_user_id,
        },
        "connection": {
            "base_url": connection.base_url or None,
            "dialect": connection.dialect or None,
            "models_url": connection.models_url or None,
            "preset": connection.preset or None,
            "first_byte_timeout_s": connection.first_byte_timeout_ms / 1_000 or None,
        },
        "has_credential": provider.has_credential,
        "credential_label": provider.credential_label or None,
        "created_at": iso(provider.created_at_ms),
    }


async def _listings(
    registry: "RegistryAsyncStub", account: str, slug: str, deadline_s: float
) -> list[Listing]:
    found = await asked(
        registry.ListEndpoints(
            pb.ListEndpointsRequest(account=account, slug=slug), timeout=deadline_s
        )
    )
    return list(found.listings)


def _profile(wanted: ProfileBody) -> ProviderProfile:
    profile = ProviderProfile(
        slug=wanted.slug if isinstance(wanted, NewProvider) else "",
        name=wanted.name or "",
        headquarters=wanted.headquarters or "",
        datacenters=wanted.datacenters or [],
        privacy_policy_url=wanted.privacy_policy_url or "",
        terms_of_service_url=wanted.terms_of_service_url or "",
        status_page_url=wanted.status_page_url or "",
    )
    return profile


def _endpoint(listing: Listing, catalogue: listings.Listings) -> dict[str, Any]:
    state = ListingState.Name(listing.state).removeprefix("LISTING_STATE_").lower()
    return {
        **listings.endpoint(listing, catalogue.in_force(listing)),
        "model": listing.model,
        "state": state,
        "prices": [_price(price) for price in listing.prices],
    }


def _price(price: Any) -> dict[str, Any]:
    return {
        "id": price.id,
        "effective_at": iso(price.effective_at_ms),
        "ends_at": iso(price.ends_at_ms),
        "pricing": listings.pricing(price),
        "commission_bps": price.commission_bps,
    }
