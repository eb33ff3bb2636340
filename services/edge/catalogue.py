"""The public catalogue: models, endpoints, providers. No key is needed."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from services.edge import listings
from services.edge.errors import ApiError
from services.edge.http import Json
from services.edge.listings import Listings

PAGE_DEFAULT = 500
PAGE_MAX = 1_000
OFFSET_MAX = 1_000_000


def routes(catalogue: Listings, public_url: str) -> APIRouter:
    router = APIRouter(tags=["Catalogue"], default_response_class=Json)

    def shown(
        q: str, supported_parameters: str, input_modalities: str, output_modalities: str
    ) -> list[dict[str, Any]]:
        found = []
        parameters, inputs = _names(supported_parameters), _names(input_modalities)
        outputs = set() if output_modalities == "all" else _names(output_modalities or "text")
        for name, ones in catalogue.models().items():
            model = listings.model(ones, catalogue.in_force(ones[0]), public_url)
            architecture = model["architecture"]
            if (
                q.lower() in f"{name} {model['name']}".lower()
                and parameters <= set(model["supported_parameters"])
                and inputs <= set(architecture["input_modalities"])
                and outputs <= set(architecture["output_modalities"])
            ):
                found.append(model)
        return found

    @router.get("/models", summary="List models")
    async def models(
        request: Request,
        q: str = "",
        supported_parameters: str = "",
        input_modalities: str = "",
        output_modalities: str = "text",
        sort: str = "",
        offset: Annotated[int | None, Query(ge=0, le=OFFSET_MAX)] = None,
        limit: Annotated[int | None, Query(ge=1, le=PAGE_MAX)] = None,
    ) -> Json:
        """Every model somebody serves now, at its lowest price in force, in USD per unit."""
        found = shown(q, supported_parameters, input_modalities, output_modalities)
        _sort(found, sort)
        total = len(found)
        following = None
        if offset is not None or limit is not None:
            start, size = offset or 0, limit or PAGE_DEFAULT
            found = found[start : start + size]
            if start + size < total:
                next_page = request.url.include_query_params(offset=start + size, limit=size)
                following = f"{public_url}{next_page.path}?{next_page.query}"
        return Json({"data": found, "total_count": total, "links": {"next": following}})

    @router.get("/models/count", summary="Count models")
    async def count(output_modalities: str = "text") -> Json:
        return Json({"data": {"count": len(shown("", "", "", output_modalities))}})

    @router.get("/model/{author}/{slug}", summary="Get a model")
    async def model(author: str, slug: str) -> Json:
        ones = _served(catalogue, author, slug)
        return Json({"data": listings.model(ones, catalogue.in_force(ones[0]), public_url)})

    @router.get("/models/{author}/{slug}", summary="Get a model, as OpenAI's clients ask for it")
    async def retrieve(author: str, slug: str) -> Json:
        """OpenAI's four fields, and in `data` what `/model/{author}/{slug}` says."""
        ones = _served(catalogue, author, slug)
        data = listings.model(ones, catalogue.in_force(ones[0]), public_url)
        return Json(
            {
                "id": data["id"],
                "object": "model",
                "created": data["created"],
                "owned_by": author,
                "data": data,
            }
        )

    @router.get("/models/{author}/{slug}/endpoints", summary="List a model's endpoints")
    async def endpoints(author: str, slug: str) -> Json:
        """Who serves the model, at which price, with which limits."""
        ones = _served(catalogue, author, slug)
        first = ones[0]
        return Json(
            {
                "data": {
                    "id": first.model,
                    "name": first.model_name or first.model,
                    "created": first.created_at_ms // 1_000,
                    "description": first.description,
                    "architecture": listings.architecture(ones),
                    "endpoints": [listings.endpoint(o, catalogue.in_force(o)) for o in ones],
                }
            }
        )

    @router.get("/providers", summary="List providers")
    async def providers() -> Json:
        return Json(
            {
                "data": [
                    {
                        "name": one.name,
                        "slug": one.slug,
                        "privacy_policy_url": one.privacy_policy_url or None,
                        "terms_of_service_url": one.terms_of_service_url or None,
                        "status_page_url": one.status_page_url or None,
                        "headquarters": one.headquarters or None,
                        "datacenters": list(one.datacenters),
                    }
                    for one in catalogue.providers()
                ]
            }
        )

    return router


def _served(catalogue: Listings, author: str, slug: str) -> list[Any]:
    found = catalogue.of_model(f"{author}/{slug}")
    if not found:
        raise ApiError(404, f"No such model: {author}/{slug}.", field="slug")
    return found


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}


def _sort(models: list[dict[str, Any]], sort: str) -> None:
    if sort == "newest":
        models.sort(key=lambda model: -model["created"])
    elif sort in ("pricing-low-to-high", "pricing-high-to-low"):
        models.sort(
            key=lambda model: listings.price_pico(model["pricing"]["prompt"]),
            reverse=sort == "pricing-high-to-low",
        )
    elif sort == "context-high-to-low":
        models.sort(key=lambda model: -(model["context_length"] or 0))
    elif sort:
        raise ApiError(400, f"`sort` cannot be {sort!r} here.", field="sort")
