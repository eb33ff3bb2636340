"""Record attempts: the intent before the upstream is called, checkpoints, the event that settles.

One attempt, one event, whatever happens: what a killed process had begun is settled as lost by the
next one, at its last checkpoint.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from bourse import rating
from bourse.event_log.envelope import envelope
from bourse.event_log.spool import Spool, SpoolFull
from bourse.v1.events_pb2 import (
    OUTCOME_LOST,
    AttemptFinished,
    Envelope,
    LeaseSpend,
)
from bourse.v1.generation_pb2 import AttemptFacts
from services.providers.endpoints import Served

log = logging.getLogger(__name__)

EVENT = "AttemptFinished"


class RecordsFull(Exception):
    """Too much waits to be shipped: nothing new may begin here."""


class Recording(Protocol):
    """What becomes of attempts is told to this."""

    def open(
        self, facts: AttemptFacts, served: Served | None, started_at_ms: int
    ) -> AttemptFinished: ...

    def add_leases(self, event: AttemptFinished, holds: Iterable[LeaseSpend]) -> None: ...

    def checkpoint(self, event: AttemptFinished, progress: AttemptFinished) -> None: ...

    def settle(self, event: AttemptFinished, traceparent: str = "") -> None: ...


class NoRecords:
    """For attempts that nobody pays and no event tells of."""

    def open(
        self, facts: AttemptFacts, served: Served | None, started_at_ms: int
    ) -> AttemptFinished:
        return AttemptFinished(generation=facts.generation, attempt=facts.attempt)

    def add_leases(self, event: AttemptFinished, holds: Iterable[LeaseSpend]) -> None:
        pass

    def checkpoint(self, event: AttemptFinished, progress: AttemptFinished) -> None:
        pass

    def settle(self, event: AttemptFinished, traceparent: str = "") -> None:
        pass


class Records:
    """What this worker writes into its spool, and which leases are in there.

    `worker` must be the same after a restart; `boot` is this life's.
    """

    def __init__(self, spool: Spool, worker: str, boot: str, max_unshipped_nano: int) -> None:
        self._spool = spool
        self._worker = worker
        self._boot = boot
        self._max_unshipped_nano = max_unshipped_nano
        self._open: dict[str, tuple[str, ...]] = {}  # record id -> leases
        self._unshipped: deque[tuple[tuple[str, ...], int]] = deque()  # leases, charge_nano
        self._unshipped_nano = 0

    def recover(self) -> int:
        """Settle what the last process had begun; return how many attempts. Call it once."""
        for record in self._spool.unshipped():
            event = AttemptFinished.FromString(Envelope.FromString(record.value).data)
            self._remember(event)
        lost = self._spool.open_intents()
        for found in lost:
            event = AttemptFinished.FromString(found.intent)
            if found.checkpoint is not None:
                event.MergeFromString(found.checkpoint)
            leases = [spend.lease for spend in event.lease_spends]
            held_nano = sum(spend.amount_nano for spend in event.lease_spends)
            del event.lease_spends[:]
            event.outcome = OUTCOME_LOST
            event.error_type = "server"
            event.final = event.final or event.had_content
            event.insured_nano = insured_nano(event, held_nano)
            self._open[found.id] = tuple(leases)
            self.settle(event)
        if lost:
            log.warning("%d attempts of the last process are lost", len(lost))
        return len(lost)

    def open(
        self, facts: AttemptFacts, served: Served | None, started_at_ms: int
    ) -> AttemptFinished:
        """Write the intent; return the event as far as it is known. Raises RecordsFull."""
        event = AttemptFinished(
            generation=facts.generation,
            attempt=facts.attempt,
            account=facts.account,
            key_hash=facts.key_hash,
            app=facts.app,
            app_title=facts.app_title,
            model=facts.model,
            endpoint=facts.endpoint,
            final=facts.last,
            streamed=facts.streamed,
            started_at_ms=started_at_ms,
            first_token_ms=-1,
            price=facts.price,
            plan_version=facts.plan_version,
            lease_spends=facts.holds,
            category=facts.category,
            session_id=facts.session_id,
        )
        if served is not None:
            event.provider = served.provider
            event.provider_name = served.provider_name
            event.house = served.house
        if self._unshipped_nano > self._max_unshipped_nano:
            self._forget_shipped()
            if self._unshipped_nano > self._max_unshipped_nano:
                raise RecordsFull("too much charge waits to be shipped")
        id_ = record_id(event)
        try:
            self._spool.intent(id_, event.SerializeToString())
        except (SpoolFull, OSError) as error:
            raise RecordsFull(str(error)) from error
        self._open[id_] = tuple([hold.lease for hold in facts.holds])
        return event

    def add_leases(self, event: AttemptFinished, holds: Iterable[LeaseSpend]) -> None:
        """Know that an open attempt may spend from further leases."""
        id_ = record_id(event)
        self._open[id_] = (*self._open[id_], *(hold.lease for hold in holds))

    def checkpoint(self, event: AttemptFinished, progress: AttemptFinished) -> None:
        """Write how far an attempt has come; `progress` holds only what is new."""
        try:
            self._spool.checkpoint(record_id(event), progress.SerializeToString())
        except OSError:
            log.exception("a checkpoint could not be written")

    def settle(self, event: AttemptFinished, traceparent: str = "") -> None:
        """Write the event, before its terminal frame. Raises OSError: then it is not written."""
        event.worker = self._worker
        event.boot = self._boot
        id_ = record_id(event)
        event.seq = self._spool.next_seq()
        made = envelope(
            id_,
            EVENT,
            f"worker/{self._worker}",
            event.generation,
            event.SerializeToString(),
            traceparent,
        )
        self._spool.settle(id_, event.account.encode(), made.SerializeToString())
        self._open.pop(id_, None)
        self._remember(event)

    def leases(self) -> set[str]:
        """The leases of open attempts and of events that are not shipped: not clear yet."""
        self._forget_shipped()
        found = {lease for leases in self._open.values() for lease in leases}
        for leases, _ in self._unshipped:
            found.update(leases)
        return found

    @property
    def open_attempts(self) -> int:
        return len(self._open)

    @property
    def unshipped_nano(self) -> int:
        self._forget_shipped()
        return self._unshipped_nano

    def _remember(self, event: AttemptFinished) -> None:
        leases = tuple([spend.lease for spend in event.lease_spends])
        charge_nano = event.charge_nano
        self._unshipped.append((leases, charge_nano))
        self._unshipped_nano += charge_nano
        if len(self._unshipped) > self._spool.depth + 1024:
            self._forget_shipped()

    def _forget_shipped(self) -> None:
        # The forwarder ships in order: what is left are the youngest `depth` records.
        while len(self._unshipped) > self._spool.depth:
            self._unshipped_nano -= self._unshipped.popleft()[1]


def record_id(event: AttemptFinished) -> str:
    """The event's id, unique for ever."""
    return f"{event.generation}:attempt:{event.attempt}"


def insured_nano(event: AttemptFinished, held_nano: int) -> int:
    """What the platform pays the provider: list price less commission, of no more than was held.

    Nobody agreed to pay more than the holds, and no report of a provider's may raise it.
    """
    covered_nano = max(0, min(event.list_nano, held_nano))
    return covered_nano - rating.commission_nano(covered_nano, event.price.commission_bps)


def now_ms() -> int:
    return time.time_ns() // 1_000_000
