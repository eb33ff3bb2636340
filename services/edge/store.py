"""Queries on accounts and keys. Each takes a connection and never commits."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.event_log import IDENTITY
from bourse.event_log.envelope import envelope
from bourse.event_log.outbox import enqueue
from services.edge import tables
from services.edge.keys import Key

SOURCE = "edge"


async def insert_account(connection: AsyncConnection, account: str, name: str, now_ms: int) -> None:
    await connection.execute(
        insert(tables.account).values(id=account, name=name, created_at_ms=now_ms)
    )


async def account_exists(connection: AsyncConnection, account: str) -> bool:
    query = select(tables.account.c.id).where(tables.account.c.id == account)
    return (await connection.execute(query)).first() is not None


async def insert_key(connection: AsyncConnection, key: Key) -> None:
    """Insert a key and its event."""
    await connection.execute(insert(tables.key).values(**_columns(key)))
    await _publish(connection, key)


async def update_key(connection: AsyncConnection, key: Key) -> bool:
    """Store a key's next version and its event; False if another version came between."""
    done = await connection.execute(
        update(tables.key)
        .where(tables.key.c.hash == key.hash, tables.key.c.version == key.version - 1)
        .values(**_columns(key))
    )
    if done.rowcount != 1:
        return False
    await _publish(connection, key)
    return True


async def delete_key(connection: AsyncConnection, account: str, key_hash: str) -> bool:
    """Delete a key; its event is a tombstone. False if the account has no such key."""
    done = await connection.execute(
        delete(tables.key).where(tables.key.c.account == account, tables.key.c.hash == key_hash)
    )
    if done.rowcount != 1:
        return False
    await enqueue(connection, tables.log, IDENTITY, key_hash.encode(), None)
    return True


async def key(connection: AsyncConnection, account: str, key_hash: str) -> Key | None:
    query = select(tables.key).where(tables.key.c.account == account, tables.key.c.hash == key_hash)
    row = (await connection.execute(query)).first()
    return None if row is None else _key(row)


async def account_of_key(connection: AsyncConnection, key_hash: str) -> str | None:
    """The account that has this key, or None."""
    query = select(tables.key.c.account).where(tables.key.c.hash == key_hash)
    found: str | None = (await connection.execute(query)).scalar_one_or_none()
    return found


async def keys(
    connection: AsyncConnection, account: str, offset: int, limit: int, include_disabled: bool
) -> Sequence[Key]:
    """Return an account's keys, the oldest first."""
    query = (
        select(tables.key)
        .where(tables.key.c.account == account)
        .order_by(tables.key.c.created_at_ms, tables.key.c.hash)
        .offset(offset)
        .limit(limit)
    )
    if not include_disabled:
        query = query.where(tables.key.c.disabled.is_(False))
    return [_key(row) for row in await connection.execute(query)]


def _columns(key: Key) -> dict[str, Any]:
    return {
        "hash": key.hash,
        "account": key.account,
        "kind": key.kind,
        "name": key.name,
        "label": key.label,
        "disabled": key.disabled,
        "expires_at_ms": key.expires_at_ms,
        "created_at_ms": key.created_at_ms,
        "updated_at_ms": key.updated_at_ms,
        "version": key.version,
    }


def _key(row: Row[Any]) -> Key:
    return Key(**row._mapping)


async def _publish(connection: AsyncConnection, key: Key) -> None:
    event = envelope(
        id=f"{key.hash}:key:{key.version}",
        type="KeyState",
        source=SOURCE,
        subject=key.hash,
        data=key.state().SerializeToString(),
    )
    await enqueue(connection, tables.log, IDENTITY, key.hash.encode(), event.SerializeToString())
