"""Post events and grants: the ledger's rules applied to what is stored.

All of it happens in the caller's transaction. Each function may be called again with the same
input and then changes nothing.
"""

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.v1.events_pb2 import AttemptFinished
from services.billing import lease_store, ledger, notices, store
from services.billing.account import Account
from services.billing.ledger import Attempt, Transaction, Unpostable

DAY_MS = 86_400_000

PRIORITY = {"promo": 0, "paid": 10}
"""Promotional credit is drawn first: it may expire, and it cannot be refunded."""


async def post_attempts(
    connection: AsyncConnection, attempts: Sequence[Attempt], now_ms: int
) -> int:
    """Post those attempts that have not posted before; return how many there were.

    Raises Unpostable, before anything is written, if one has posted before with another content.
    """
    distinct = _distinct(attempts)
    accounts = await store.lock_or_open_accounts(
        connection, {a.account for a in distinct.values()}, now_ms
    )
    seen = await store.seen(connection, {generation for generation, _ in distinct})
    fresh = [a for key, a in distinct.items() if not _posted_before(a, seen.get(key))]
    if not fresh:
        return 0
    if seen:
        _check_owners(fresh, seen)
    await store.insert_attempts(connection, fresh, now_ms)
    paying = [a for a in fresh if a.charge_nano]
    await store.post(connection, await _transactions(connection, fresh, paying), now_ms)
    changed = {a.account: accounts[a.account] for a in paying}
    for a in paying:
        changed[a.account].used_nano += a.charge_nano
    await _spend_leases(connection, paying, accounts)
    await store.save_accounts(connection, changed.values())
    await store.add_usage(connection, _usage(fresh))
    if paying:
        refunds = await _refunds(connection, paying, seen)
        await reverse_charges(connection, refunds, changed, now_ms)
    await notices.publish(connection, changed.values())
    return len(fresh)


async def reverse_charges(
    connection: AsyncConnection,
    keys: Collection[tuple[str, int]],
    accounts: dict[str, Account],
    now_ms: int,
) -> None:
    """Give charged attempts' charges back at the platform's cost, each once.

    `keys` are (generation, attempt); `accounts` are locked and get their new numbers saved.
    Other accounts' attempts are left alone.
    """
    if not keys:
        return
    done = await store.reversed_already(connection, keys)
    wanted = {key for key in keys if ledger.reversal_id(*key) not in done}
    found = await store.charged_events(connection, wanted)
    events = {key: AttemptFinished.FromString(event) for key, event in found.items()}
    events = {key: event for key, event in events.items() if event.account in accounts}
    if not events:
        return
    drawn = await store.customer_postings(connection, [ledger.attempt_id(*key) for key in events])
    transactions: list[Transaction] = []
    usage: dict[tuple[str, str, int], tuple[int, int]] = {}
    for key in sorted(events):
        event = events[key]
        ended_at_ms = event.started_at_ms + event.duration_ms
        account = accounts[event.account]
        postings = drawn[ledger.attempt_id(*key)]
        transactions.append(ledger.reverse(*key, account.id, postings, ended_at_ms, _shard(key[0])))
        account.used_nano -= event.charge_nano
        account.credited()
        at = (account.id, event.key_hash, ended_at_ms // DAY_MS)
        usage[at] = (usage.get(at, (0, 0))[0] - event.charge_nano, 0)
    await store.post(connection, transactions, now_ms)
    await store.add_usage(connection, usage)
    for made in transactions:
        await _cover(connection, made, now_ms)
    await store.save_accounts(
        connection, {t.account: accounts[t.account] for t in transactions}.values()
    )


async def name_unserved(
    connection: AsyncConnection, account: Account, event_ids: Iterable[str], now_ms: int
) -> None:
    """Note attempts of a locked account that no edge saw end; refund what they were charged."""
    keys = {key for event_id in event_ids if (key := ledger.attempt_key(event_id)) is not None}
    await store.insert_unserved(connection, account.id, keys, now_ms)
    await reverse_charges(connection, keys, {account.id: account}, now_ms)


@dataclass(frozen=True, slots=True)
class Credit:
    """A grant as the operator asks for it."""

    id: str
    account: str
    kind: str
    amount_nano: int
    actor: str
    reason: str


class GrantConflict(Exception):
    """Another grant already has this id."""


async def give(connection: AsyncConnection, credit: Credit, now_ms: int) -> Account:
    """Grant credit, once per id; return the account after it. Raises GrantConflict."""
    accounts = await store.lock_or_open_accounts(connection, [credit.account], now_ms)
    account = accounts[credit.account]
    existing = await store.grant(connection, credit.id)
    if existing is not None:
        if (existing.account, existing.kind, existing.issued_nano) != (
            credit.account,
            credit.kind,
            credit.amount_nano,
        ):
            raise GrantConflict(credit.id)
        return account
    name = ledger.customer(credit.account, credit.kind, credit.id)
    made = ledger.grant(credit.id, credit.account, credit.kind, credit.amount_nano, now_ms)
    await store.post(connection, [made], now_ms)
    await store.insert_grant(
        connection,
        id=credit.id,
        account=credit.account,
        kind=credit.kind,
        ledger_account=(await store.ledger_accounts(connection, [name]))[name],
        issued_nano=credit.amount_nano,
        priority=PRIORITY[credit.kind],
        expires_at_ms=0,
        actor=credit.actor,
        reason=credit.reason,
        granted_at_ms=now_ms,
    )
    await _cover(connection, made, now_ms)
    account.granted_nano += credit.amount_nano
    account.credited()
    await store.save_accounts(connection, [account])
    await notices.publish(connection, [account])
    return account


def _distinct(attempts: Iterable[Attempt]) -> dict[tuple[str, int], Attempt]:
    distinct: dict[tuple[str, int], Attempt] = {}
    for a in attempts:
        first = distinct.setdefault((a.generation, a.attempt), a)
        if first is not a and first.content_hash != a.content_hash:
            raise Unpostable("other_content", f"{a.id} came twice with different content")
    return distinct


def _posted_before(attempt: Attempt, stored: store.Seen | None) -> bool:
    if stored is None:
        return False
    if stored.content_hash != attempt.content_hash:
        raise Unpostable("other_content", f"{attempt.id} has posted with different content")
    return True


def _check_owners(fresh: Iterable[Attempt], seen: Mapping[tuple[str, int], store.Seen]) -> None:
    owners = {generation: stored.account for (generation, _), stored in seen.items()}
    for a in fresh:
        if owners.get(a.generation, a.account) != a.account:
            raise Unpostable("other_account", f"{a.generation} belongs to another account")


async def _transactions(
    connection: AsyncConnection, fresh: Sequence[Attempt], paying: Sequence[Attempt]
) -> list[Transaction]:
    wallets = await store.wallets(connection, {a.account for a in paying}) if paying else {}
    shard = _shard(fresh[0].generation)  # one a batch: fewer rows to move and to wait for
    made = []
    for a in fresh:
        if a.charge_nano:
            made.append(ledger.settle(a, wallets[a.account], shard))
        elif a.insured_nano:
            made.append(ledger.insure(a, shard))
    return made


async def _spend_leases(
    connection: AsyncConnection, paying: Sequence[Attempt], accounts: dict[str, Account]
) -> None:
    """Move what was charged from reserved to used; end the leases that this was the last of."""
    ids = {lease for a in paying for lease in a.spends}
    if not ids:
        return
    leases = await lease_store.leases(connection, ids)
    touched = {}
    for a in paying:
        for lease_id, amount_nano in a.spends.items():
            lease = leases.get(lease_id)
            if lease is None or lease.account != a.account:
                continue  # the charge stands; only no loan of this account's is released
            accounts[a.account].reserved_nano -= lease.spend(amount_nano)
            touched[lease_id] = lease
    for lease in touched.values():
        if lease.proven():
            accounts[lease.account].release(lease.reclaim())
    await lease_store.save_leases(connection, touched.values())


def _usage(fresh: Iterable[Attempt]) -> dict[tuple[str, str, int], tuple[int, int]]:
    used: dict[tuple[str, str, int], tuple[int, int]] = {}
    for a in fresh:
        at = (a.account, a.key_hash, a.occurred_at_ms // DAY_MS)
        charge_nano, attempts = used.get(at, (0, 0))
        used[at] = (charge_nano + a.charge_nano, attempts + 1)
    return used


async def _refunds(
    connection: AsyncConnection,
    paying: Iterable[Attempt],
    seen: Mapping[tuple[str, int], store.Seen],
) -> set[tuple[str, int]]:
    """The charges that may not stand: those unserved, and all but the highest of a generation.

    The same attempts result whatever came first.
    """
    charged: dict[str, set[int]] = {}
    for a in paying:
        charged.setdefault(a.generation, set()).add(a.attempt)
    for (generation, number), stored in seen.items():
        if stored.charge_nano and generation in charged:
            charged[generation].add(number)
    refunds = set()
    accounts = {a.generation: a.account for a in paying}
    for generation, number, account in await store.unserved(connection, charged):
        if number in charged[generation] and accounts[generation] == account:
            charged[generation].remove(number)
            refunds.add((generation, number))
    for generation, numbers in charged.items():
        if len(numbers) > 1:
            refunds.update((generation, number) for number in ledger.superseded(numbers))
    return refunds


async def _cover(connection: AsyncConnection, cause: Transaction, now_ms: int) -> None:
    overdrawn_nano = await store.overdrawn_nano(connection, cause.account)
    if overdrawn_nano:
        wallet = (await store.wallets(connection, [cause.account]))[cause.account]
        made = ledger.cover(cause.id, wallet, overdrawn_nano, cause.occurred_at_ms)
        if made is not None:
            await store.post(connection, [made], now_ms)


def _shard(generation: str) -> int:
    return zlib.crc32(generation.encode()) % ledger.SHARDS
