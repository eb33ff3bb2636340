"""Admit a request: what it holds before it starts, and what its output is clamped to."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.edge import refusals
from services.edge.call import Call
from services.edge.errors import ApiError
from services.edge.holds import BillingUnreachable, Hold, InsufficientCredit
from services.edge.leases import LeasePool
from services.edge.plans import Attempt

OUTPUT_TOKENS_MIN = 16
"""402 only when not even the prompt and so many output tokens are affordable."""


@dataclass(slots=True)
class Admitted:
    """A request that may start."""

    attempts: Sequence[Attempt]
    """Those that the hold pays for, in order; never empty."""
    hold: Hold
    clamped_max_tokens: int = 0
    """What `max_tokens` was lowered to; 0: as asked."""


def admit(
    call: Call,
    account: str,
    attempts: Sequence[Attempt],
    leases: LeasePool,
    expected_output_tokens: int,
) -> Admitted | None:
    """Admit at once where leases in memory cover the request; None: `admit_slowly` has to."""
    want = full = 0
    for one in attempts:
        prompt = one.hold_tokens(call)
        limit = output_limit(one, call, expected_output_tokens)
        most = one.bound_nano(prompt, limit)
        usual = most
        if limit > expected_output_tokens:
            usual = one.bound_nano(prompt, expected_output_tokens)
        want, full = max(want, usual), max(full, most)
    if full == 0:
        return None
    hold = leases.take(account, want, full)
    return None if hold is None else Admitted(attempts, hold)


async def admit_slowly(
    call: Call,
    account: str,
    attempts: Sequence[Attempt],
    leases: LeasePool,
    expected_output_tokens: int,
) -> Admitted:
    """Admit after asking billing, or with less output than asked for.

    Raises ApiError 402, or 503 when billing cannot be asked and no lease covers the request.
    """
    floors, want, full = {}, 0, 0
    for one in attempts:
        prompt = one.hold_tokens(call)
        limit = output_limit(one, call, expected_output_tokens)
        floors[one.endpoint] = one.bound_nano(prompt, min(limit, OUTPUT_TOKENS_MIN))
        want = max(want, one.bound_nano(prompt, min(limit, expected_output_tokens)))
        full = max(full, one.bound_nano(prompt, limit))
    try:
        if full == 0:
            return Admitted(attempts, leases.free(account))
        hold = await leases.hold(
            account, floor_nano=min(floors.values()), want_nano=want, full_nano=full
        )
    except InsufficientCredit as refusal:
        raise refusals.not_paid(refusal, attempts, call) from refusal
    except BillingUnreachable as error:
        raise ApiError(
            503, "Billing cannot be reached now, and no credit is on loan here.", retry_after_s=2
        ) from error
    if not hold.covers_nano:
        return Admitted(attempts, hold)
    affordable = [one for one in attempts if floors[one.endpoint] <= hold.total_nano]
    asked, covers = 0, []
    for one in affordable:
        limit = output_limit(one, call, expected_output_tokens)
        covers.append(one.affordable_tokens(hold.covers_nano, one.hold_tokens(call)))
        asked = max(asked, limit)
    tokens = min(covers)
    return Admitted(affordable, hold, tokens if tokens < asked else 0)


def output_limit(attempt: Attempt, call: Call, expected_output_tokens: int) -> int:
    """Return the most output tokens this attempt could produce."""
    limit = attempt.output_max or expected_output_tokens
    return min(call.max_tokens, limit) if call.max_tokens else limit
