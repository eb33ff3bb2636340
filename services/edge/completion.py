"""The request path of a completion, top to bottom: who asks, plan, hold, attempts, answer.

Before an attempt's first content, failing over is silent and free; after it an attempt is never
switched. Whoever leaves is cancelled upstream at once, and pays for what had come by then.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bourse.multiplex import Broken, Exchange, WorkerLink
from bourse.v1.events_pb2 import Outcome
from bourse.v1.generation_pb2 import AttemptFacts, CancelReason, Failed, Finished, Started
from services.edge import refusals
from services.edge.admission import Admitted, admit, admit_slowly
from services.edge.answer import Answer, Facts, StreamedAnswer, WholeAnswer
from services.edge.breakers import Breakers
from services.edge.call import Call
from services.edge.errors import STATUSES, ApiError, server_error
from services.edge.keys import Key
from services.edge.leases import LeasePool
from services.edge.plans import Attempt, PlanCache
from services.edge.reply import Reply, Timing
from services.edge.ulid import Ulids

log = logging.getLogger(__name__)

CLIENT_LEFT = CancelReason.CANCEL_REASON_CLIENT_LEFT
DEADLINE = CancelReason.CANCEL_REASON_DEADLINE


class Workers(Protocol):
    """The workers edge can reach."""

    def choose(self) -> WorkerLink:
        """Raises Broken when there is none."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The numbers of settings.py that the request path keeps."""

    timing: Timing = field(default_factory=Timing)
    first_token_deadline_s: float = 120.0
    answer_deadline_s: float = 660.0
    attempts_per_model: int = 5
    expected_output_tokens: int = 1_024
    quantum_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Edge:
    """Everything the request path asks."""

    plans: PlanCache
    leases: LeasePool
    workers: Workers
    breakers: Breakers
    ulids: Ulids
    bounds: Bounds


@dataclass(slots=True)
class Ending:
    """How an attempt ended that did not serve."""

    error: ApiError
    another_may_help: bool = False
    another_model_may_help: bool = False
    larger_than: int = 0
    """Another may help only with a context longer than this."""
    spent: Finished | None = None
    upstream_status: int = 0


async def complete(call: Call, key: Key, edge: Edge, reply: Reply, traceparent: str = "") -> None:
    """Serve one completion. Raises ApiError as long as nothing was attempted."""
    generation = edge.ulids.new()
    reply.headers.append((b"x-generation-id", b"gen-" + generation.encode()))
    began_at = time.monotonic()
    plan = edge.plans.ready(call) or await edge.plans.wait(call)
    bounds = edge.bounds
    drawn = plan.draw(call, key.account, bounds.attempts_per_model, edge.breakers.usable)
    if not drawn:
        raise refusals.not_placed(call, plan.response)
    admitted = admit(call, key.account, drawn, edge.leases, bounds.expected_output_tokens)
    if admitted is None:
        admitted = await admit_slowly(
            call, key.account, drawn, edge.leases, bounds.expected_output_tokens
        )
    try:
        run = _Run(call, key, edge, reply, admitted, generation, began_at)
        run.traceparent = traceparent
        try:
            ending = await run.attempts()
        except Exception:
            log.exception("generation %s failed by a fault of ours", generation)
            ending = Ending(server_error())
        if ending is not None and not reply.left and not reply.done:
            await run.answer.fail(ending.error, ending.spent)
    finally:
        admitted.hold.close()


class _Run:
    """One generation while it runs."""

    __slots__ = (
        "admitted", "answer", "began_at", "body", "budget_reason", "call", "deadline_at", "edge",
        "errors", "exchange", "facts", "generation", "hold", "key", "late",
        "reply", "started", "statuses", "traceparent", "waited_ms",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        key: Key,
        edge: Edge,
        reply: Reply,
        admitted: Admitted,
        generation: str,
        began_at: float,
    ) -> None:
        self.call = call
        self.key = key
        self.edge = edge
        self.reply = reply
        self.admitted = admitted
        self.hold = admitted.hold
        self.generation = generation
        self.began_at = began_at
        self.deadline_at = began_at + edge.bounds.first_token_deadline_s
        self.body = call.canonical(key.account, admitted.clamped_max_tokens)
        if admitted.clamped_max_tokens:
            clamped = b"%d" % admitted.clamped_max_tokens
            reply.headers.append((b"x-bourse-clamped-max-tokens", clamped))
        self.facts = Facts(generation, int(time.time()), call.models[0])
        timing = edge.bounds.timing
        kind = StreamedAnswer if call.streamed else WholeAnswer
        self.answer: Answer = kind(self.facts, reply, timing.hold_back_s, timing.keep_alive_s)
        self.exchange: Exchange | None = None
        self.started = False
        self.late = False
        self.budget_reason = ""
        self.errors: list[dict[str, object]] = []
        self.statuses: list[tuple[str, str, int]] = []
        self.waited_ms = 0.0
        self.traceparent = ""

    async def attempts(self) -> Ending | None:
        """Make attempts until one serves; return None then, else how the last one ended."""
        attempts = self.admitted.attempts
        self.reply.attend(self.deadline_at - time.monotonic(), self._left, self._too_late)
        ending: Ending | None = None
        number = place = 0
        while True:
            attempt = attempts[place]
            number += 1
            ending = await self.attempt(attempt, number, last=place + 1 == len(attempts))
            if ending is None or self.started or self.late or self.reply.left:
                return ending
            place = _following(attempts, place + 1, attempt, ending)
            if place < 0:
                self._conclude(ending, attempts)
                return ending
            self.errors.append(
                {
                    "provider": attempt.provider_name,
                    "code": ending.error.metadata.get("provider_code"),
                    "status": ending.upstream_status or ending.error.status,
                }
            )

    async def attempt(self, attempt: Attempt, number: int, last: bool) -> Ending | None:
        """Make one attempt: None when it served to its end, else how it ended."""
        began_at = time.monotonic()
        breakers = self.edge.breakers
        try:
            exchange = self._open(attempt, number, last, began_at)
        except Broken as error:
            log.warning("no worker: %s", error)
            return Ending(_no_worker(), another_may_help=False)
        self.exchange = exchange
        breakers.began(attempt.endpoint)
        try:
            async for frame in exchange:
                kind = frame.WhichOneof("kind")
                if kind == "chunk":
                    if not self.reply.left:
                        await self.answer.chunk(frame.chunk.choices, exchange.chunk_waits)
                elif kind == "started":
                    self._started(attempt, frame.started, began_at)
                elif kind == "finished":
                    await self._finished(frame.finished)
                    return None
                elif kind == "failed":
                    self.waited_ms += (time.monotonic() - began_at) * 1_000
                    return self._failed(attempt, frame.failed)
                elif kind == "need_budget":
                    await self._more_budget(attempt, exchange)
        except Broken as error:
            log.warning("attempt %s:%d is in doubt: %s", self.generation, number, error)
            self.hold.doubt(f"{self.generation}:attempt:{number}")
            breakers.ended(attempt.endpoint)
            return self._lost()
        except BaseException:  # ours, or this process is ending: the client pays nothing
            exchange.cancel(DEADLINE)
            self.hold.doubt(f"{self.generation}:attempt:{number}")
            breakers.ended(attempt.endpoint)
            raise
        finally:
            self.exchange = None
        self.hold.doubt(f"{self.generation}:attempt:{number}")
        return self._lost()

    def _open(self, attempt: Attempt, number: int, last: bool, now: float) -> Exchange:
        call, bounds = self.call, self.edge.bounds
        facts = AttemptFacts()
        facts.CopyFrom(attempt.facts)
        facts.generation = self.generation
        facts.attempt = number
        facts.account = self.key.account
        facts.key_hash = self.key.hash
        facts.first_token_remaining_ms = max(int((self.deadline_at - now) * 1_000), 1)
        if last:
            facts.last = True
        if call.streamed:
            facts.streamed = True
        if call.app:
            facts.app = call.app
        if call.app_title:
            facts.app_title = call.app_title
        if call.session_id:
            facts.session_id = call.session_id
        if self.traceparent:
            facts.traceparent = self.traceparent
        self.hold.tell(facts)
        return self.edge.workers.choose().open(
            facts, self.body, int(bounds.answer_deadline_s * 1_000)
        )

    def _started(self, attempt: Attempt, started: Started, began_at: float) -> None:
        """The first content: from here the attempt is never switched."""
        self.started = True
        self.edge.breakers.succeeded(attempt.endpoint)
        self.reply.in_time()
        self.answer.serves(attempt)
        self.statuses.append((attempt.provider_name, attempt.model, 200))
        if self.call.streamed:
            waited_ms = self.waited_ms + started.first_token_ms
            self._tell_overhead(waited_ms)
        if self.call.wants_metadata:
            self.facts.metadata = self._metadata(attempt)

    async def _finished(self, finished: Finished) -> None:
        self.hold.charge_in_order(finished.charge_nano)
        if self.reply.left:
            return
        if not self.call.streamed:
            self._tell_overhead(self.waited_ms + finished.upstream_ms)
        await self.answer.finish(finished)

    def _failed(self, attempt: Attempt, failed: Failed) -> Ending:
        self.edge.breakers.failed(attempt.endpoint, failed)
        if failed.spent.charge_nano:
            self.hold.charge_in_order(failed.spent.charge_nano)
        if self.late and not self.started:
            return Ending(_timed_out(self.edge.bounds.first_token_deadline_s))
        error = _error_of(attempt, failed)
        self.statuses.append((attempt.provider_name, attempt.model, error.status))
        if failed.outcome == Outcome.OUTCOME_CREDIT_EXHAUSTED:
            error.metadata["reason"] = self.budget_reason or "insufficient_credits"
            return Ending(error, spent=failed.spent)
        larger = attempt.context_length if error.error_type == "context_length_exceeded" else 0
        return Ending(
            error,
            another_may_help=failed.another_may_help,
            another_model_may_help=failed.another_model_may_help,
            larger_than=larger,
            upstream_status=failed.upstream_status,
        )

    def _lost(self) -> Ending:
        """No terminal frame came: a fault of ours. Another attempt may follow, if nothing came."""
        if self.late and not self.started:
            return Ending(_timed_out(self.edge.bounds.first_token_deadline_s))
        if self.started:
            return Ending(server_error())
        return Ending(_no_worker(), another_may_help=True, another_model_may_help=True)

    async def _more_budget(self, attempt: Attempt, exchange: Exchange) -> None:
        if self.reply.left:
            exchange.budget([], "client_left")
            return
        quantum_nano = attempt.bound_nano(0, self.edge.bounds.quantum_tokens)
        more = await self.edge.leases.grow(self.hold, quantum_nano)
        if not more:
            self.budget_reason = "insufficient_credits"
        exchange.budget(more, self.budget_reason)

    def _conclude(self, ending: Ending, attempts: Sequence[Attempt]) -> None:
        """The last error is returned, with what the others said, and when to come back."""
        error = ending.error
        if self.errors:
            error.metadata["previous_errors"] = self.errors
        if error.status in (429, 503, 529):
            cools_s = min(self.edge.breakers.cools_for_s(one.endpoint) for one in attempts)
            error.retry_after_s = max(error.retry_after_s, math.ceil(cools_s), 1)
        if error.status == 429:
            error.metadata["headers"] = {"Retry-After": str(error.retry_after_s)}

    def _left(self) -> None:
        if self.exchange is not None:
            self.exchange.cancel(CLIENT_LEFT)

    def _too_late(self) -> None:
        self.late = True
        if self.exchange is not None:
            self.exchange.cancel(DEADLINE)

    def _tell_overhead(self, waited_ms: float) -> None:
        elapsed_ms = (time.monotonic() - self.began_at) * 1_000
        overhead = b"%.1f" % max(elapsed_ms - waited_ms, 0.0)
        self.reply.headers.append((b"x-bourse-overhead-ms", overhead))

    def _metadata(self, served: Attempt) -> dict[str, object]:
        attempts = self.admitted.attempts
        return {
            "requested": self.call.models[0],
            "strategy": "direct",
            "region": None,
            "summary": f"{served.model} at {served.provider_name}",
            "attempt": len(self.statuses),
            "is_byok": False,
            "endpoints": {
                "total": len(attempts),
                "available": [
                    {
                        "provider": one.provider_name,
                        "model": one.model,
                        "selected": one is served,
                    }
                    for one in attempts
                ],
            },
            "attempts": [
                {"provider": provider, "model": model, "status": status}
                for provider, model, status in self.statuses
            ],
        }


def _following(attempts: Sequence[Attempt], place: int, tried: Attempt, ending: Ending) -> int:
    """Return the place of the next attempt that may help after `ending`, -1 if none does."""
    for index in range(place, len(attempts)):
        one = attempts[index]
        if one.model_index == tried.model_index:
            if ending.another_may_help and (
                not ending.larger_than or one.context_length > ending.larger_than
            ):
                return index
        elif ending.another_model_may_help:
            return index
    return -1


def _error_of(attempt: Attempt, failed: Failed) -> ApiError:
    """What a failed attempt means to the client, if it is the last one."""
    status = failed.status
    if status not in STATUSES or status == 401:  # never blame the caller's key for our credential
        status = 502
    if status == 500:
        return server_error()
    metadata: dict[str, object] = {"provider_name": attempt.provider_name}
    if failed.provider_code:
        metadata["provider_code"] = failed.provider_code
    return ApiError(
        status,
        failed.message or "The provider could not answer.",
        error_type=failed.error_type,
        field=failed.field,
        metadata=metadata,
        retry_after_s=math.ceil(failed.retry_after_ms / 1_000),
    )


def _no_worker() -> ApiError:
    return ApiError(503, "The exchange cannot reach its workers now.")


def _timed_out(deadline_s: float) -> ApiError:
    return ApiError(504, f"No content came within {deadline_s:g} s.")
