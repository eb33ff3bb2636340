"""What each kind of upstream failure means: a status for the client, a type, and what may help.

The table is docs/api.md sections 6 and 8. Pure; every dialect and the worker's transport use it.

    status of the upstream    answered as                     other endpoint  other model  uptime
    401 402 404 408 >=500     502 502 404 504 502..529        yes             yes          counts
    403 429                   502 429                         yes             yes          no
    400 413 422               400 413 422                     no              yes          no
    ... too long a context    400 context_length_exceeded     yes             yes          no
    ... out of budget         502 provider_unavailable        yes             yes          counts
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from services.providers.call import AttemptFailed

RETRY_AFTER_MAX_MS = 5 * 60 * 1000
_DETAIL_CHARACTERS = 300


def document_of(body: bytes, *, first_of_list: bool = False) -> dict[str, Any] | None:
    """The JSON object of an error's body; None where it is none. Some send it within a list."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if first_of_list and isinstance(document, list) and document:
        document = document[0]
    return document if isinstance(document, dict) else None


def unreadable(status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed:
    """An error response that is no JSON object: its status and its words have to do."""
    return refused(status, text=body[:2000].decode("utf-8", "replace"), headers=headers)


def malformed(what: str, body: bytes = b"") -> AttemptFailed:
    """The upstream answered something that is no answer."""
    return AttemptFailed(
        reason="malformed",
        status=502,
        error_type="provider_unavailable",
        message="The provider sent a malformed answer.",
        upstream_status=200,
        detail=_cut(f"{what}: {body[:200].decode('utf-8', 'replace')}" if body else what),
    )


def cut() -> AttemptFailed:
    """The answer stopped before its end."""
    return AttemptFailed(
        reason="cut",
        status=502,
        error_type="provider_unavailable",
        message="The provider's answer was cut off.",
        upstream_status=200,
    )


def empty() -> AttemptFailed:
    """The answer ended without content and without a finish reason."""
    return AttemptFailed(
        reason="empty",
        status=502,
        error_type="provider_unavailable",
        message="The provider sent an empty answer.",
        upstream_status=200,
    )


def unreachable(detail: str = "") -> AttemptFailed:
    """No connection, or it broke before a response."""
    return AttemptFailed(
        reason="unreachable",
        status=502,
        error_type="provider_unavailable",
        message="The provider could not be reached.",
        detail=_cut(detail),
    )


def timed_out(detail: str = "") -> AttemptFailed:
    """A deadline of ours passed while the upstream was to act."""
    return AttemptFailed(
        reason="timeout",
        status=504,
        error_type="timeout",
        message="The provider did not answer in time.",
        detail=_cut(detail),
    )


def unsayable(field: str, message: str) -> AttemptFailed:
    """The call holds something this dialect cannot express: another endpoint's may."""
    return AttemptFailed(
        reason="unsayable",
        status=400,
        error_type="invalid_request",
        message=message,
        field=field,
        counts_against_uptime=False,
    )


def refused(
    status: int,
    *,
    code: str = "",
    kind: str = "",
    text: str = "",
    field: str = "",
    headers: Mapping[str, str] | None = None,
    upstream_status: int | None = None,
) -> AttemptFailed:
    """Map what an upstream said to a typed failure.

    `status` is the HTTP status or, for an error inside a 200, the one its body names (0: none).
    `code`, `kind` and `text` are the upstream's code, type and message. `field` is the request
    field it blames. `headers` have lower-case names.
    """
    words = f"{code} {kind} {text}".lower()
    status = status if 100 <= status <= 599 else _status_of_words(code, kind, words)
    retry_after_ms = _retry_after_ms(headers or {}, text)
    known = _by_words(status, words) or _by_status(status)
    return AttemptFailed(
        provider_code=_cut(code or kind, 64),
        upstream_status=status if upstream_status is None else upstream_status,
        retry_after_ms=retry_after_ms,
        field=_cut(field, 100),
        detail=_cut(text),
        **known,
    )


_CONTEXT = re.compile(
    r"context[ _-]?(length|window|size|limit)|maximum context|too many (input )?tokens"
    r"|prompt is too long"
    r"|(input|prompt|request|messages?)[a-z ]*(too long|too large|exceed[a-z]*[a-z ]*tokens?)"
    r"|input token count|exceeds? the (maximum|max)[a-z ]*tokens? allowed|max_prompt_tokens"
    r"|reduce the length|string_above_max_length|request_too_large"
)
_MAX_TOKENS = re.compile(
    r"(max_tokens|max_completion_tokens|max_output_tokens|maxoutputtokens)[^.]{0,80}"
    r"(too large|exceed|greater|less than or equal|at most|must be|maximum|supports?)"
)
_BUDGET = re.compile(
    r"usage limit|insufficient[ _](quota|balance|credit|fund)|credit balance is too low|billing"
    r"|exceeded your current quota|out of (credits|budget)|budget (has been )?exceeded"
    r"|payment[ _]required|spending limit|arrears"
)
_NO_CREDIT = re.compile(r"insufficient[ _](quota|balance|credit|fund)|billing|arrears")
_POLICY = re.compile(
    r"content[ _]?(policy|filter|management)|responsibleai|safety (system|reasons)|moderation"
    r"|flagged|data_inspection_failed|sensitive content|prohibited_content|blocklist"
    r"|violat[a-z]* [a-z ]*(policy|policies|guidelines|terms)"
)
_CREDENTIAL = re.compile(
    r"invalid_api_key|incorrect api key|api[ _]key not valid|invalid api[ _-]?key|api_key_invalid"
    r"|invalid x-api-key|authentication_error|unauthenticated|expired_api_key"
)
_OVERLOADED = re.compile(r"overloaded|over capacity|at capacity|engine_overloaded")
_RATE = re.compile(r"rate[ _]?limit|too many requests|resource_exhausted|throttl")
_REGION = re.compile(r"(location|country|region|territory)[a-z_ ]*(not |un)support")
_NO_MODEL = re.compile(
    r"model_not_found|unknown model|no such model|model[^.]{0,80}(does not exist|not found)"
)
_PREFILL = re.compile(
    r"prefill|(must|should|needs to) end with a (user|tool)|(last|final) message[a-z ]*"
    r"(must|should|cannot|can't)[a-z ]*(user|assistant)"
)
_IMAGE = (
    (re.compile(r"image[^.]{0,60}(too large|exceeds?|maximum size)"), "image_too_large"),
    (re.compile(r"image[^.]{0,60}too small"), "image_too_small"),
    (
        re.compile(r"unsupported[ _]image|image[^.]{0,60}(unsupported|not supported)[^.]{0,30}"),
        "unsupported_image_format",
    ),
    (
        re.compile(r"(download|fetch|retriev)[^.]{0,60}(image|file|url)|invalid_image_url"),
        "image_download_failed",
    ),
    (re.compile(r"invalid[ _]image|could not process image|decode image"), "invalid_image"),
)


def _by_words(status: int, words: str) -> dict[str, Any] | None:
    """Recognise what providers say in words under statuses that say too little."""
    if status in (400, 403, 413, 422) and _BUDGET.search(words):
        return _by_status(402)
    if status == 429 and _NO_CREDIT.search(words):
        return _by_status(402)
    if status in (400, 403) and _CREDENTIAL.search(words):
        return _away(502, "provider_unavailable", "The provider refused our credential.")
    if status == 400 and _OVERLOADED.search(words):
        return _by_status(529)
    if status == 400 and _RATE.search(words):
        return _by_status(429)
    if status in (400, 404) and _NO_MODEL.search(words):
        return _by_status(404)
    if status not in (400, 403, 413, 422):
        return None
    if status != 403:
        if _CONTEXT.search(words):
            return _input(
                400,
                "context_length_exceeded",
                "The request is longer than this model's context.",
                another_may_help=True,
            )
        if _PREFILL.search(words):
            return _input(
                400,
                "invalid_request",
                "The provider does not continue an answer that the request begins.",
                another_may_help=True,
            )
        if _MAX_TOKENS.search(words):
            return _input(400, "max_tokens_exceeded", "max_tokens is more than this model writes.")
    if _POLICY.search(words):
        return {
            "status": 403 if status == 403 else 400,
            "error_type": "content_policy_violation",
            "message": "The provider declined the content.",
            "another_may_help": status == 403,
            "another_model_may_help": True,
            "counts_against_uptime": False,
        }
    if _REGION.search(words):
        return _input(
            403,
            "permission_denied",
            "The provider does not serve this region.",
            another_may_help=True,
        )
    for pattern, error_type in _IMAGE:
        if pattern.search(words):
            return _input(400, error_type, "The provider could not use an image of the request.")
    return None


def _by_status(status: int) -> dict[str, Any]:
    if status in (400, 405, 406, 411, 414, 415, 431):
        return _input(400, "invalid_request", "The provider rejected the request as invalid.")
    if status == 413:
        return _input(413, "payload_too_large", "The request is too large for the provider.")
    if status == 422:
        return _input(422, "unprocessable", "The provider could not process the request.")
    if status == 401:
        return _away(502, "provider_unavailable", "The provider refused our credential.")
    if status == 402:
        return _away(502, "provider_unavailable", "The provider refused us for lack of credit.")
    if status == 403:
        return _away(502, "provider_unavailable", "The provider refused us access.", counts=False)
    if status in (404, 410):
        return _away(404, "not_found", "The provider does not know this model.")
    if status in (408, 504, 524, 522):
        return _away(504, "timeout", "The provider did not answer in time.")
    if status == 429:
        return _away(429, "rate_limit_exceeded", "The provider's rate limit is reached.", False)
    if status == 503:
        return _away(503, "provider_unavailable", "The provider is not available now.")
    if status in (498, 529):
        return _away(529, "provider_overloaded", "The provider is overloaded.")
    if status >= 500:
        return _away(502, "provider_unavailable", "The provider failed.")
    return _away(502, "unmapped", "The provider answered in an unexpected way.")


def _away(status: int, error_type: str, message: str, counts: bool = True) -> dict[str, Any]:
    """The endpoint is at fault: another may help."""
    return {
        "status": status,
        "error_type": error_type,
        "message": message,
        "another_may_help": True,
        "another_model_may_help": True,
        "counts_against_uptime": counts,
    }


def _input(
    status: int, error_type: str, message: str, *, another_may_help: bool = False
) -> dict[str, Any]:
    """The request is at fault: only another model (or a larger endpoint) may help."""
    return {
        "status": status,
        "error_type": error_type,
        "message": message,
        "another_may_help": another_may_help,
        "another_model_may_help": True,
        "counts_against_uptime": False,
    }


_STATUS_OF_KIND: Mapping[str, int] = {
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "authentication_error": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "overloaded_error": 529,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "unavailable": 503,
    "service_unavailable": 503,
    "tool_use_failed": 400,
}


def _status_of_words(code: str, kind: str, words: str) -> int:
    """The status of an error inside a 200 that names none."""
    for name in (code.lower(), kind.lower()):
        if name.isdigit() and 400 <= int(name) <= 599:
            return int(name)
        if name in _STATUS_OF_KIND:
            return _STATUS_OF_KIND[name]
    if _OVERLOADED.search(words):
        return 529
    if _RATE.search(words):
        return 429
    if _CONTEXT.search(words) or _POLICY.search(words):
        return 400
    return 502


_DURATION = re.compile(
    r"(?:retry|try again)[a-z ]* in (?:(\d+)m)?(\d+(?:\.\d+)?)(ms|s)", re.IGNORECASE
)


def _retry_after_ms(headers: Mapping[str, str], text: str) -> int:
    """Milliseconds to wait, 0 if not said, at most five minutes. A date is compared with the
    answer's own `date`, so that a wrong clock on either side does not matter."""
    value = headers.get("retry-after-ms", "").strip()
    if value:
        return _bounded_ms(value, 1)
    value = headers.get("retry-after", "").strip()
    if not value:
        match = _DURATION.search(text[:2000])
        if match is None:
            return 0
        minutes, number, unit = match.groups()
        seconds = int(minutes or 0) * 60 + float(number) / (1000 if unit == "ms" else 1)
        return min(int(seconds * 1000), RETRY_AFTER_MAX_MS)
    if value[0] in "+-.0123456789":
        return _bounded_ms(value, 1000)
    until = _date(value)
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    if until is None:
        return 0
    return max(0, min(int((until - now).total_seconds() * 1000), RETRY_AFTER_MAX_MS))


def _bounded_ms(value: str, factor: int) -> int:
    try:
        number = float(value)
    except ValueError:
        return 0
    if not number > 0:  # negative, zero or not a number
        return 0
    return int(min(number * factor, RETRY_AFTER_MAX_MS))


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _cut(text: str, limit: int = _DETAIL_CHARACTERS) -> str:
    return text[:limit].replace("\0", "")  # which not every store can hold
