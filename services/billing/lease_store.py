"""Billing's queries on leases and the workers' reports; the rules are those of store.py."""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import upsert
from bourse.direct import any_of, inserting, prepared
from services.billing import tables as t
from services.billing.leases import Lease, Report

_LEASE = (
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


async def leases(connection: AsyncConnection, ids: Collection[str]) -> dict[str, Lease]:
    """The leases with these ids. Lock their accounts first when they are to change."""
    return {row[0]: Lease(*row) for row in await _leases.rows(connection, list(ids))}


_leases = prepared(select(*_LEASE).where(any_of(t.lease.c.id, "ids")), "ids")


async def ended_leases(connection: AsyncConnection, now_ms: int, limit: int) -> list[Lease]:
    """Leases that are not reclaimed though closed by their edge or expired, oldest first."""
    c = t.lease.c
    rows = await connection.execute(
        select(*_LEASE)
        .where((c.state == "closed") | ((c.state == "open") & (c.expires_at_ms < now_ms)))
        .order_by(c.expires_at_ms)
        .limit(limit)
    )
    return [Lease(*row) for row in rows]


async def insert_leases(connection: AsyncConnection, made: Iterable[Lease], now_ms: int) -> None:
    rows = [
        (
            lease.id,
            lease.account,
            lease.edge,
            lease.state,
            lease.amount_nano,
            lease.spent_nano,
            lease.excess_nano,
            lease.returned_nano,
            lease.attempts,
            now_ms,
            lease.expires_at_ms,
            lease.closed_at_ms,
            lease.closed_attempts,
            lease.closed_nano,
            lease.in_doubt,
        )
        for lease in made
    ]
    await _insert_lease.many(connection, rows)


_insert_lease = inserting(t.lease)


async def save_leases(connection: AsyncConnection, changed: Iterable[Lease]) -> None:
    """Store leases of locked accounts, in id order."""
    rows = [
        (
            lease.state,
            lease.spent_nano,
            lease.excess_nano,
            lease.returned_nano,
            lease.attempts,
            lease.closed_at_ms,
            lease.closed_attempts,
            lease.closed_nano,
            lease.in_doubt,
            lease.id,
        )
        for lease in sorted(changed, key=lambda lease: lease.id)
    ]
    await _save_lease.many(connection, rows)


_CHANGING = (
    "state",
    "spent_nano",
    "excess_nano",
    "returned_nano",
    "attempts",
    "closed_at_ms",
    "closed_attempts",
    "closed_nano",
    "in_doubt",
)
_save_lease = prepared(
    update(t.lease)
    .where(t.lease.c.id == bindparam("of"))
    .values({name: bindparam(name) for name in _CHANGING}),
    *_CHANGING,
    "of",
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


async def reports(connection: AsyncConnection) -> Sequence[Report]:
    """The last report of every worker that ever reported."""
    c = t.worker_report.c
    rows = await connection.execute(select(c.worker, c.reported_at_ms, c.leases))
    return [Report(row[0], row[1], frozenset(filter(None, row[2].split("\n")))) for row in rows]
