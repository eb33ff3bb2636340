"""What billing tells edges about accounts: whole states, through the outbox, never a delta."""

from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.event_log import ACCOUNTS, outbox
from bourse.event_log.envelope import envelope
from bourse.v1.events_pb2 import AccountState
from services.billing.account import Account
from services.billing.tables import consumer_tables

SOURCE = "billing"


async def publish(connection: AsyncConnection, accounts: Iterable[Account]) -> None:
    """Put the new state of each account that has one into the outbox, in this transaction."""
    for account in accounts:
        if account.told:
            continue
        state = AccountState(
            account=account.id, frozen=account.frozen, credit_epoch=account.credit_epoch
        )
        event = envelope(
            id=f"{account.id}:account:{account.credit_epoch}",
            type="AccountState",
            source=SOURCE,
            subject=account.id,
            data=state.SerializeToString(),
            traceparent="",
        )
        await outbox.enqueue(
            connection,
            consumer_tables,
            ACCOUNTS,
            account.id.encode(),
            event.SerializeToString(),
        )
        account.told = True
