"""Events, and books to post them to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from bourse import rating
from bourse.database import Database
from bourse.event_log.envelope import envelope
from bourse.rpc import Context
from bourse.v1 import billing_pb2 as pb
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Envelope,
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
    UnitCount,
    UnitPrice,
)
from services.billing import consumer
from services.billing.grpc_api import BillingApi
from services.billing.leases import Rule
from services.billing.sweep import Sweep
from services.billing.tables import metadata
from services.billing.verify import verify

RULE = Rule(cap_nano=10**12, ttl_ms=30_000, grace_ms=10_000, estimates_min=1)
START_MS = 1_760_000_000_000
CONTEXT = Context(None, "")

PRICE = PriceVersion(
    id="price-1",
    entries=[
        UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=150_000),
        UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=600_000),
    ],
    commission_bps=500,
)


def finished(
    generation: str = "01A",
    attempt: int = 1,
    *,
    account: str = "alice",
    tokens: int = 1000,
    outcome: Outcome.ValueType = Outcome.OUTCOME_COMPLETED,
    spends: Sequence[tuple[str, int]] = (),
    price: PriceVersion = PRICE,
    **fields: Any,
) -> AttemptFinished:
    """A well-formed event: `tokens` of completion, rated and charged by its outcome."""
    usage = [UnitCount(unit=Unit.UNIT_COMPLETION, count=tokens)] if tokens else []
    rated = rating.rate(usage, price)
    list_nano = rated.total_nano
    charged = outcome in (
        Outcome.OUTCOME_COMPLETED,
        Outcome.OUTCOME_CLIENT_LEFT,
        Outcome.OUTCOME_CREDIT_EXHAUSTED,
    )
    insured = outcome in (Outcome.OUTCOME_LOST, Outcome.OUTCOME_HEDGE_LOST)
    share_nano = list_nano - rating.commission_nano(list_nano, price.commission_bps)
    charge_nano = list_nano if charged else 0
    made = AttemptFinished(
        generation=generation,
        attempt=attempt,
        account=account,
        key_hash=f"key-of-{account}",
        provider="provider",
        outcome=outcome,
        final=True,
        started_at_ms=START_MS,
        duration_ms=500,
        usage=usage,
        price=price,
        cost_lines=rated.cost_lines,
        list_nano=list_nano,
        charge_nano=charge_nano,
        insured_nano=share_nano if insured else 0,
        commission_nano=rating.commission_nano(charge_nano, price.commission_bps),
        lease_spends=[LeaseSpend(lease=lease, amount_nano=nano) for lease, nano in spends],
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def wrapped(event: AttemptFinished, **fields: str) -> Envelope:
    made = envelope(
        id=f"{event.generation}:attempt:{event.attempt}",
        type="AttemptFinished",
        source="worker/w",
        subject=event.generation,
        data=event.SerializeToString(deterministic=True),
        time_ms=START_MS,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@dataclass
class Books:
    """Billing over one database, with a clock that tests move."""

    database: Database
    now_ms: int = START_MS
    backlog: int | None = 0
    woken: int = 0
    rule: Rule = RULE
    api: BillingApi = field(init=False)

    def __post_init__(self) -> None:
        self.api = BillingApi(self.database, self.rule, wake=self._woken, now_ms=self._clock)

    async def post(self, *events: AttemptFinished | Envelope) -> None:
        """Post events as one batch."""
        envelopes = [e if isinstance(e, Envelope) else wrapped(e) for e in events]
        async with self.database.begin() as connection:
            await consumer.handle(connection, envelopes, self._clock)

    async def grant(
        self, amount_nano: int, account: str = "alice", *, name: str = "", kind: str = "paid"
    ) -> int:
        request = pb.GrantRequest(
            id=name or f"grant-{account}-{amount_nano}",
            account=account,
            amount_nano=amount_nano,
            kind=kind,
            actor="operator",
            reason="test",
        )
        return (await self.api.Grant(request, CONTEXT)).posted_nano

    async def lease(
        self, estimate_nano: int, account: str = "alice", *, edge: str = "edge-1", burn: int = 0
    ) -> pb.LeaseGrant:
        want = pb.LeaseWant(account=account, estimate_nano=estimate_nano, burn_nano_per_s=burn)
        request = pb.LeaseRequest(edge=edge, wants=[want])
        return (await self.api.Lease(request, CONTEXT)).grants[0]

    async def give_back(self, lease: str, nano: int, *, edge: str = "edge-1") -> None:
        await self.api.ReturnLease(
            pb.ReturnLeaseRequest(edge=edge, lease=lease, amount_nano=nano), CONTEXT
        )

    async def close(
        self,
        lease: str,
        attempts: int,
        nano: int,
        *,
        in_doubt: Sequence[str] = (),
        edge: str = "edge-1",
    ) -> None:
        request = pb.CloseLeaseRequest(
            edge=edge,
            lease=lease,
            charged_attempts=attempts,
            charged_nano=nano,
            in_doubt=in_doubt,
        )
        await self.api.CloseLease(request, CONTEXT)

    async def report(self, worker: str, *leases: str) -> None:
        await self.api.ConfirmLeases(
            pb.ConfirmLeasesRequest(worker=worker, boot="b", leases=leases), CONTEXT
        )

    async def sweep(self) -> int:
        async def backlog() -> int | None:
            return self.backlog

        return await Sweep(self.database, backlog, 1.0, 60.0, self._clock).once()

    async def balance(self, account: str = "alice") -> pb.GetBalanceResponse:
        return await self.api.GetBalance(pb.GetBalanceRequest(account=account), CONTEXT)

    async def generation(
        self, generation: str = "01A", account: str = "alice"
    ) -> pb.GetGenerationResponse:
        request = pb.GetGenerationRequest(account=account, generation=generation)
        return await self.api.GetGeneration(request, CONTEXT)

    async def ledger(self) -> dict[str, int]:
        """Ledger account -> balance; the shards of one account summed, empty ones left out."""
        table = metadata.tables["ledger_account"]
        async with self.database.read() as connection:
            rows = (await connection.execute(select(table.c.name, table.c.balance_nano))).all()
        sums: dict[str, int] = {}
        for name, nano in rows:
            first, _, rest = name.partition(":")
            key = first if rest.isdigit() else name
            sums[key] = sums.get(key, 0) + nano
        return {name: nano for name, nano in sums.items() if nano}

    async def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table."""
        async with self.database.read() as connection:
            return {
                name: sorted(tuple(row) for row in await connection.execute(select(table)))
                for name, table in metadata.tables.items()
            }

    async def failing_checks(self) -> list[str]:
        async with self.database.read() as connection:
            return [check.name for check in await verify(connection) if not check.holds]

    def _clock(self) -> int:
        return self.now_ms

    def _woken(self) -> None:
        self.woken += 1
