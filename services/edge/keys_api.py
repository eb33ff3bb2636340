"""API keys of an account, for whoever holds a management key of it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from bourse.database import Database
from bourse.v1.billing_pb2 import GetUsageRequest, GetUsageResponse, UsageWindow
from services.edge import keys, store
from services.edge.errors import ApiError
from services.edge.http import Authorization, Json, asked, raw_headers
from services.edge.identity import Identity
from services.edge.keys import Key
from services.edge.records import iso, limits

PAGE = 100
OFFSET_MAX = 1_000_000
Hash = Annotated[str, Path(alias="hash")]


class BillingClient(Protocol):
    async def GetUsage(self, request: GetUsageRequest, *, timeout: float) -> GetUsageResponse: ...


class NewKey(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(strict=True)

    name: str = Field(min_length=1, max_length=200)
    expires_at: str | None = Field(None, description="ISO 8601, UTC only.")
    limit: float | None = None
    limit_reset: str | None = None
    include_byok_in_limit: bool | None = None


class KeyChange(BaseModel):
    """What to change about a key."""

    model_config = ConfigDict(strict=True)

    name: str | None = Field(None, min_length=1, max_length=200)
    disabled: bool | None = None
    limit: float | None = None
    limit_reset: str | None = None
    include_byok_in_limit: bool | None = None


def routes(
    identity: Identity,
    database: Database,
    billing: BillingClient,
    *,
    published: Callable[[], None],
    deadline_s: float,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> APIRouter:
    """`published` is called after each change: its event waits in the outbox."""
    router = APIRouter(prefix="/keys", tags=["Keys"], default_response_class=Json)

    async def used(account: str, hashes: list[str]) -> GetUsageResponse:
        return await asked(
            billing.GetUsage(
                GetUsageRequest(account=account, key_hashes=hashes), timeout=deadline_s
            )
        )

    @router.get("", summary="List keys")
    async def list_keys(
        request: Request,
        include_disabled: bool = False,
        offset: Annotated[int, Query(ge=0, le=OFFSET_MAX)] = 0,
        authorization: Authorization = None,
    ) -> Json:
        """The account's keys, 100 a page, the oldest first. Needs a management key."""
        caller = identity.management(raw_headers(request))
        async with database.read() as connection:
            found = await store.keys(connection, caller.account, offset, PAGE, include_disabled)
        usage = await used(caller.account, [one.hash for one in found])
        return Json({"data": [shown(one, usage.by_key[one.hash]) for one in found]})

    @router.post("", summary="Make a key", status_code=201)
    async def make_key(
        request: Request, wanted: NewKey, authorization: Authorization = None
    ) -> Json:
        """Make an inference key. It is shown in this answer and never again."""
        caller = identity.management(raw_headers(request))
        _no_limits(wanted)
        expires_at_ms = _expiry(wanted.expires_at, now_ms())
        key, secret = keys.mint(
            caller.account, keys.INFERENCE, wanted.name, now_ms(), expires_at_ms
        )
        async with database.begin() as connection:
            if not await store.account_exists(connection, caller.account):
                raise ApiError(404, "The account does not exist.")
            await store.insert_key(connection, key)
        identity.apply(key)
        published()
        return Json({"data": shown(key, UsageWindow()), "key": secret}, status_code=201)

    @router.get("/{hash}", summary="Get a key")
    async def get_key(
        request: Request, key_hash: Hash, authorization: Authorization = None
    ) -> Json:
        caller = identity.management(raw_headers(request))
        key = await _find(database, caller.account, key_hash)
        return Json({"data": shown(key, (await used(caller.account, [key_hash])).by_key[key_hash])})

    @router.patch("/{hash}", summary="Change a key")
    async def change_key(
        request: Request, key_hash: Hash, wanted: KeyChange, authorization: Authorization = None
    ) -> Json:
        """Rename, disable or enable a key. Every edge knows within a second."""
        caller = identity.management(raw_headers(request))
        _no_limits(wanted)
        key = await _find(database, caller.account, key_hash)
        changed = key.changed(now_ms(), name=wanted.name, disabled=wanted.disabled)
        async with database.begin() as connection:
            if not await store.update_key(connection, changed):
                raise ApiError(409, "The key was changed at the same time. Try again.")
        identity.apply(changed)
        published()
        return Json(
            {"data": shown(changed, (await used(caller.account, [key_hash])).by_key[key_hash])}
        )

    @router.delete("/{hash}", summary="Delete a key")
    async def delete_key(
        request: Request, key_hash: Hash, authorization: Authorization = None
    ) -> Json:
        caller = identity.management(raw_headers(request))
        async with database.begin() as connection:
            if not await store.delete_key(connection, caller.account, key_hash):
                raise _no_key()
        identity.remove(key_hash)
        published()
        return Json({"deleted": True})

    return router


def shown(key: Key, used: UsageWindow) -> dict[str, Any]:
    return {
        "hash": key.hash,
        "name": key.name,
        "label": key.label,
        "disabled": key.disabled,
        **limits(key, used),
        "created_at": iso(key.created_at_ms),
        "updated_at": iso(key.updated_at_ms),
        "expires_at": iso(key.expires_at_ms),
        "creator_user_id": None,
        "workspace_id": None,
    }


def _no_limits(wanted: NewKey | KeyChange) -> None:
    """A limit that is accepted must bind, and none does yet."""
    for field in ("limit", "limit_reset", "include_byok_in_limit"):
        if getattr(wanted, field):
            raise ApiError(400, f"`{field}` is not offered here yet.", field=f"/{field}")


def _expiry(text: str | None, now_ms: int) -> int:
    if text is None:
        return 0
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise ApiError(400, "`expires_at` is not a time.", field="/expires_at") from error
    if at.utcoffset() != timedelta(0):
        raise ApiError(400, "`expires_at` must be UTC.", field="/expires_at")
    at_ms = int(at.astimezone(UTC).timestamp() * 1_000)
    if at_ms <= now_ms:
        raise ApiError(400, "`expires_at` is in the past.", field="/expires_at")
    return at_ms


async def _find(database: Database, account: str, key_hash: str) -> Key:
    async with database.read() as connection:
        key = await store.key(connection, account, key_hash)
    if key is None:
        raise _no_key()
    return key


def _no_key() -> ApiError:
    return ApiError(404, "The account has no such key.", field="hash")
