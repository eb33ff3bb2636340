"""The Routing service over rpc: translate, ask policy, translate back."""

from collections.abc import Callable

from bourse.rpc import Context, RpcError, StatusCode
from bourse.v1.routing_pb2 import PlanRequest, PlanResponse
from services.routing import policy
from services.routing.ask import from_request
from services.routing.views import Views, wall_clock_ms

MODELS_MAX = 50


class RoutingApi:
    def __init__(self, views: Views, clock: Callable[[], int] = wall_clock_ms) -> None:
        self._views = views
        self._clock = clock

    async def Plan(self, request: PlanRequest, context: Context) -> PlanResponse:
        """Plan a request at this moment.

        INVALID_ARGUMENT names the field; UNAVAILABLE until the views have caught up.
        """
        _check(request)
        catalogue, health = self._views.catalogue, self._views.health
        if catalogue is None or health is None:
            raise RpcError(StatusCode.UNAVAILABLE, "the catalogue is still being read")
        made = policy.plan(from_request(request), catalogue, health, self._clock())
        response = PlanResponse(
            version=f"{catalogue.version}.{health.seen_ms}",
            expires_at_ms=made.expires_at_ms,
            unknown_models=made.unknown_models,
        )
        for candidate in made.candidates:
            response.candidates.add(
                listing=candidate.endpoint.listing,
                price=candidate.price.version,
                tier=candidate.tier,
                weight=candidate.weight,
                model_index=candidate.model_index,
                price_blended_pico=candidate.blended_pico,
            )
        for excluded in made.excluded:
            response.exclusions.add(
                endpoint=excluded.endpoint.id,
                model=excluded.endpoint.model,
                provider=excluded.endpoint.provider,
                excluded_by=excluded.excluded_by,
                field=excluded.field,
                detail=excluded.detail,
            )
        return response


def _check(request: PlanRequest) -> None:
    if not request.models:
        raise RpcError(StatusCode.INVALID_ARGUMENT, "no model is named", field="model")
    if len(request.models) > MODELS_MAX:
        message = f"at most {MODELS_MAX} models can be named"
        raise RpcError(StatusCode.INVALID_ARGUMENT, message, field="models")
    for field in ("prompt_tokens", "max_tokens"):
        if getattr(request, field) < 0:
            raise RpcError(StatusCode.INVALID_ARGUMENT, f"{field} is negative", field=field)
