"""Prove the books: every balance, sum and loan computed again from the rows that never change."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Text, and_, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing import tables as t

CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Check:
    """One equation of the books; it holds when both sides are equal."""

    name: str
    expected: int
    found: int

    @property
    def holds(self) -> bool:
        return self.expected == self.found

    def __str__(self) -> str:
        if self.holds:
            return f"{self.name}: equal ({self.found})"
        return (
            f"{self.name}: {self.found}, expected {self.expected}, off {self.found - self.expected}"
        )


async def verify(connection: AsyncConnection) -> list[Check]:
    """Check everything within one reading transaction."""

    async def number(statement: Select[Any]) -> int:
        return int(await connection.scalar(statement) or 0)

    e, x = t.entry.c, t.ledger_transaction.c
    used = _customer_entries().where(x.kind.in_(("settle", "reverse")))
    granted = _customer_entries().where(x.kind == "grant")
    charges = await number(select(func.sum(t.attempt.c.charge_nano)))
    insured = await number(select(func.sum(t.attempt.c.insured_nano)))
    reversals = await number(_customer_entries().where(x.kind == "reverse"))
    live = t.lease.c.amount_nano - t.lease.c.spent_nano - t.lease.c.returned_nano
    return [
        Check("trial balance", 0, await number(select(func.sum(e.amount_nano)))),
        Check("transactions that do not sum to zero", 0, await number(_unbalanced())),
        Check("balances that differ from their entries", 0, await number(_drifted())),
        Check("entries without a transaction", 0, await number(_orphans())),
        Check("charges in events = charges posted", charges, reversals - await number(used)),
        Check(
            "insurance in events = insurance posted",
            insured,
            -await number(_insurance_entries()),
        ),
        Check(
            "used by accounts = charges posted",
            -await number(used),
            await number(select(func.sum(t.account.c.used_nano))),
        ),
        Check(
            "used by keys and days = charges posted",
            -await number(used),
            await number(select(func.sum(t.usage_day.c.charge_nano))),
        ),
        Check(
            "granted to accounts = grants posted",
            await number(granted),
            await number(select(func.sum(t.account.c.granted_nano))),
        ),
        Check(
            "grants issued = grants posted",
            await number(granted),
            await number(select(func.sum(t.credit_grant.c.issued_nano))),
        ),
        Check(
            "reserved on accounts = live leases",
            await number(select(func.sum(live))),
            await number(select(func.sum(t.account.c.reserved_nano))),
        ),
        Check("accounts whose balance differs", 0, await number(_accounts_off())),
        Check("generations with two charges standing", 0, await number(_charged_twice())),
        Check("attempts whose content changed", 0, await _changed_attempts(connection)),
    ]


def _customer_entries() -> Select[Any]:
    e, a, x = t.entry.c, t.ledger_account.c, t.ledger_transaction.c
    return (
        select(func.sum(e.amount_nano))
        .join_from(t.entry, t.ledger_account, e.ledger_account == a.id)
        .join(t.ledger_transaction, e.transaction_id == x.id)
        .where(a.kind == "customer")
    )


def _insurance_entries() -> Select[Any]:
    e, a, x = t.entry.c, t.ledger_account.c, t.ledger_transaction.c
    return (
        select(func.sum(e.amount_nano))
        .join_from(t.entry, t.ledger_account, e.ledger_account == a.id)
        .join(t.ledger_transaction, e.transaction_id == x.id)
        .where(x.kind == "insure", a.name.like("insurance:%"))
    )


def _unbalanced() -> Select[Any]:
    e = t.entry.c
    off = select(e.transaction_id).group_by(e.transaction_id).having(func.sum(e.amount_nano) != 0)
    return select(func.count()).select_from(off.subquery())


def _drifted() -> Select[Any]:
    e, a = t.entry.c, t.ledger_account.c
    sums = (
        select(e.ledger_account, func.sum(e.amount_nano).label("sum_nano"))
        .group_by(e.ledger_account)
        .subquery()
    )
    return (
        select(func.count())
        .select_from(t.ledger_account.outerjoin(sums, sums.c.ledger_account == a.id))
        .where(func.coalesce(sums.c.sum_nano, 0) != a.balance_nano)
    )


def _orphans() -> Select[Any]:
    e, x = t.entry.c, t.ledger_transaction.c
    return (
        select(func.count())
        .select_from(t.entry.outerjoin(t.ledger_transaction, e.transaction_id == x.id))
        .where(x.id.is_(None))
    )


def _accounts_off() -> Select[Any]:
    """Accounts whose numbers differ from their ledger accounts, or whose loans from leases."""
    a, c, s = t.ledger_account.c, t.account.c, t.lease.c
    balances = (
        select(a.owner, func.sum(a.balance_nano).label("sum_nano"))
        .where(a.kind == "customer")
        .group_by(a.owner)
        .subquery()
    )
    loans = (
        select(
            s.account, func.sum(s.amount_nano - s.spent_nano - s.returned_nano).label("sum_nano")
        )
        .group_by(s.account)
        .subquery()
    )
    return (
        select(func.count())
        .select_from(
            t.account.outerjoin(balances, balances.c.owner == c.id).outerjoin(
                loans, loans.c.account == c.id
            )
        )
        .where(
            or_(
                func.coalesce(balances.c.sum_nano, 0) != c.granted_nano - c.used_nano,
                func.coalesce(loans.c.sum_nano, 0) != c.reserved_nano,
            )
        )
    )


def _charged_twice() -> Select[Any]:
    p, x = t.attempt.c, t.ledger_transaction.c
    unwound = select(x.reverses).where(x.kind == "reverse")
    standing = (
        select(p.generation)
        .where(
            and_(
                p.charge_nano > 0,
                (p.generation + ":attempt:" + cast(p.attempt, Text)).not_in(unwound),
            )
        )
        .group_by(p.generation)
        .having(func.count() > 1)
    )
    return select(func.count()).select_from(standing.subquery())


async def _changed_attempts(connection: AsyncConnection) -> int:
    return sum(
        [
            1
            async for content_hash, event in _attempts(connection)
            if hashlib.sha256(event).digest() != content_hash
        ]
    )


async def _attempts(connection: AsyncConnection) -> AsyncIterator[tuple[bytes, bytes]]:
    c = t.attempt.c
    result = await connection.stream(
        select(c.content_hash, c.event).execution_options(yield_per=CHUNK)
    )
    async for row in result:
        yield row[0], row[1]
