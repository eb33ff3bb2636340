"""The Billing service of billing.proto: requests in, calls of the domain, responses out."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database
from bourse.rating import NANO_PER_USD
from bourse.rpc import Context, RpcError, StatusCode
from bourse.v1 import billing_pb2 as pb
from bourse.v1.events_pb2 import AttemptFinished
from services.billing import lease_store, ledger, lending, posting, store
from services.billing.leases import Rule
from services.billing.usage import window_starts

WANTS_MAX = 1000
LEASES_MAX = 100_000
GRANT_NANO_MAX = 10_000_000 * NANO_PER_USD
TEXT_MAX = 256
EDGE_FORGOTTEN_S = 120.0


class BillingApi:
    """Serves bourse.v1.Billing. `wake` is called after a change that edges should hear of."""

    def __init__(
        self,
        database: Database,
        rule: Rule,
        wake: Callable[[], None] = lambda: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._database = database
        self._rule = rule
        self._wake = wake
        self._now_ms = now_ms
        self._edges: dict[str, float] = {}

    async def Lease(self, request: pb.LeaseRequest, context: Context) -> pb.LeaseResponse:
        _required(request.edge, "edge")
        if len(request.wants) > WANTS_MAX:
            raise _invalid("wants", f"at most {WANTS_MAX} at once")
        for index, want in enumerate(request.wants):
            _required(want.account, f"wants[{index}].account")
            if want.estimate_nano < 0:
                raise _invalid(f"wants[{index}].estimate_nano", "must not be negative")
        wants = [lending.Want(w.account, w.estimate_nano, w.burn_nano_per_s) for w in request.wants]
        edges = self._edges_with(request.edge)
        async with self._begin() as connection:
            loans = await lending.lend(
                connection, request.edge, wants, edges, self._rule, self._now_ms()
            )
        return pb.LeaseResponse(grants=[self._grant(loan) for loan in loans])

    async def ReturnLease(
        self, request: pb.ReturnLeaseRequest, context: Context
    ) -> pb.ReturnLeaseResponse:
        """Not idempotent: what is returned twice is released twice, within what is on loan."""
        if request.amount_nano < 0:
            raise _invalid("amount_nano", "must not be negative")
        async with self._begin() as connection:
            known = await lending.give_back(
                connection, request.lease, request.edge, request.amount_nano
            )
        if not known:
            raise _no_lease()
        self._wake()
        return pb.ReturnLeaseResponse()

    async def CloseLease(
        self, request: pb.CloseLeaseRequest, context: Context
    ) -> pb.CloseLeaseResponse:
        if request.charged_nano < 0:
            raise _invalid("charged_nano", "must not be negative")
        if len(request.in_doubt) > LEASES_MAX:
            raise _invalid("in_doubt", f"at most {LEASES_MAX}")
        async with self._begin() as connection:
            known = await lending.close(
                connection,
                request.lease,
                request.edge,
                request.charged_attempts,
                request.charged_nano,
                request.in_doubt,
                self._now_ms(),
            )
        if not known:
            raise _no_lease()
        self._wake()
        return pb.CloseLeaseResponse()

    async def ConfirmLeases(
        self, request: pb.ConfirmLeasesRequest, context: Context
    ) -> pb.ConfirmLeasesResponse:
        _required(request.worker, "worker")
        if len(request.leases) > LEASES_MAX:
            raise _invalid("leases", f"at most {LEASES_MAX}")
        async with self._begin() as connection:
            await lease_store.save_report(
                connection, request.worker, request.boot, set(request.leases), self._now_ms()
            )
        return pb.ConfirmLeasesResponse()

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationResponse:
        async with self._read() as connection:
            found = await store.attempt_events(connection, request.account, request.generation)
            numbers = [number for number, _ in found]
            posted_nano = await _posted_nano(connection, request.generation, numbers)
        attempts = [AttemptFinished.FromString(event) for _, event in found]
        return pb.GetGenerationResponse(
            attempts=attempts,
            final=any(attempt.final for attempt in attempts),
            posted_nano=posted_nano,
        )

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        if len(request.key_hashes) > WANTS_MAX:
            raise _invalid("key_hashes", f"at most {WANTS_MAX} at once")
        starts = window_starts(self._now_ms())
        async with self._read() as connection:
            used = await store.usage(connection, request.account, request.key_hashes, starts)
        response = pb.GetUsageResponse()
        for key_hash in request.key_hashes:
            total, daily, weekly, monthly = used.get(key_hash, (0, 0, 0, 0))
            window = pb.UsageWindow(
                total_nano=total, daily_nano=daily, weekly_nano=weekly, monthly_nano=monthly
            )
            response.by_key[key_hash].CopyFrom(window)
        return response

    async def GetBalance(
        self, request: pb.GetBalanceRequest, context: Context
    ) -> pb.GetBalanceResponse:
        """Zeros for an account that never had credit or use."""
        async with self._read() as connection:
            account = await store.account(connection, request.account)
        if account is None:
            return pb.GetBalanceResponse()
        return pb.GetBalanceResponse(
            granted_nano=account.granted_nano,
            used_nano=account.used_nano,
            posted_nano=account.posted_nano,
            reserved_nano=account.reserved_nano,
        )

    async def Grant(self, request: pb.GrantRequest, context: Context) -> pb.GrantResponse:
        for field in ("id", "account", "actor"):
            _required(getattr(request, field), field)
        if ":" in request.id:
            raise _invalid("id", "must not contain a colon")
        if request.kind not in posting.PRIORITY:
            raise _invalid("kind", f"one of {', '.join(sorted(posting.PRIORITY))}")
        if not 0 < request.amount_nano <= GRANT_NANO_MAX:
            raise _invalid("amount_nano", f"more than 0, at most {GRANT_NANO_MAX}")
        credit = posting.Credit(
            request.id,
            request.account,
            request.kind,
            request.amount_nano,
            request.actor,
            request.reason,
        )
        try:
            async with self._begin() as connection:
                account = await posting.give(connection, credit, self._now_ms())
        except posting.GrantConflict as error:
            raise RpcError(
                StatusCode.ALREADY_EXISTS, "another grant has this id", field="id"
            ) from error
        self._wake()
        return pb.GrantResponse(posted_nano=account.posted_nano)

    def _grant(self, loan: lending.Loan) -> pb.LeaseGrant:
        answer = pb.LeaseGrant(
            account=loan.account,
            refusal=loan.refusal,
            credit_epoch=loan.credit_epoch,
            available_nano=loan.available_nano,
        )
        if loan.lease is not None:
            answer.lease = loan.lease.id
            answer.amount_nano = loan.lease.amount_nano
            answer.ttl_ms = self._rule.ttl_ms
        return answer

    def _edges_with(self, edge: str) -> int:
        """How many edges asked lately. A guess is enough: it only spreads credit evenly."""
        now = time.monotonic()
        self._edges[edge] = now
        if len(self._edges) > 1:
            self._edges = {
                name: at for name, at in self._edges.items() if now - at < EDGE_FORGOTTEN_S
            }
        return len(self._edges)

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        with _database_away():
            async with self._database.begin() as connection:
                yield connection

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with _database_away():
            async with self._database.read() as connection:
                yield connection


async def _posted_nano(connection: AsyncConnection, generation: str, numbers: Sequence[int]) -> int:
    """What the ledger took from customers for these attempts, less what it gave back."""
    ids = [
        name
        for number in numbers
        for name in (ledger.attempt_id(generation, number), ledger.reversal_id(generation, number))
    ]
    if not ids:
        return 0
    found = await store.customer_postings(connection, ids)
    return -sum(posting.amount_nano for postings in found.values() for posting in postings)


@contextmanager
def _database_away() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, OSError) as error:
        raise RpcError(StatusCode.UNAVAILABLE, "billing's database is away") from error


def _required(value: str, field: str) -> None:
    if not value or len(value) > TEXT_MAX:
        raise _invalid(field, f"1 to {TEXT_MAX} characters")


def _invalid(field: str, message: str) -> RpcError:
    return RpcError(StatusCode.INVALID_ARGUMENT, f"{field}: {message}", field=field)


def _no_lease() -> RpcError:
    return RpcError(StatusCode.NOT_FOUND, "this edge has no such lease", field="lease")
