"""Edge under test: the real ASGI application, with its neighbours replaced at the rpc seam.

Routing, billing and the worker are servicers of one in-process network, so that edge calls them as
it calls the real ones. The worker's handler plays a script per endpoint.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from bourse.multiplex import Attempt, GenerationServicer, Left, WorkerPool
from bourse.rating import rate
from bourse.rpc import Context, Network, RpcError, StatusCode
from bourse.v1 import billing_pb2 as billing
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.events_pb2 import (
    Listing,
    Outcome,
    PriceVersion,
    Unit,
    UnitCount,
    UnitPrice,
    UsageSource,
)
from bourse.v1.generation_pb2 import Chunk, Failed, Finished, Started
from bourse.v1.generation_pb2_grpc import GenerationStub
from bourse.v1.routing_pb2 import Candidate, PlanRequest, PlanResponse
from bourse.v1.routing_pb2_grpc import RoutingStub
from services.edge import keys
from services.edge.app import App, pages
from services.edge.breakers import Breakers
from services.edge.completion import Bounds, Edge
from services.edge.identity import Identity
from services.edge.inference import Inference
from services.edge.leases import LeasePool
from services.edge.meters import Meters
from services.edge.plans import PlanCache
from services.edge.reply import Timing
from services.edge.ulid import Ulids

USD = 1_000_000_000
MODEL = "acme/one"
ACCOUNT = "acct_test"
PROMPT_PICO, COMPLETION_PICO = 1_000_000, 4_000_000  # 1 and 4 USD per million tokens


def price(prompt_pico: int = PROMPT_PICO, completion_pico: int = COMPLETION_PICO) -> PriceVersion:
    return PriceVersion(
        id="price-1",
        entries=[
            UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=prompt_pico),
            UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=completion_pico),
        ],
    )


def candidate(
    endpoint: str,
    *,
    model: str = MODEL,
    model_index: int = 0,
    tier: int = 0,
    weight: float = 1.0,
    context_length: int = 100_000,
    max_completion_tokens: int = 4_096,
    at: PriceVersion | None = None,
) -> Candidate:
    return Candidate(
        listing=Listing(
            endpoint=endpoint,
            model=model,
            provider=f"provider-{endpoint}",
            provider_name=f"Provider {endpoint}",
            context_length=context_length,
            max_completion_tokens=max_completion_tokens,
        ),
        price=price() if at is None else at,
        tier=tier,
        weight=weight,
        model_index=model_index,
    )


class FakeRouting:
    """Answers one plan, and counts how often it was asked."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = [candidate("a")]
        self.response: PlanResponse | None = None
        self.requests: list[PlanRequest] = []
        self.down = False
        self.gate: asyncio.Event | None = None

    async def Plan(self, request: PlanRequest, context: Context) -> PlanResponse:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise RpcError(StatusCode.UNAVAILABLE, "routing is down")
        if self.response is not None:
            return self.response
        return PlanResponse(version="plan-1", candidates=self.candidates)


class FakeBilling:
    """Lends what is there, and keeps the books of its loans."""

    def __init__(self, balance_nano: int = 10 * USD) -> None:
        self.balance_nano = balance_nano
        self.reserved_nano = 0
        self.ttl_ms = 30_000
        self.lease_max_nano = 1 << 62
        self.down = False
        self.epoch = 1
        self.gate: asyncio.Event | None = None
        self.loans: dict[str, int] = {}
        self.closed: dict[str, billing.CloseLeaseRequest] = {}
        self.lease_calls = 0
        self._ids = itertools.count(1)

    @property
    def available_nano(self) -> int:
        return self.balance_nano - self.reserved_nano

    async def Lease(self, request: billing.LeaseRequest, context: Context) -> billing.LeaseResponse:
        self.lease_calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise RpcError(StatusCode.UNAVAILABLE, "billing is down")
        return billing.LeaseResponse(grants=[self._grant(want) for want in request.wants])

    def _grant(self, want: billing.LeaseWant) -> billing.LeaseGrant:
        grant = billing.LeaseGrant(account=want.account, credit_epoch=self.epoch)
        estimate = max(want.estimate_nano, 1)
        if estimate > self.available_nano:
            grant.refusal = "insufficient_credits"
        else:
            wanted = max(8 * estimate, 60 * want.burn_nano_per_s)
            amount = max(estimate, min(self.available_nano // 2, wanted, self.lease_max_nano))
            self.reserved_nano += amount
            grant.lease = f"lease-{next(self._ids)}"
            grant.amount_nano = amount
            grant.ttl_ms = self.ttl_ms
            self.loans[grant.lease] = amount
        grant.available_nano = self.available_nano
        return grant

    async def ReturnLease(
        self, request: billing.ReturnLeaseRequest, context: Context
    ) -> billing.ReturnLeaseResponse:
        self._check(request.lease)
        assert request.amount_nano <= self.loans[request.lease]
        self.loans[request.lease] -= request.amount_nano
        self.reserved_nano -= request.amount_nano
        return billing.ReturnLeaseResponse()

    async def CloseLease(
        self, request: billing.CloseLeaseRequest, context: Context
    ) -> billing.CloseLeaseResponse:
        self._check(request.lease)
        assert request.lease not in self.closed
        self.closed[request.lease] = request
        self.balance_nano -= request.charged_nano
        self.reserved_nano -= self.loans.pop(request.lease)
        return billing.CloseLeaseResponse()

    def _check(self, lease: str) -> None:
        if self.down:
            raise RpcError(StatusCode.UNAVAILABLE, "billing is down")
        if lease not in self.loans:
            raise RpcError(StatusCode.NOT_FOUND, "no such lease")


Script = Callable[[Attempt], Awaitable[None]]


class FakeWorker:
    """Plays the script of an attempt's endpoint, and remembers what it was asked."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.attempts: list[Attempt] = []
        self.bodies: list[dict[str, Any]] = []
        self.left: list[tuple[str, object]] = []

    async def handle(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.bodies.append(orjson.loads(await attempt.body()))
        script = self.scripts.get(attempt.facts.endpoint, answers("Hello", " world"))
        try:
            await script(attempt)
        except Left as error:
            self.left.append((attempt.facts.endpoint, error.reason))
            if not attempt.ended:
                attempt.finish(Failed(outcome=Outcome.OUTCOME_CLIENT_LEFT, status=499))


def finished(attempt: Attempt, prompt: int = 10, completion: int = 5, **facts: Any) -> Finished:
    """A proper end, priced as the real worker prices it."""
    usage = [
        UnitCount(unit=Unit.UNIT_PROMPT, count=prompt),
        UnitCount(unit=Unit.UNIT_COMPLETION, count=completion),
    ]
    rated = rate(usage, attempt.facts.price)
    return Finished(
        usage=usage,
        usage_source=UsageSource.USAGE_SOURCE_UPSTREAM,
        cost_lines=rated.cost_lines,
        list_nano=rated.total_nano,
        charge_nano=rated.total_nano,
        finish_reason="stop",
        native_finish_reason="stop",
        **facts,
    )


def text(content: str, finish_reason: str | None = None) -> Chunk:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return Chunk(choices=orjson.dumps([choice]))


def answers(*pieces: str, prompt: int = 10, completion: int = 5) -> Script:
    async def script(attempt: Attempt) -> None:
        await attempt.started(Started(upstream_id="up-1", first_token_ms=1))
        for piece in pieces:
            await attempt.send(text(piece))
        await attempt.send(text("", "stop"))
        attempt.finish(finished(attempt, prompt, completion))

    return script


def fails(status: int, **facts: Any) -> Script:
    """An upstream failure before any content."""
    facts = {
        "outcome": Outcome.OUTCOME_FAILED,
        "error_type": "provider_unavailable",
        "message": "The provider failed.",
        "upstream_status": status,
        "another_may_help": True,
        "another_model_may_help": True,
        **facts,
    }

    async def script(attempt: Attempt) -> None:
        attempt.finish(Failed(status=status, **facts))

    return script


def fails_after(*pieces: str, status: int = 502, **facts: Any) -> Script:
    async def script(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        for piece in pieces:
            await attempt.send(text(piece))
        await fails(status, **facts)(attempt)

    return script


async def hangs(attempt: Attempt) -> None:
    """Says nothing until it is left."""
    async with attempt.until_left():
        await asyncio.Event().wait()


async def eventually(check: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Return when the check holds; TimeoutError at the deadline."""
    async with asyncio.timeout(timeout_s):
        while not check():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


class Ready:
    alive = True

    def unready(self) -> list[str]:
        return []


@dataclass
class World:
    """One edge and its neighbours."""

    app: App
    edge: Edge
    identity: Identity
    routing: FakeRouting
    billing: FakeBilling
    worker: FakeWorker
    key: str
    management_key: str
    leases: LeasePool
    extra: dict[str, Any] = field(default_factory=dict)

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app),
            base_url="http://edge",
            headers={"authorization": f"Bearer {self.key if key is None else key}"},
        )

    async def ask(self, **body: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body}
        async with self.client() as client:
            return await client.post("/api/v1/chat/completions", json=body)

    def begin(self, **body: Any) -> "Exchange":
        """Ask without waiting: for streams, and clients that leave."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body}
        return Exchange(self.app, self.key, orjson.dumps(body))


class Exchange:
    """A client at the ASGI seam: it sees each message as it is sent, and may leave."""

    def __init__(self, app: App, key: str, body: bytes) -> None:
        self.messages: list[dict[str, Any]] = []
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        self._body: bytes | None = body
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/api/v1/chat/completions",
            "raw_path": b"/api/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))  # type: ignore[arg-type]

    def leave(self) -> None:
        self._left.set()

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def events(self) -> list[Any]:
        """The decoded chunks, `[DONE]` and comments as they are."""
        found: list[Any] = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: {"):
                found.append(orjson.loads(block.removeprefix("data: ")))
            elif block:
                found.append(block)
        return found

    async def until(self, check: Callable[[], Any], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not check():
                self._changed.clear()
                await self._changed.wait()

    async def over(self, timeout_s: float = 10.0) -> "Exchange":
        async with asyncio.timeout(timeout_s):
            await self.task
        return self

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if not self._left.is_set():
            self.messages.append(message)
        self._changed.set()


@asynccontextmanager
async def world(
    *,
    bounds: Bounds | None = None,
    balance_nano: int = 10 * USD,
    body_limit_bytes: int = 1 << 20,
    routers: Sequence[Any] = (),
    identity: Identity | None = None,
    trace_sample_ratio: float = 0.0,
) -> AsyncIterator[World]:
    network = Network()
    routing, lender, worker = FakeRouting(), FakeBilling(balance_nano), FakeWorker()
    network.serve(RoutingStub, routing)
    network.serve(BillingStub, lender)
    network.serve(GenerationStub, GenerationServicer(worker.handle))
    workers = WorkerPool(network, "local:")
    await workers.start()
    plans = PlanCache(network.connect("local:", RoutingStub))
    leases = LeasePool(network.connect("local:", BillingStub), "edge-1")
    identity = identity or Identity()
    now_ms = time.time_ns() // 1_000_000
    key, secret = keys.mint(ACCOUNT, keys.INFERENCE, "test", now_ms)
    manager, management_secret = keys.mint(ACCOUNT, keys.MANAGEMENT, "test", now_ms)
    identity.apply(key)
    identity.apply(manager)
    edge = Edge(plans, leases, workers, Breakers(), Ulids(), bounds or Bounds())
    inference = Inference(
        identity=identity,
        edge=edge,
        meters=Meters(),
        body_limit_bytes=body_limit_bytes,
        body_deadline_s=5.0,
        trace_sample_ratio=trace_sample_ratio,
    )
    app = App(inference, pages(inference, routers, Ready()))
    try:
        yield World(app, edge, identity, routing, lender, worker, secret, management_secret, leases)
    finally:
        await plans.close()
        await leases.shutdown()
        await workers.close()
        await network.close()


def quick(**changes: Any) -> Bounds:
    """Bounds of fractions of a second."""
    timing = {"hold_back_s": 0.1, "keep_alive_s": 0.1, "write_stall_s": 0.3}
    timing |= {name: changes.pop(name) for name in tuple(timing) if name in changes}
    return Bounds(timing=Timing(**timing), **changes)
