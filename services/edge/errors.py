"""Errors as clients see them: one envelope, stable names, always an integer code.

ApiError                 any refusal; answered with its own status
└── raised by call.py (400), identity.py (401, 403), leases.py (402, 503), plans.py (400, 404, …),
    completion.py (what the last attempt said)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import orjson

from bourse.rpc import RpcError

Headers = list[tuple[bytes, bytes]]

SERVER_MESSAGE = "Something went wrong on our side."
RETRIED_STATUSES = frozenset({429, 503, 529})
"""These always carry Retry-After."""
STATUSES = frozenset(
    {400, 401, 402, 403, 404, 405, 408, 409, 410, 412, 413, 422, 429, 500, 502, 503, 504, 524, 529}
)

_DEFAULT_TYPES = {
    400: "invalid_request",
    401: "authentication",
    402: "payment_required",
    403: "permission_denied",
    404: "not_found",
    405: "invalid_request",
    408: "timeout",
    409: "precondition_failed",
    412: "precondition_failed",
    413: "payload_too_large",
    422: "unprocessable",
    429: "rate_limit_exceeded",
    500: "server",
    502: "provider_unavailable",
    503: "provider_unavailable",
    504: "timeout",
    529: "provider_overloaded",
}


class ApiError(Exception):
    """A request refused or failed, with everything its envelope says.

    `field` goes to `metadata.field`: a path such as `messages[0].role` in inference calls, a JSON
    pointer such as `/prices/0` in registration calls.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "",
        field: str = "",
        metadata: Mapping[str, Any] | None = None,
        availability: Mapping[str, Any] | None = None,
        retry_after_s: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_type = error_type or _DEFAULT_TYPES.get(status, "server")
        self.field = field
        self.metadata = dict(metadata or {})
        self.availability = availability
        self.retry_after_s = retry_after_s or (1 if status in RETRIED_STATUSES else 0)
        self.extra = dict(extra or {})
        """Beside `error` in the body: the partial answer of a reply that ran out of credit."""

    def error(self) -> dict[str, Any]:
        """Return the `error` object."""
        metadata: dict[str, Any] = {"error_type": self.error_type}
        if self.field:
            metadata["field"] = self.field
        if self.status != 500:  # our own faults say nothing more
            metadata.update(self.metadata)
        made: dict[str, Any] = {
            "code": self.status,
            "message": self.message,
            "metadata": metadata,
        }
        if self.availability is not None:
            made["availability"] = self.availability
        return made

    def body(self) -> bytes:
        return orjson.dumps({"error": self.error(), **self.extra})

    def headers(self) -> Headers:
        if self.retry_after_s:
            return [(b"retry-after", b"%d" % self.retry_after_s)]
        return []


def server_error() -> ApiError:
    """Our fault: a fixed message and nothing else."""
    return ApiError(500, SERVER_MESSAGE)


def invalid(field: str, message: str) -> ApiError:
    return ApiError(400, message, field=field)


_RPC_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 500,  # between services: never the caller's key
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 503,
}


def of_rpc(error: RpcError) -> ApiError:
    """What a refusal or failure of another service means to the client."""
    status = _RPC_STATUS.get(error.code, 500)
    if status >= 500:
        if status == 503:
            return ApiError(503, "This part of the exchange cannot be reached now.")
        return server_error()
    return ApiError(status, error.message, field=error.field)


def availability(
    code: str,
    status: int,
    error_type: str,
    *,
    requested_models: Sequence[str],
    excluded_by: Sequence[str] = (),
    affected_providers: Sequence[str] = (),
    field: str = "",
    detail: str = "",
    retry_after_s: int = 0,
) -> dict[str, Any]:
    """Return the object that says why a request could not be placed."""
    return {
        "code": code,
        "http_status": status,
        "error_type": error_type,
        "retryable": retry_after_s > 0,
        "retry_after": retry_after_s or None,
        "requested_models": list(requested_models),
        "affected_providers": list(affected_providers),
        "excluded_by": list(excluded_by),
        "fallback_models": [],
        "constraint": {"field": field, "detail": detail} if field or detail else None,
        "docs_url": "/api/v1/docs",
    }
