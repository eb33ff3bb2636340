"""Lend credit to edges and take it back, in the caller's transaction."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing import lease_store, leases, notices, posting, store
from services.billing.account import Account
from services.billing.leases import Lease, Rule


@dataclass(frozen=True, slots=True)
class Want:
    """What an edge asks for one account."""

    account: str
    estimate_nano: int
    burn_nano_per_s: int


@dataclass(frozen=True, slots=True)
class Loan:
    """The answer to one want: a lease, or the reason why there is none."""

    account: str
    lease: Lease | None
    refusal: str
    credit_epoch: int
    available_nano: int


async def lend(
    connection: AsyncConnection,
    edge: str,
    wants: Sequence[Want],
    edges: int,
    rule: Rule,
    now_ms: int,
) -> list[Loan]:
    """Answer the wants in order. Raises each account's `reserved`, never above what has posted."""
    accounts = await store.lock_accounts(connection, {want.account for want in wants})
    loans, changed = [], {}
    for want in wants:
        account = accounts.get(want.account)
        if account is None:
            loans.append(Loan(want.account, None, "unknown_account", 0, 0))
            continue
        loan = _lend(account, edge, want, edges, rule, now_ms)
        if loan.lease is not None or (loan.refusal == "insufficient_credits"):
            changed[account.id] = account
        loans.append(loan)
    await store.save_accounts(connection, changed.values())
    await lease_store.insert_leases(connection, [x.lease for x in loans if x.lease], now_ms)
    return loans


def _lend(account: Account, edge: str, want: Want, edges: int, rule: Rule, now_ms: int) -> Loan:
    if account.frozen:
        return Loan(account.id, None, "frozen", account.credit_epoch, account.available_nano)
    amount_nano = leases.grant_nano(
        account.available_nano, want.estimate_nano, want.burn_nano_per_s, edges, rule
    )
    if amount_nano == 0:
        account.refused = True
        return Loan(
            account.id, None, "insufficient_credits", account.credit_epoch, account.available_nano
        )
    account.reserved_nano += amount_nano
    lease = Lease(
        id=f"{now_ms:x}{secrets.token_hex(8)}",  # sorts by time: new rows land side by side
        account=account.id,
        edge=edge,
        amount_nano=amount_nano,
        expires_at_ms=now_ms + rule.ttl_ms + rule.grace_ms,
    )
    return Loan(account.id, lease, "", account.credit_epoch, account.available_nano)


async def give_back(
    connection: AsyncConnection, lease_id: str, edge: str, amount_nano: int
) -> bool:
    """Take part of a living lease back; False if this edge has no such lease."""
    locked = await _locked(connection, lease_id, edge)
    if locked is None:
        return False
    lease, account = locked
    account.release(lease.give_back(amount_nano))
    await _save(connection, [lease], {account.id: account})
    return True


async def close(
    connection: AsyncConnection,
    lease_id: str,
    edge: str,
    attempts: int,
    nano: int,
    in_doubt: Iterable[str],
    now_ms: int,
) -> bool:
    """Note that the edge is done with a lease, and end it if that is all that can come.

    False if this edge has no such lease. What is in doubt waits for the workers' reports, and is
    not the customer's to pay.
    """
    locked = await _locked(connection, lease_id, edge)
    if locked is None:
        return False
    lease, account = locked
    doubts = tuple(in_doubt)
    lease.close(attempts, nano, doubts, now_ms)
    await posting.name_unserved(connection, account, doubts, now_ms)
    if lease.proven():
        account.release(lease.reclaim())
    await _save(connection, [lease], {account.id: account})
    return True


async def reclaim(connection: AsyncConnection, ids: Sequence[str]) -> int:
    """End leases that the workers' reports have cleared; return how many were still open."""
    known = await lease_store.leases(connection, ids)
    accounts = await store.lock_accounts(connection, {lease.account for lease in known.values()})
    current = await lease_store.leases(connection, ids)  # as they are under the lock
    ended = [lease for lease in current.values() if lease.state != "reclaimed"]
    for lease in ended:
        accounts[lease.account].release(lease.reclaim())
    await _save(connection, ended, {x.account: accounts[x.account] for x in ended})
    return len(ended)


async def cleared(connection: AsyncConnection, now_ms: int, wait_ms: int, limit: int) -> list[str]:
    """Ended leases of which no worker carries anything, by what all of them last reported.

    Their reports must be more than `wait_ms` newer than the lease's end.
    """
    reports = await lease_store.reports(connection)
    ended = await lease_store.ended_leases(connection, now_ms, limit)
    return [lease.id for lease in ended if leases.clear(lease, reports, wait_ms)]


async def _locked(
    connection: AsyncConnection, lease_id: str, edge: str
) -> tuple[Lease, Account] | None:
    known = (await lease_store.leases(connection, [lease_id])).get(lease_id)
    if known is None or known.edge != edge:
        return None
    accounts = await store.lock_accounts(connection, [known.account])
    return (await lease_store.leases(connection, [lease_id]))[lease_id], accounts[known.account]


async def _save(
    connection: AsyncConnection, changed: Iterable[Lease], accounts: Mapping[str, Account]
) -> None:
    await lease_store.save_leases(connection, changed)
    await store.save_accounts(connection, accounts.values())
    await notices.publish(connection, accounts.values())
