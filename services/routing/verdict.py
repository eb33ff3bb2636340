"""What one attempt says about its endpoint: docs/api.md section 8, docs/providers.md section 6."""

from enum import Enum

from bourse.v1.events_pb2 import AttemptFinished, Outcome


class Verdict(Enum):
    """`FAILED` and `UNPAID` count against uptime; `OK` for it; the others not at all."""

    OK = "ok"
    FAILED = "failed"
    UNPAID = "unpaid"
    """401 or 402: the provider refuses us. A failure, and a cool-down of minutes."""
    LIMITED = "limited"
    """429: counted apart, and a cool-down of seconds."""
    REFUSED = "refused"
    """403: counted apart."""
    SILENT = "silent"
    """Says nothing: the caller left, the caller was wrong, or we were."""


# The worker's reading of the failure comes before the status: an error inside a 200, or a 400
# that says the budget is used up, is what it says and not what its status is.
_BY_TYPE = {
    "authentication": Verdict.UNPAID,
    "payment_required": Verdict.UNPAID,
    "rate_limit_exceeded": Verdict.LIMITED,
    "permission_denied": Verdict.REFUSED,
    "not_found": Verdict.FAILED,
    "timeout": Verdict.FAILED,
    "unmapped": Verdict.FAILED,
    "provider_unavailable": Verdict.FAILED,
    "provider_overloaded": Verdict.FAILED,
    "server": Verdict.SILENT,
    "invalid_request": Verdict.SILENT,
    "invalid_prompt": Verdict.SILENT,
    "string_too_long": Verdict.SILENT,
    "context_length_exceeded": Verdict.SILENT,
    "token_limit_exceeded": Verdict.SILENT,
    "max_tokens_exceeded": Verdict.SILENT,
    "content_policy_violation": Verdict.SILENT,
    "refusal": Verdict.SILENT,
    "precondition_failed": Verdict.SILENT,
    "payload_too_large": Verdict.SILENT,
    "unprocessable": Verdict.SILENT,
}

_BY_STATUS = {
    400: Verdict.SILENT,
    403: Verdict.REFUSED,
    413: Verdict.SILENT,
    422: Verdict.SILENT,
    429: Verdict.LIMITED,
}

# The caller hears of these as `provider_unavailable`, since the key and the bill are ours.
_OURS_TO_PAY = frozenset({401, 402})

# Looking an enum's value up costs more than comparing with it.
_COMPLETED: int = Outcome.OUTCOME_COMPLETED
_FAILED: int = Outcome.OUTCOME_FAILED


def judge(attempt: AttemptFinished) -> Verdict:
    """Return what the attempt says of its endpoint.

    Status 0 (refused, cut, timed out) and a 200 that failed (malformed, empty, an error in the
    stream) are failures.
    """
    if attempt.outcome == _COMPLETED:
        return Verdict.FAILED if attempt.finish_reason == "error" else Verdict.OK
    if attempt.outcome != _FAILED:
        return Verdict.SILENT
    if attempt.status in _OURS_TO_PAY:
        return Verdict.UNPAID
    by_type = _BY_TYPE.get(attempt.error_type)
    if by_type is None and "image" in attempt.error_type:
        by_type = Verdict.SILENT
    return by_type or _BY_STATUS.get(attempt.status, Verdict.FAILED)
