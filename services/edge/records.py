"""What became of requests and money: asked of billing, always by (account, id)."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Request

from bourse.rating import COMPLETION_UNITS, PROMPT_UNITS
from bourse.v1.billing_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    GetGenerationRequest,
    GetGenerationResponse,
    GetUsageRequest,
    GetUsageResponse,
    UsageWindow,
)
from bourse.v1.events_pb2 import AttemptFinished, Outcome, Unit
from services.edge import usage
from services.edge.errors import ApiError
from services.edge.http import Authorization, Json, asked, raw_headers
from services.edge.identity import Identity
from services.edge.keys import Key
from services.edge.usage import CACHE_READ, usd, usd_number

PREFIX = "gen-"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TIME_CHARACTERS = 10
_CHARACTERS = 26
NEW_MS = 10_000
"""A generation that began so recently may have ended just now: its reader waits a little."""
WAIT_S = 1.0
ASK_AGAIN_S = 0.05
GenerationId = Annotated[str, Query(alias="id", max_length=64)]


class BillingClient(Protocol):
    async def GetGeneration(
        self, request: GetGenerationRequest, *, timeout: float
    ) -> GetGenerationResponse: ...

    async def GetUsage(self, request: GetUsageRequest, *, timeout: float) -> GetUsageResponse: ...

    async def GetBalance(
        self, request: GetBalanceRequest, *, timeout: float
    ) -> GetBalanceResponse: ...


def routes(
    identity: Identity,
    billing: BillingClient,
    *,
    deadline_s: float,
    first_token_deadline_s: float,
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> APIRouter:
    router = APIRouter(tags=["Records"], default_response_class=Json)

    @router.get("/generation", summary="Get a generation")
    async def generation(
        request: Request, shown_id: GenerationId, authorization: Authorization = None
    ) -> Json:
        """Usage, cost and every attempt of one request. Readable within a second of its end."""
        key = identity.caller(raw_headers(request))
        ulid = shown_id.removeprefix(PREFIX)
        minted_at_ms = _minted_at_ms(ulid)
        patience = _Patience(0 <= wall_ms() - minted_at_ms < NEW_MS)
        while True:
            found = await asked(
                billing.GetGeneration(
                    GetGenerationRequest(account=key.account, generation=ulid), timeout=deadline_s
                )
            )
            over = found.final or wall_ms() - minted_at_ms > first_token_deadline_s * 1_000
            readable = found.attempts and over
            if readable or not await patience.waited():
                break
        if not readable:
            error = ApiError(
                404, f"No such generation, or not readable yet: {shown_id}.", field="id"
            )
            error.retry_after_s = 1
            raise error
        return Json({"data": record(list(found.attempts), found.posted_nano)})

    @router.get("/key", summary="Get the caller's key")
    async def current_key(request: Request, authorization: Authorization = None) -> Json:
        key = identity.caller(raw_headers(request))
        used = await asked(
            billing.GetUsage(
                GetUsageRequest(account=key.account, key_hashes=[key.hash]), timeout=deadline_s
            )
        )
        balance = await asked(
            billing.GetBalance(GetBalanceRequest(account=key.account), timeout=deadline_s)
        )
        return Json(
            {
                "data": {
                    "label": key.label,
                    **limits(key, used.by_key[key.hash]),
                    "is_free_tier": balance.granted_nano == 0,
                    "is_management_key": key.is_management,
                    "is_provisioning_key": key.is_management,
                    "expires_at": iso(key.expires_at_ms),
                    "creator_user_id": None,
                    "rate_limit": {
                        "requests": -1,
                        "interval": "10s",
                        "note": "This field is deprecated and safe to ignore.",
                    },
                }
            }
        )

    @router.get("/credits", summary="Get the account's credits")
    async def account_credits(request: Request, authorization: Authorization = None) -> Json:
        """All credit ever given and all use ever charged, in USD. Needs a management key."""
        key = identity.management(raw_headers(request))
        balance = await asked(
            billing.GetBalance(GetBalanceRequest(account=key.account), timeout=deadline_s)
        )
        return Json(
            {
                "data": {
                    "total_credits": usd_number(balance.granted_nano),
                    "total_usage": usd_number(balance.used_nano),
                }
            }
        )

    return router


class _Patience:
    """How long one reader waits for a generation whose record may be on its way to billing."""

    def __init__(self, waits: bool) -> None:
        self._until = time.monotonic() + WAIT_S if waits else 0.0

    async def waited(self) -> bool:
        """Wait a little; False at once when there is no use in waiting longer."""
        if time.monotonic() + ASK_AGAIN_S > self._until:
            return False
        await asyncio.sleep(ASK_AGAIN_S)
        return True


def limits(key: Key, used: UsageWindow) -> dict[str, Any]:
    """Return the limit and usage fields of a key. No limit can be set on a key yet."""
    return {
        "limit": None,
        "limit_remaining": None,
        "limit_reset": None,
        "include_byok_in_limit": False,
        "usage": usd_number(used.total_nano),
        "usage_daily": usd_number(used.daily_nano),
        "usage_weekly": usd_number(used.weekly_nano),
        "usage_monthly": usd_number(used.monthly_nano),
        "byok_usage": 0,
        "byok_usage_daily": 0,
        "byok_usage_weekly": 0,
        "byok_usage_monthly": 0,
    }


def record(attempts: Sequence[AttemptFinished], posted_nano: int) -> dict[str, Any]:
    """Return one generation as `/generation` shows it: the charged attempt, else the last one."""
    served = next((one for one in reversed(attempts) if one.charge_nano), attempts[-1])
    found = usage.counts(served.usage)
    prompt = usage.of(found, PROMPT_UNITS)
    completion = usage.of(found, COMPLETION_UNITS)
    return {
        "id": PREFIX + served.generation,
        "upstream_id": served.upstream_id or None,
        "total_cost": usd_number(posted_nano),
        "usage": usd_number(posted_nano),
        "upstream_inference_cost": None,
        "cache_discount": None,
        "created_at": iso(attempts[0].started_at_ms),
        "model": served.model,
        "provider_name": served.provider_name or None,
        "app_id": None,
        "streamed": served.streamed,
        "cancelled": served.outcome == Outcome.OUTCOME_CLIENT_LEFT,
        "latency": served.first_token_ms if served.first_token_ms >= 0 else None,
        "moderation_latency": None,
        "generation_time": served.duration_ms,
        "finish_reason": served.finish_reason or None,
        "native_finish_reason": served.native_finish_reason or None,
        "service_tier": None,
        "tokens_prompt": prompt,
        "tokens_completion": completion,
        "native_tokens_prompt": prompt,
        "native_tokens_completion": completion,
        "native_tokens_completion_images": found.get(Unit.UNIT_COMPLETION_IMAGE, 0),
        "native_tokens_reasoning": found.get(Unit.UNIT_REASONING, 0),
        "native_tokens_cached": usage.of(found, CACHE_READ),
        "num_media_prompt": None,
        "num_input_audio_prompt": None,
        "num_media_completion": None,
        "num_search_results": found.get(Unit.UNIT_WEB_SEARCH) or None,
        "num_fetches": None,
        "web_search_engine": None,
        "origin": served.app,
        "http_referer": served.app or None,
        "is_byok": False,
        "external_user": None,
        "api_type": "completions",
        "preset_id": None,
        "router": None,
        "provider_responses": [_response(one) for one in attempts],
        "user_agent": None,
        "data_region": "global",
        "workspace_id": None,
        "session_id": served.session_id or None,
        "request_id": None,
        "cost_lines": _cost_lines(served),
    }


def iso(at_ms: int) -> str | None:
    """Print a time as clients read it; None for 0."""
    if not at_ms:
        return None
    made = datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds")
    return made.replace("+00:00", "Z")


def _response(attempt: AttemptFinished) -> dict[str, Any]:
    completed = attempt.outcome == Outcome.OUTCOME_COMPLETED
    return {
        "id": attempt.upstream_id,
        "endpoint_id": attempt.endpoint,
        "model_permaslug": attempt.model,
        "provider_name": attempt.provider_name,
        "status": attempt.status or (200 if completed else None),
        "latency": attempt.first_token_ms if attempt.first_token_ms >= 0 else attempt.duration_ms,
        "is_byok": False,
    }


def _cost_lines(attempt: AttemptFinished) -> list[dict[str, Any]]:
    """Return the lines of the bill: units at list price, then what the platform keeps of it."""
    lines: list[dict[str, Any]] = [
        {
            "unit": Unit.Name(line.unit).removeprefix("UNIT_").lower(),
            "count": line.count,
            "price_pico": line.price_pico,
            "cost_pico": line.cost_pico,
        }
        for line in attempt.cost_lines
    ]
    lines.append({"unit": "commission", "cost_usd": usd(attempt.commission_nano)})
    return lines


def _minted_at_ms(ulid: str) -> int:
    """Return the time within a ULID; 0 if it is none."""
    if len(ulid) != _CHARACTERS:
        return 0
    at_ms = 0
    for character in ulid[:_TIME_CHARACTERS].upper():
        digit = _CROCKFORD.find(character)
        if digit < 0:
            return 0
        at_ms = at_ms * 32 + digit
    return at_ms
