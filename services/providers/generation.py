"""Serve one attempt: from its facts to its one terminal frame.

    intent in the spool -> upstream request -> first content -> started -> chunks
      -> usage counted and rated -> event in the spool -> terminal frame

Failing over is the edge's: an attempt here has one endpoint, and nothing is sent before its first
content. What each ending costs whom stands in answer.py.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from bourse.multiplex import Attempt, Left
from bourse.v1.events_pb2 import (
    OUTCOME_CLIENT_LEFT,
    OUTCOME_COMPLETED,
    OUTCOME_CREDIT_EXHAUSTED,
    OUTCOME_FAILED,
    OUTCOME_HEDGE_LOST,
    OUTCOME_LOST,
    AttemptFinished,
    Outcome,
)
from bourse.v1.generation_pb2 import (
    CANCEL_REASON_CLIENT_LEFT,
    CANCEL_REASON_HEDGE_LOST,
    Failed,
    Finished,
    Started,
)
from bourse.v1.generation_pb2 import Chunk as ChunkFrame
from services.providers import refusals, transport
from services.providers.answer import CLIENT_CLOSED, Answer
from services.providers.call import AttemptFailed, Call, Chunk
from services.providers.decoding import Decoder, unreadable
from services.providers.endpoints import Endpoints, Served
from services.providers.metering import Meter
from services.providers.records import NoRecords, Recording, RecordsFull, now_ms
from services.providers.transport import Upstream
from services.providers.watchdog import DeadlinePassed, Overdue, Patience, Watchdog

log = logging.getLogger(__name__)

FIND_ENDPOINT_S = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one answer may take, and how often it is checkpointed."""

    patience: Patience = field(default_factory=Patience)
    answer_max_bytes: int = 64 << 20
    quantum_tokens: int = 256
    checkpoint_tokens: int = 256
    checkpoint_s: float = 1.0


class _Checkpoints:
    """When an answer is checkpointed next: at so many bytes of output, or at a time."""

    __slots__ = ("_every_bytes", "_every_s", "at", "at_bytes")

    def __init__(self, bounds: Bounds, tokens_per_byte: float) -> None:
        self._every_bytes = int(bounds.checkpoint_tokens / tokens_per_byte)
        self._every_s = bounds.checkpoint_s
        self.passed(0, asyncio.get_running_loop().time())

    def passed(self, written_bytes: int, now: float) -> None:
        self.at_bytes = written_bytes + self._every_bytes
        self.at = now + self._every_s


class CreditExhausted(Exception):
    """The edge has no more budget for this attempt."""


class Generator:
    """Serves attempts; what all of them share."""

    def __init__(
        self, endpoints: Endpoints, records: Recording, upstream: Upstream, bounds: Bounds
    ) -> None:
        self._endpoints = endpoints
        self._records = records
        self._upstream = upstream
        self._bounds = bounds

    def unrecorded(self) -> "Generator":
        """The same, for attempts that nobody pays and no event tells of."""
        return Generator(self._endpoints, NoRecords(), self._upstream, self._bounds)

    async def serve(self, attempt: Attempt, traceparent: str = "") -> AttemptFinished | None:
        """Serve an attempt to its end; return the event that tells of it, if one does.

        It never raises but when its task is cancelled.
        """
        facts = attempt.facts
        served = self._endpoints.get(facts.endpoint)
        if served is None:
            served = await self._endpoints.find(facts.endpoint, FIND_ENDPOINT_S)
        try:
            event = self._records.open(facts, served, now_ms())
        except RecordsFull as full:
            log.warning("attempt refused: %s", full)
            attempt.finish(_full())
            return None
        answer = Answer(facts, event)
        outcome: Outcome.ValueType = OUTCOME_LOST
        failure: AttemptFailed | None = None
        decided = False
        try:
            async with attempt.until_left():
                await self._answer(attempt, answer, served)
            if facts.hedged and not await attempt.accepted():
                raise Left(attempt.cancel_reason)
            outcome = OUTCOME_COMPLETED
        except Left as left:
            outcome, failure = _left(left)
            decided = left.reason is not None
        except CreditExhausted:
            outcome, failure, decided = OUTCOME_CREDIT_EXHAUSTED, _credit_exhausted(), True
        except AttemptFailed as failed:
            outcome, failure = answer.judge(failed)
        except DeadlinePassed as late:
            outcome, failure = answer.judge(refusals.timed_out(late.overdue.value))
            # Who writes for so long has not answered: paid for it, anyone could write on purpose.
            decided = failure is not None and late.overdue is Overdue.TOTAL
        except Exception:
            log.exception("attempt %d of %s failed here", facts.attempt, facts.generation)
        finally:
            self._end(attempt, answer, outcome, failure, decided, traceparent)
        if answer.response is not None and not answer.response.is_closed:
            with suppress(httpx.HTTPError, OSError):
                await transport.release(answer.response)
        return event

    async def _answer(self, attempt: Attempt, answer: Answer, served: Served | None) -> None:
        """Call the upstream and pass on what it says, until it has said all."""
        if served is None:
            raise _unknown_endpoint()
        facts, bounds = attempt.facts, self._bounds
        call = Call(_canonical(await attempt.body()))
        answer.meter = meter = Meter(
            call.body,
            facts.price,
            sum(hold.amount_nano for hold in facts.holds),
            served.prompt_tokens_per_byte,
            served.completion_tokens_per_byte,
            quantum_tokens=bounds.quantum_tokens,
            hidden_reasoning=served.endpoint.preset.reasoning_outside_completion,
            max_completion_tokens=served.endpoint.max_completion_tokens,
            context_length=served.endpoint.context_length,
        )
        meter.watch_budget()
        request = served.dialect.request(call, served.endpoint, served.credential)
        request.extensions = served.extensions
        first_token_s = facts.first_token_remaining_ms / 1000
        with Watchdog(bounds.patience, served.first_byte_timeout_s, first_token_s) as watchdog:
            answer.sent_at = time.monotonic()
            response = answer.response = await self._upstream.send(request)
            try:
                await self._receive(attempt, answer, served, meter, response, watchdog)
            except BaseException:
                # Cut before the terminal frame is written: who hears of the end can rely on it.
                await response.aclose()
                raise

    async def _receive(
        self,
        attempt: Attempt,
        answer: Answer,
        served: Served,
        meter: Meter,
        response: httpx.Response,
        watchdog: Watchdog,
    ) -> None:
        if not 200 <= response.status_code < 300:
            headers = {name.lower(): value for name, value in response.headers.items()}
            body = await transport.error_body(response)
            try:
                failure = served.dialect.failure(response.status_code, headers, body)
            except Exception as error:
                unreadable(error)
                failure = refusals.refused(response.status_code)
            raise failure
        meter.answered = True
        decoder = Decoder(
            transport.content_type(response), served.dialect.reading(served.endpoint.preset)
        )
        reads = transport.Reads(response, self._bounds.answer_max_bytes)
        checkpoints = _Checkpoints(self._bounds, served.completion_tokens_per_byte)
        while not decoder.done:
            try:
                data = await reads.next()
            except AttemptFailed as failed:
                if failed.reason != "cut":
                    raise
                chunks = decoder.end(failed)
            else:
                if data is None:
                    chunks = decoder.end()
                else:
                    watchdog.heard()
                    chunks = decoder.feed(data)
            for chunk in chunks:
                await self._take(attempt, answer, meter, chunk, watchdog, checkpoints)
        answer.heard_last_at = time.monotonic()
        if not answer.finished:
            raise refusals.cut() if answer.had_content else refusals.empty()
        if answer.waiting:  # a proper end without any content
            first = await self._start(attempt, answer, [])
            await attempt.send(_frame(first))

    async def _take(
        self,
        attempt: Attempt,
        answer: Answer,
        meter: Meter,
        chunk: Chunk,
        watchdog: Watchdog,
        checkpoints: _Checkpoints,
    ) -> None:
        """Count a chunk and pass it on; go on only as far as the budget does."""
        try:
            has_content = answer.take(chunk, meter)
        except AttemptFailed:
            raise
        except Exception as error:
            raise unreadable(error) from error
        if has_content:
            watchdog.got_content()
            answer.had_content = True
        written_bytes = meter.completion_bytes
        if written_bytes >= meter.ask_at_bytes and not answer.finished:
            _ask(attempt, answer)
        choices = chunk.choices
        if choices and not answer.started:
            if answer.had_content:
                choices = await self._start(attempt, answer, choices)
            else:
                answer.waiting += choices
                choices = []
        if choices:
            frame = _frame(choices)
            if not attempt.send_now(frame):
                watchdog.pause()  # while the reader's window is full, the upstream is not read
                await attempt.send(frame)
                watchdog.resume()
        if answer.finished:
            if chunk.finish_reason:
                watchdog.finished()
            return
        if written_bytes >= checkpoints.at_bytes or watchdog.heard_at >= checkpoints.at:
            checkpoints.passed(written_bytes, watchdog.heard_at)
            self._records.checkpoint(answer.event, answer.progress())
        if written_bytes >= meter.stop_at_bytes:
            await self._wait_for_budget(attempt, answer, meter, watchdog)

    async def _start(
        self, attempt: Attempt, answer: Answer, choices: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Say that content is here; return what to send first."""
        choices = answer.first(choices)
        await attempt.started(
            Started(upstream_id=answer.upstream_id, first_token_ms=max(0, answer.first_token_ms))
        )
        answer.started = True
        return choices

    async def _wait_for_budget(
        self, attempt: Attempt, answer: Answer, meter: Meter, watchdog: Watchdog
    ) -> None:
        """Read no further until the edge has said whether more is paid for."""
        watchdog.pause()
        while meter.completion_bytes >= meter.stop_at_bytes:
            _ask(attempt, answer)
            budget = await attempt.budget()
            answer.asked = False
            if not budget.holds:
                raise CreditExhausted(budget.reason)
            answer.holds += budget.holds
            meter.held_nano += sum(hold.amount_nano for hold in budget.holds)
            meter.watch_budget()
            self._records.add_leases(answer.event, budget.holds)
        self._records.checkpoint(answer.event, answer.progress())
        watchdog.resume()

    def _end(
        self,
        attempt: Attempt,
        answer: Answer,
        outcome: Outcome.ValueType,
        failure: AttemptFailed | None,
        decided: bool,
        traceparent: str,
    ) -> None:
        """Write the event, then say the same to the edge."""
        if outcome == OUTCOME_LOST and failure is None:
            failure = _ours()
        frame: Finished | Failed
        try:
            frame = answer.settle(outcome, failure, decided=decided)
        except Exception:
            log.exception("attempt %s could not be counted", attempt.facts.generation)
            frame = answer.write_off()
        try:
            self._records.settle(answer.event, traceparent)
        except Exception:
            # Nothing was written, so nothing is billed; the intent stays for the next start.
            log.exception("attempt %s was not recorded", attempt.facts.generation)
            frame = Failed(
                outcome=OUTCOME_LOST,
                status=500,
                error_type="server",
                message="The exchange could not record this request.",
            )
        attempt.finish(frame)


def _canonical(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise AttemptFailed(
            status=400,
            error_type="invalid_request",
            message="The request is not a JSON object.",
            another_may_help=False,
            another_model_may_help=False,
            counts_against_uptime=False,
        )
    return document


def _frame(choices: list[dict[str, Any]]) -> ChunkFrame:
    try:
        return ChunkFrame(choices=orjson.dumps(choices))
    except TypeError as error:  # nested deeper than can be written
        raise unreadable(error) from error


def _ask(attempt: Attempt, answer: Answer) -> None:
    if not answer.asked:
        answer.asked = True
        attempt.need_budget()


_OUTCOMES = {
    CANCEL_REASON_CLIENT_LEFT: OUTCOME_CLIENT_LEFT,
    CANCEL_REASON_HEDGE_LOST: OUTCOME_HEDGE_LOST,
}


def _left(left: Left) -> tuple[Outcome.ValueType, AttemptFailed]:
    """The ending of an attempt that nobody waits for; any other reason is ours."""
    if left.reason is not None and left.reason in _OUTCOMES:
        return _OUTCOMES[left.reason], AttemptFailed(
            status=CLIENT_CLOSED,
            error_type="",
            message="The attempt was cancelled.",
            another_may_help=False,
            another_model_may_help=False,
        )
    if left.reason is not None:
        return OUTCOME_LOST, AttemptFailed(
            status=504, error_type="timeout", message="The request's deadline passed."
        )
    return OUTCOME_LOST, _ours()


def _ours() -> AttemptFailed:
    return AttemptFailed(
        status=500, error_type="server", message="The exchange failed to serve this request."
    )


def _credit_exhausted() -> AttemptFailed:
    return AttemptFailed(
        status=402,
        error_type="payment_required",
        message="Credit or a limit ran out while the answer was written.",
        another_may_help=False,
        another_model_may_help=False,
    )


def _unknown_endpoint() -> AttemptFailed:
    return AttemptFailed(
        status=503,
        error_type="server",
        message="This endpoint is not known here yet.",
        counts_against_uptime=False,
    )


def _full() -> Failed:
    return Failed(
        outcome=OUTCOME_FAILED,
        status=503,
        error_type="server",
        message="This worker takes nothing new until its records are shipped.",
        another_may_help=True,
        another_model_may_help=True,
        retry_after_ms=5_000,
    )
