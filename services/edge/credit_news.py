"""What billing tells of accounts: the `accounts` topic, into the lease pool."""

from bourse.event_log import ACCOUNTS, EventLog, Record
from bourse.event_log.envelope import NotAnEnvelope, read_envelope
from bourse.v1.events_pb2 import AccountState
from services.edge.leases import LeasePool
from services.edge.views import follow


class CreditNews:
    """Follows accounts: frozen or not, new credit, leases recalled."""

    def __init__(self, leases: LeasePool) -> None:
        self._leases = leases

    async def run(self, log: EventLog) -> None:
        """Follow the topic. Never ends."""
        await follow(log, ACCOUNTS, self._read, lambda: None)

    def _read(self, record: Record) -> None:
        if record.value is None:
            return
        event = read_envelope(record)
        if event.type != "AccountState":
            raise NotAnEnvelope(f"a {event.type} on the accounts topic")
        self._leases.account_changed(AccountState.FromString(event.data))
