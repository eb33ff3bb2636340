"""Billing's queries. Each function takes a connection and never commits.

Writers lock in one order: account rows by id (`lock_accounts`), then ledger accounts by id. Who
holds an account's row may write its leases, grants and numbers as absolute values.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Table, bindparam, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import add_excluded, insert_if_absent, upsert
from services.billing import tables as t
from services.billing.account import Account
from services.billing.leases import Lease, Report
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
    statement = _accounts.where(t.account.c.id.in_(sorted(ids))).order_by(t.account.c.id)
    rows = await connection.execute(statement.with_for_update())
    return {row[0]: Account(*row) for row in rows}


async def account(connection: AsyncConnection, account_id: str) -> Account | None:
    row = (await connection.execute(_accounts.where(t.account.c.id == account_id))).first()
    return None if row is None else Account(*row)


_accounts = select(
    t.account.c.id,
    t.account.c.granted_nano,
    t.account.c.used_nano,
    t.account.c.reserved_nano,
    t.account.c.credit_epoch,
    t.account.c.refused,
    t.account.c.frozen,
)


async def save_accounts(connection: AsyncConnection, accounts: Iterable[Account]) -> None:
    """Store the numbers of locked accounts."""
    rows = [
        (a.granted_nano, a.used_nano, a.reserved_nano, a.credit_epoch, a.refused, a.id)
        for a in accounts
    ]
    await _execute_many(
        connection,
        t.account,
        ("granted_nano", "used_nano", "reserved_nano", "credit_epoch", "refused"),
        rows,
    )


# Attempts


async def seen(
    connection: AsyncConnection, generations: Collection[str]
) -> dict[tuple[str, int], Seen]:
    """The attempts of these generations that have posted already."""
    c = t.attempt.c
    rows = await connection.execute(
        select(c.generation, c.attempt, c.account, c.content_hash, c.charge_nano).where(
            c.generation.in_(list(generations))
        )
    )
    return {(row[0], row[1]): Seen(row[2], row[3], row[4]) for row in rows}


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
    await _insert_many(connection, t.attempt, rows)


async def attempt_events(
    connection: AsyncConnection, account_id: str, generation: str
) -> list[tuple[int, bytes]]:
    """The attempts of an account's generation, in order: (number, the event's bytes)."""
    c = t.attempt.c
    rows = await connection.execute(
        select(c.attempt, c.event)
        .where(c.generation == generation, c.account == account_id)
        .order_by(c.attempt)
    )
    return [(row[0], row[1]) for row in rows]


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


# The ledger


async def wallets(connection: AsyncConnection, accounts: Collection[str]) -> dict[str, Wallet]:
    """The accounts' grants that have something left, in the order of draw-down."""
    found = {name: Wallet(name) for name in accounts}
    g, a = t.credit_grant.c, t.ledger_account.c
    rows = await connection.execute(
        select(g.account, g.id, a.name, a.balance_nano, g.priority, g.expires_at_ms)
        .join_from(t.credit_grant, t.ledger_account, g.ledger_account == a.id)
        .where(g.account.in_(list(accounts)), a.balance_nano > 0)
    )
    for row in rows:
        found[row[0]].grants.append(Grant(*row[1:]))
    for wallet in found.values():
        wallet.sort()
    return found


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
    await _insert_many(connection, t.ledger_transaction, headers)
    await _insert_many(connection, t.entry, entries)
    await connection.execute(
        _move_balance, [{"moved_id": key, "moved_nano": moved[key]} for key in sorted(moved)]
    )


_move_balance = (
    update(t.ledger_account)
    .where(t.ledger_account.c.id == bindparam("moved_id"))
    .values(balance_nano=t.ledger_account.c.balance_nano + bindparam("moved_nano"))
)


async def ledger_accounts(connection: AsyncConnection, names: Collection[str]) -> dict[str, int]:
    """Name -> id; accounts of the chart are opened when first posted to."""
    found = await _ledger_accounts(connection, sorted(names))
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
        found.update(await _ledger_accounts(connection, missing))
    return found


async def _ledger_accounts(connection: AsyncConnection, names: Sequence[str]) -> dict[str, int]:
    a = t.ledger_account.c
    rows = await connection.execute(select(a.name, a.id).where(a.name.in_(names)))
    return {row[0]: row[1] for row in rows}


async def customer_postings(
    connection: AsyncConnection, transaction_ids: Collection[str]
) -> dict[str, list[Posting]]:
    """Transaction id -> its postings on customers' ledger accounts: the recorded draw-down."""
    e, a = t.entry.c, t.ledger_account.c
    rows = await connection.execute(
        select(e.transaction_id, a.name, e.amount_nano)
        .join_from(t.entry, t.ledger_account, e.ledger_account == a.id)
        .where(e.transaction_id.in_(sorted(transaction_ids)), a.kind == "customer")
        .order_by(e.transaction_id, e.line)
    )
    found: dict[str, list[Posting]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(Posting(row[1], row[2]))
    return found


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
    rows = [
        {
            "account": account_id,
            "key_hash": key_hash,
            "day": day,
            "charge_nano": used[account_id, key_hash, day][0],
            "attempts": used[account_id, key_hash, day][1],
        }
        for account_id, key_hash, day in sorted(used)
    ]
    await upsert(
        connection,
        t.usage_day,
        rows,
        ("account", "key_hash", "day"),
        add_excluded(connection, t.usage_day, ("charge_nano", "attempts")),
    )


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


# Leases


async def leases(connection: AsyncConnection, ids: Collection[str]) -> dict[str, Lease]:
    """The leases with these ids. Lock their accounts first when they are to change."""
    rows = await connection.execute(_leases.where(t.lease.c.id.in_(sorted(ids))))
    return {row[0]: Lease(*row) for row in rows}


async def ended_leases(connection: AsyncConnection, now_ms: int, limit: int) -> list[Lease]:
    """Leases that are not reclaimed though closed by their edge or expired, oldest first."""
    c = t.lease.c
    rows = await connection.execute(
        _leases.where((c.state == "closed") | ((c.state == "open") & (c.expires_at_ms < now_ms)))
        .order_by(c.expires_at_ms)
        .limit(limit)
    )
    return [Lease(*row) for row in rows]


_leases = select(
    t.lease.c.id,
    t.lease.c.account,
    t.lease.c.edge,
    t.lease.c.amount_nano,
    t.lease.c.spent_nano,
    t.lease.c.excess_nano,
    t.lease.c.returned_nano,
    t.lease.c.attempts,
    t.lease.c.closed_at_ms,
    t.lease.c.closed_attempts,
    t.lease.c.closed_nano,
    t.lease.c.in_doubt,
    t.lease.c.state,
    t.lease.c.expires_at_ms,
)


async def insert_leases(connection: AsyncConnection, rows: Sequence[Lease], now_ms: int) -> None:
    if rows:
        await connection.execute(
            insert(t.lease),
            [
                {
                    "id": made.id,
                    "account": made.account,
                    "edge": made.edge,
                    "state": made.state,
                    "amount_nano": made.amount_nano,
                    "spent_nano": 0,
                    "excess_nano": 0,
                    "returned_nano": 0,
                    "attempts": 0,
                    "granted_at_ms": now_ms,
                    "expires_at_ms": made.expires_at_ms,
                    "closed_at_ms": 0,
                    "closed_attempts": 0,
                    "closed_nano": 0,
                    "in_doubt": "",
                }
                for made in rows
            ],
        )


async def save_leases(connection: AsyncConnection, changed: Iterable[Lease]) -> None:
    """Store leases of locked accounts, in id order."""
    rows = [
        (
            x.state,
            x.spent_nano,
            x.excess_nano,
            x.returned_nano,
            x.attempts,
            x.closed_at_ms,
            x.closed_attempts,
            x.closed_nano,
            x.in_doubt,
            x.id,
        )
        for x in sorted(changed, key=lambda lease: lease.id)
    ]
    await _execute_many(
        connection,
        t.lease,
        (
            "state",
            "spent_nano",
            "excess_nano",
            "returned_nano",
            "attempts",
            "closed_at_ms",
            "closed_attempts",
            "closed_nano",
            "in_doubt",
        ),
        rows,
    )


async def save_report(
    connection: AsyncConnection, worker: str, boot: str, ids: Collection[str], now_ms: int
) -> None:
    row = {
        "worker": worker,
        "boot": boot,
        "reported_at_ms": now_ms,
        "leases": "\n".join(sorted(ids)),
    }
    await upsert(connection, t.worker_report, [row], ["worker"])


async def reports(connection: AsyncConnection) -> list[Report]:
    """The last report of every worker that ever reported."""
    c = t.worker_report.c
    rows = await connection.execute(select(c.worker, c.reported_at_ms, c.leases))
    return [Report(row[0], row[1], frozenset(filter(None, row[2].split("\n")))) for row in rows]


# Many rows at once. The statements are compiled once and given tuples: a dictionary per row would
# cost more than the row's insertion.


async def _insert_many(
    connection: AsyncConnection, table: Table, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows whose values stand in the order of the table's columns."""
    if rows:
        await connection.exec_driver_sql(_insert_text(table, connection.dialect), list(rows))


async def _execute_many(
    connection: AsyncConnection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Set `columns` of the rows whose `id` comes last in each tuple."""
    if rows:
        statement = _update_text(table, columns, connection.dialect)
        await connection.exec_driver_sql(statement, list(rows))


@lru_cache
def _insert_text(table: Table, dialect: Dialect) -> str:
    return str(insert(table).compile(dialect=dialect, column_keys=[c.name for c in table.columns]))


@lru_cache
def _update_text(table: Table, columns: tuple[str, ...], dialect: Dialect) -> str:
    statement = (
        update(table)
        .where(table.c.id == bindparam("where_id"))
        .values({name: bindparam(f"set_{name}") for name in columns})
    )
    compiled = statement.compile(dialect=dialect)
    names = [f"set_{name}" for name in columns] + ["where_id"]
    if list(compiled.positiontup or ()) != names:
        raise AssertionError(f"parameters of {table.name} in another order: {compiled}")
    return str(compiled)
