"""Make accounts: an account, its keys, and its first credit."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bourse.database import Database
from bourse.v1.billing_pb2 import GrantRequest, GrantResponse
from services.edge import keys, store

DEFAULT_KEYS: Mapping[str, str] = {keys.INFERENCE: "inference", keys.MANAGEMENT: "management"}
GRANT_DEADLINE_S = 5.0


class BillingClient(Protocol):
    async def Grant(self, request: GrantRequest, *, timeout: float) -> GrantResponse: ...


@dataclass(frozen=True, slots=True)
class CreatedAccount:
    """A new account and its keys, in plain: the only time they are shown."""

    account: str
    inference_key: str
    management_key: str


async def create_account(
    database: Database,
    billing: BillingClient,
    *,
    name: str,
    credit_nano: int,
    key_names: Mapping[str, str] = DEFAULT_KEYS,
    account: str = "",
) -> CreatedAccount:
    """Create an account with an inference and a management key, then give it credit.

    `key_names` maps the kinds `inference` and `management` to the keys' names. An edge's publisher
    ships the keys' events. Raises RpcError when billing cannot be asked: the account then exists
    without credit, and `grant` gives it later.
    """
    account = account or f"acct_{secrets.token_hex(12)}"
    now_ms = time.time_ns() // 1_000_000
    made = {
        kind: keys.mint(account, kind, key_names.get(kind, kind), now_ms)
        for kind in (keys.INFERENCE, keys.MANAGEMENT)
    }
    async with database.begin() as connection:
        await store.insert_account(connection, account, name, now_ms)
        for key, _ in made.values():
            await store.insert_key(connection, key)
    if credit_nano > 0:
        await grant(billing, account, credit_nano, f"created.{account}", "first credit")
    return CreatedAccount(account, made[keys.INFERENCE][1], made[keys.MANAGEMENT][1])


async def grant(
    billing: BillingClient, account: str, credit_nano: int, grant_id: str, reason: str
) -> int:
    """Give credit, once per `grant_id`; return the balance in nano-USD. Raises RpcError."""
    response = await billing.Grant(
        GrantRequest(
            id=grant_id,
            account=account,
            amount_nano=credit_nano,
            kind="paid",
            actor="operator",
            reason=reason,
        ),
        timeout=GRANT_DEADLINE_S,
    )
    return response.posted_nano
