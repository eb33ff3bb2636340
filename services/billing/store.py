"""Billing's queries on accounts, attempts, the ledger and usage.

Each function takes a connection and never commits. Writers lock in one order: account rows by id
(`lock_accounts`), then ledger accounts by id. Who holds an account's row may write its numbers, its
grants and its leases (lease_store.py) as absolute values.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, case, func, insert, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import insert_if_absent
from bourse.direct import adding, any_of, inserting, prepared
from services.billing import tables as t
from services.billing.account import Account
from services.billing.ledger import (
    Attempt,
    Grant,
    Posting,
    Transaction,
    Wallet,
    kind_and_owner,
    overdraft,
    reversal_id,
)
from services.billing.usage import WindowStarts


class Seen(NamedTuple):
    """What is compared with an event that comes again."""

    account: str
    content_hash: bytes
    charge_nano: int


# Accounts


async def lock_or_open_accounts(
    connection: AsyncConnection, ids: Collection[str], now_ms: int
) -> dict[str, Account]:
    """Lock the accounts' rows in id order, opening those never seen before."""
    found = await lock_accounts(connection, ids)
    missing = sorted(set(ids) - found.keys())
    if missing:
        rows = [
            {
                "id": account_id,
                "granted_nano": 0,
                "used_nano": 0,
                "reserved_nano": 0,
                "credit_epoch": 0,
                "refused": False,
                "frozen": False,
                "opened_at_ms": now_ms,
            }
            for account_id in missing
        ]
        await insert_if_absent(connection, t.account, rows, [t.account.c.id])
        found.update(await lock_accounts(connection, missing))
    return found


async def lock_accounts(connection: AsyncConnection, ids: Collection[str]) -> dict[str, Account]:
    """Lock the rows of those accounts that exist, in id order."""
    rows = await _lock_accounts.rows(connection, sorted(ids))
    return {row[0]: Account(*row) for row in rows}


async def account(connection: AsyncConnection, account_id: str) -> Account | None:
    rows = await _account.rows(connection, account_id)
    return Account(*rows[0]) if rows else None


_ACCOUNT = (
    t.account.c.id,
    t.account.c.granted_nano,
    t.account.c.used_nano,
    t.account.c.reserved_nano,
    t.account.c.credit_epoch,
    t.account.c.refused,
    t.account.c.frozen,
)
_account = prepared(select(*_ACCOUNT).where(t.account.c.id == bindparam("id")), "id")
_lock_accounts = prepared(
    select(*_ACCOUNT)
    .where(any_of(t.account.c.id, "ids"))
    .order_by(t.account.c.id)
    .with_for_update(),
    "ids",
)


async def save_accounts(connection: AsyncConnection, accounts: Iterable[Account]) -> None:
    """Store the numbers of locked accounts."""
    rows = [
        (a.granted_nano, a.used_nano, a.reserved_nano, a.credit_epoch, bool(a.refused), a.id)
        for a in accounts
    ]
    await _save_account.many(connection, rows)


_NUMBERS = ("granted_nano", "used_nano", "reserved_nano", "credit_epoch", "refused")
_save_account = prepared(
    update(t.account)
    .where(t.account.c.id == bindparam("of"))
    .values({name: bindparam(name) for name in _NUMBERS}),
    *_NUMBERS,
    "of",
)


# Attempts


async def seen(
    connection: AsyncConnection, generations: Collection[str]
) -> dict[tuple[str, int], Seen]:
    """The attempts of these generations that have posted already."""
    rows = await _seen.rows(connection, list(generations))
    return {(row[0], row[1]): Seen(row[2], row[3], row[4]) for row in rows}


_seen = prepared(
    select(
        t.attempt.c.generation,
        t.attempt.c.attempt,
        t.attempt.c.account,
        t.attempt.c.content_hash,
        t.attempt.c.charge_nano,
    ).where(any_of(t.attempt.c.generation, "generations")),
    "generations",
)


async def insert_attempts(
    connection: AsyncConnection, attempts: Iterable[Attempt], now_ms: int
) -> None:
    rows = [
        (
            a.generation,
            a.attempt,
            a.account,
            a.content_hash,
            a.event,
            a.list_nano,
            a.charge_nano,
            a.insured_nano,
            now_ms,
        )
        for a in attempts
    ]
    await _insert_attempt.many(connection, rows)


_insert_attempt = inserting(t.attempt)


async def attempt_events(
    connection: AsyncConnection, account_id: str, generation: str
) -> list[tuple[int, bytes]]:
    """The attempts of an account's generation, in order: (number, the event's bytes)."""
    rows = await _attempt_events.rows(connection, generation, account_id)
    return [(row[0], row[1]) for row in rows]


_attempt_events = prepared(
    select(t.attempt.c.attempt, t.attempt.c.event)
    .where(
        t.attempt.c.generation == bindparam("generation"),
        t.attempt.c.account == bindparam("account"),
    )
    .order_by(t.attempt.c.attempt),
    "generation",
    "account",
)


async def charged_events(
    connection: AsyncConnection, keys: Collection[tuple[str, int]]
) -> dict[tuple[str, int], bytes]:
    """(generation, attempt) -> the event's bytes, of those that were charged."""
    c = t.attempt.c
    rows = await connection.execute(
        select(c.generation, c.attempt, c.event).where(
            c.generation.in_(sorted({generation for generation, _ in keys})), c.charge_nano > 0
        )
    )
    return {(row[0], row[1]): row[2] for row in rows if (row[0], row[1]) in keys}


async def insert_unserved(
    connection: AsyncConnection, account_id: str, keys: Iterable[tuple[str, int]], now_ms: int
) -> None:
    rows = [
        {"generation": generation, "attempt": number, "account": account_id, "named_at_ms": now_ms}
        for generation, number in sorted(keys)
    ]
    c = t.unserved_attempt.c
    await insert_if_absent(connection, t.unserved_attempt, rows, [c.attempt])


async def unserved(
    connection: AsyncConnection, generations: Collection[str]
) -> set[tuple[str, int, str]]:
    """(generation, attempt, account) of those attempts of which an edge saw no end."""
    rows = await _unserved.rows(connection, list(generations))
    return {(row[0], row[1], row[2]) for row in rows}


_unserved = prepared(
    select(
        t.unserved_attempt.c.generation,
        t.unserved_attempt.c.attempt,
        t.unserved_attempt.c.account,
    ).where(any_of(t.unserved_attempt.c.generation, "generations")),
    "generations",
)


# The ledger


async def wallets(connection: AsyncConnection, accounts: Collection[str]) -> dict[str, Wallet]:
    """The accounts' grants that have something left, in the order of draw-down."""
    found = {account_id: Wallet(account_id) for account_id in accounts}
    for row in await _wallets.rows(connection, list(accounts)):
        found[row[0]].grants.append(Grant(*row[1:]))
    for wallet in found.values():
        wallet.sort()
    return found


_wallets = prepared(
    select(
        t.credit_grant.c.account,
        t.credit_grant.c.id,
        t.ledger_account.c.name,
        t.ledger_account.c.balance_nano,
        t.credit_grant.c.priority,
        t.credit_grant.c.expires_at_ms,
    )
    .join_from(
        t.credit_grant, t.ledger_account, t.credit_grant.c.ledger_account == t.ledger_account.c.id
    )
    .where(any_of(t.credit_grant.c.account, "accounts"))
    .where(t.ledger_account.c.balance_nano > literal_column("0")),
    "accounts",
)


async def overdrawn_nano(connection: AsyncConnection, account_id: str) -> int:
    """How much the account has used beyond all its credit."""
    a = t.ledger_account.c
    balance = await connection.scalar(select(a.balance_nano).where(a.name == overdraft(account_id)))
    return max(0, -(balance or 0))


async def post(
    connection: AsyncConnection, transactions: Sequence[Transaction], now_ms: int
) -> None:
    """Write transactions with their entries and move the balances, in the order of ids."""
    if not transactions:
        return
    names = {posting.account for made in transactions for posting in made.postings}
    ids = await ledger_accounts(connection, names)
    headers, entries = [], []
    moved: dict[int, int] = {}
    for made in transactions:
        headers.append(
            (made.id, made.kind, made.account, made.reverses, made.occurred_at_ms, now_ms)
        )
        for line, (name, amount_nano) in enumerate(made.postings):
            ledger_id = ids[name]
            entries.append((made.id, line, ledger_id, amount_nano))
            moved[ledger_id] = moved.get(ledger_id, 0) + amount_nano
    await _insert_transaction.many(connection, headers)
    await _insert_entry.many(connection, entries)
    await _move_balance.many(connection, [(moved[key], key) for key in sorted(moved)])


_insert_transaction = inserting(t.ledger_transaction)
_insert_entry = inserting(t.entry)
_move_balance = prepared(
    update(t.ledger_account)
    .where(t.ledger_account.c.id == bindparam("of"))
    .values(balance_nano=t.ledger_account.c.balance_nano + bindparam("moved")),
    "moved",
    "of",
)


async def ledger_accounts(connection: AsyncConnection, names: Collection[str]) -> dict[str, int]:
    """Name -> id; accounts of the chart are opened when first posted to."""
    found = await _ids_by_name(connection, names)
    missing = sorted(set(names) - found.keys())
    if missing:
        rows = []
        for name in missing:
            kind, owner = kind_and_owner(name)
            rows.append(
                {
                    "name": name,
                    "kind": kind,
                    "owner": owner,
                    "currency": "USD",
                    "balance_nano": 0,
                }
            )
        await insert_if_absent(connection, t.ledger_account, rows, [t.ledger_account.c.id])
        found.update(await _ids_by_name(connection, missing))
    return found


async def _ids_by_name(connection: AsyncConnection, names: Collection[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in await _ledger_accounts.rows(connection, list(names))}


_ledger_accounts = prepared(
    select(t.ledger_account.c.name, t.ledger_account.c.id).where(
        any_of(t.ledger_account.c.name, "names")
    ),
    "names",
)


async def customer_postings(
    connection: AsyncConnection, transaction_ids: Collection[str]
) -> dict[str, list[Posting]]:
    """Transaction id -> its postings on customers' ledger accounts: the recorded draw-down."""
    found: dict[str, list[Posting]] = {}
    for row in await _customer_postings.rows(connection, list(transaction_ids)):
        found.setdefault(row[0], []).append(Posting(row[1], row[2]))
    return found


_customer_postings = prepared(
    select(t.entry.c.transaction_id, t.ledger_account.c.name, t.entry.c.amount_nano)
    .join_from(t.entry, t.ledger_account, t.entry.c.ledger_account == t.ledger_account.c.id)
    .where(
        any_of(t.entry.c.transaction_id, "ids"),
        t.ledger_account.c.kind == literal_column("'customer'"),
    )
    .order_by(t.entry.c.transaction_id, t.entry.c.line),
    "ids",
)


async def reversed_already(
    connection: AsyncConnection, keys: Collection[tuple[str, int]]
) -> set[str]:
    """The reversal transactions of these attempts that exist."""
    c = t.ledger_transaction.c
    ids = sorted(reversal_id(*key) for key in keys)
    return set((await connection.scalars(select(c.id).where(c.id.in_(ids)))).all())


async def grant(connection: AsyncConnection, grant_id: str) -> Any | None:
    """The grant's row, or None."""
    return (
        await connection.execute(select(t.credit_grant).where(t.credit_grant.c.id == grant_id))
    ).first()


async def insert_grant(connection: AsyncConnection, **row: Any) -> None:
    await connection.execute(insert(t.credit_grant).values(**row))


# Usage


async def add_usage(
    connection: AsyncConnection, used: Mapping[tuple[str, str, int], tuple[int, int]]
) -> None:
    """Add (account, key hash, day) -> (charge, attempts) to what is counted."""
    await _add_usage.many(connection, [(*key, *used[key]) for key in sorted(used)])


_add_usage = adding(t.usage_day, ("charge_nano", "attempts"))


async def usage(
    connection: AsyncConnection, account_id: str, key_hashes: Sequence[str], starts: WindowStarts
) -> dict[str, tuple[int, int, int, int]]:
    """Key hash -> what it was charged in all, today, this week, this month; nano-USD."""
    c = t.usage_day.c
    since = [func.sum(case((c.day >= start, c.charge_nano), else_=0)) for start in starts]
    rows = await connection.execute(
        select(c.key_hash, func.sum(c.charge_nano), *since)
        .where(c.account == account_id, c.key_hash.in_(list(key_hashes)))
        .group_by(c.key_hash)
    )
    return {row[0]: (int(row[1]), int(row[2]), int(row[3]), int(row[4])) for row in rows}
