"""Read a world's ledger, as an auditor would: from its tables."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database
from bourse.settings import Settings
from services.billing import tables
from tests.world import World


@asynccontextmanager
async def billing(world: World, *, write: bool = False) -> AsyncIterator[AsyncConnection]:
    settings = Settings(var=world.var)
    given = world.env.get("BOURSE_BILLING_DATABASE_URL", "")
    database = Database(settings.database_url("billing", given))
    try:
        async with database.begin() if write else database.read() as connection:
            yield connection
    finally:
        await database.close()


async def trial_balance_nano(world: World) -> int:
    """The sum over all entries: zero, always."""
    async with billing(world) as connection:
        total = func.coalesce(func.sum(tables.entry.c.amount_nano), 0)
        return int((await connection.execute(select(total))).scalar_one())


async def balance_nano(world: World, name: str) -> int:
    """The sum of one ledger account's entries; credits are positive."""
    query = (
        select(func.coalesce(func.sum(tables.entry.c.amount_nano), 0))
        .join(tables.ledger_account, tables.ledger_account.c.id == tables.entry.c.ledger_account)
        .where(tables.ledger_account.c.name == name)
    )
    async with billing(world) as connection:
        return int((await connection.execute(query)).scalar_one())


async def charged(world: World, account: str) -> tuple[int, int]:
    """(attempts posted, nano-USD charged) of an account, from the attempt rows."""
    query = select(func.count(), func.coalesce(func.sum(tables.attempt.c.charge_nano), 0)).where(
        tables.attempt.c.account == account
    )
    async with billing(world) as connection:
        count, total = (await connection.execute(query)).one()
    return int(count), int(total)


async def taken_nano(world: World, account: str) -> int:
    """What entries took from the account's grants by settling."""
    query = (
        select(func.coalesce(-func.sum(tables.entry.c.amount_nano), 0))
        .join(tables.ledger_account, tables.ledger_account.c.id == tables.entry.c.ledger_account)
        .join(
            tables.ledger_transaction,
            tables.ledger_transaction.c.id == tables.entry.c.transaction_id,
        )
        .where(
            tables.ledger_account.c.owner == account,
            tables.ledger_account.c.kind == "customer",
            tables.ledger_transaction.c.kind.in_(("settle", "reverse")),
        )
    )
    async with billing(world) as connection:
        return int((await connection.execute(query)).scalar_one())


async def everything(world: World) -> dict[str, list[Any]]:
    """Every row of the ledger, in order, to compare before and after."""
    rows = {}
    async with billing(world) as connection:
        for table in (
            tables.account,
            tables.ledger_account,
            tables.credit_grant,
            tables.attempt,
            tables.ledger_transaction,
            tables.entry,
            tables.usage_day,
        ):
            order = list(table.primary_key.columns)
            found = await connection.execute(select(table).order_by(*order))
            rows[table.name] = [tuple(row) for row in found]
    return rows


async def forget_offsets(world: World) -> None:
    """Make billing read the topic from zero at its next start."""
    offsets = tables.metadata.tables["consumer_offset"]
    async with billing(world, write=True) as connection:
        await connection.execute(update(offsets).values(next_offset=0))


async def next_offsets(world: World) -> dict[int, int]:
    offsets = tables.metadata.tables["consumer_offset"]
    async with billing(world) as connection:
        rows = await connection.execute(
            select(offsets.c.partition, offsets.c.next_offset).where(
                offsets.c.topic == "generations"
            )
        )
        return {row.partition: row.next_offset for row in rows}
