"""Why a request could not be placed or paid, told so that the caller can do something about it."""

from collections.abc import Sequence

from bourse.v1.routing_pb2 import Exclusion, PlanResponse
from services.edge.call import Call
from services.edge.errors import ApiError, availability
from services.edge.holds import InsufficientCredit
from services.edge.leases import REFUSAL_FROZEN
from services.edge.plans import Attempt
from services.edge.usage import usd

TEMPORARY_RETRY_S = 5

_PRIVACY = frozenset({"data_policy:zdr", "data_policy:training"})
_PLACES = frozenset({"geo", "data_region"})
_SHOWN = frozenset(
    {
        "geo", "data_region", "data_policy:zdr", "data_policy:training", "max_price",
        "context_length", "require_parameters", "quantization", "allowed_providers",
    }
)  # fmt: skip


def not_placed(call: Call, plan: PlanResponse) -> ApiError:
    """Return the error for a plan without candidates."""
    exclusions = list(plan.exclusions)
    reasons = {one.excluded_by for one in exclusions}
    if not exclusions:
        names = ", ".join(plan.unknown_models or call.models)
        return _error(
            400,
            "model_not_found",
            "invalid_request",
            f"No such model: {names}.",
            call,
            exclusions,
            "model",
        )
    first = next((one for one in exclusions if one.excluded_by != "state"), exclusions[0])
    if reasons == {"context_length"}:
        return _error(
            400,
            "constraint_filtered",
            "context_length_exceeded",
            f"The request does not fit any endpoint of {first.model}: {first.detail}.",
            call,
            exclusions,
            first.field or "messages",
        )
    if reasons <= {"state"}:
        return _error(
            503,
            "temporarily_unavailable",
            "provider_unavailable",
            f"No endpoint of {first.model} can be used now.",
            call,
            exclusions,
            "",
            TEMPORARY_RETRY_S,
        )
    if reasons <= _PRIVACY:
        code, status, error_type = "privacy_restricted", 404, "not_found"
    elif reasons <= _PLACES:
        code, status, error_type = "region_restricted", 403, "permission_denied"
    elif reasons & _SHOWN:
        code, status, error_type = "constraint_filtered", 404, "not_found"
    else:
        code, status, error_type = "no_endpoints", 404, "not_found"
    named = ", ".join(sorted(reasons))
    return _error(
        status,
        code,
        error_type,
        f"No endpoint is left for {first.model}. Excluded by: {named}.",
        call,
        exclusions,
        first.field,
    )


def not_paid(refusal: InsufficientCredit, attempts: Sequence[Attempt], call: Call) -> ApiError:
    """Return the 402: what was asked, and what is affordable, in tokens and USD."""
    if refusal.reason == REFUSAL_FROZEN:
        return ApiError(
            402,
            "The account's balance is below zero. Add credit to go on.",
            metadata={"reason": "insufficient_credits"},
        )
    cheapest = min(attempts, key=lambda one: one.bound_nano(one.hold_tokens(call), 16))
    prompt_tokens = cheapest.hold_tokens(call)
    asked_tokens = call.max_tokens or cheapest.output_max
    tokens = max(cheapest.affordable_tokens(refusal.spendable_nano, prompt_tokens), 0)
    asked_usd = usd(cheapest.bound_nano(prompt_tokens, asked_tokens))
    available_usd = usd(max(refusal.spendable_nano, 0))
    return ApiError(
        402,
        f"The request asks for up to {asked_tokens} tokens ({asked_usd} USD); the account can"
        f" afford {tokens} ({available_usd} USD). Add credit or lower `max_tokens`.",
        metadata={
            "reason": "insufficient_credits",
            "requested_tokens": asked_tokens,
            "requested_usd": asked_usd,
            "affordable_tokens": tokens,
            "available_usd": available_usd,
        },
    )


def _error(
    status: int,
    code: str,
    error_type: str,
    message: str,
    call: Call,
    exclusions: Sequence[Exclusion],
    field: str,
    retry_after_s: int = 0,
) -> ApiError:
    detail = next((one.detail for one in exclusions if one.field == field), "")
    return ApiError(
        status,
        message,
        error_type=error_type,
        field=field,
        retry_after_s=retry_after_s,
        availability=availability(
            code,
            status,
            error_type,
            requested_models=call.models,
            excluded_by=sorted({one.excluded_by for one in exclusions} & _SHOWN),
            affected_providers=sorted({one.provider for one in exclusions}),
            field=field,
            detail=detail,
            retry_after_s=retry_after_s,
        ),
    )
