"""What both transports share: a call's error, its context, and the methods of a service."""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 4 << 20
STOP_GRACE_S = 5.0

TRACEPARENT = "traceparent"
FIELD = "bourse-field-bin"

EOF: Any = vars(grpc.aio)["EOF"]  # the type stubs do not know it

KEEPALIVE: Sequence[tuple[str, Any]] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class RpcError(Exception):
    """A call failed: the only exception that callers of either transport see.

    `field` names the request's field at fault, where one is.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, field: str = "") -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.field = field


@dataclass(frozen=True, slots=True)
class Context:
    """What a servicer's method knows about its call."""

    deadline_at: float | None
    """On the clock of `time.monotonic()`; None: no deadline."""
    traceparent: str
    """Empty: not sampled."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the caller stops waiting, not below zero; None: no deadline."""
        return None if self.deadline_at is None else max(0.0, self.deadline_at - time.monotonic())


class Stream(Protocol):
    """One end of a bidirectional call. One reader and one writer at a time; errors are RpcError."""

    async def read(self) -> bytes | None:
        """Return the next message; None when the other end has written its last."""

    async def write(self, message: bytes) -> None:
        """Return when the transport has taken the message."""


def service_name(stub: type) -> str:
    """Return the full protobuf name of the service that a generated stub class calls."""
    return f"bourse.v1.{stub.__name__.removesuffix('Stub')}"


def methods(service: str) -> Sequence[MethodDescriptor]:
    return list(descriptor_pool.Default().FindServiceByName(service).methods)


def implementation(servicer: object, method: MethodDescriptor) -> Callable[..., Any] | None:
    """Return the servicer's own coroutine function or async generator, if it has one."""
    found: Callable[..., Any] | None = getattr(servicer, method.name, None)
    # The generated base classes define plain functions, for what is not implemented.
    if inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found):
        return found
    return None


def context(timeout_s: float | None, traceparent: str) -> Context:
    return Context(None if timeout_s is None else time.monotonic() + timeout_s, traceparent)


def failure_of_servicer(error: Exception, method: MethodDescriptor) -> RpcError:
    """Return what the caller is told; what nobody expected is logged, not told."""
    if isinstance(error, RpcError):
        return error
    log.error("%s failed", method.full_name, exc_info=error)
    return RpcError(grpc.StatusCode.INTERNAL, "internal error")


TRANSPORT_ERRORS = (
    grpc.RpcError,
    grpc.aio.UsageError,
    grpc.aio.AbortError,
    asyncio.InvalidStateError,
    asyncio.CancelledError,
)


def failure_of_transport(error: BaseException) -> BaseException:
    """Return the RpcError for one of TRANSPORT_ERRORS, or the caller's own cancellation."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return error
        # Nobody cancelled this task: grpc says so when the channel is closed under a call.
        return RpcError(grpc.StatusCode.UNAVAILABLE, "connection closed")
    if isinstance(error, grpc.aio.AioRpcError):
        trailing: Any = error.trailing_metadata() or ()
        field = b"".join(value for key, value in trailing if key == FIELD)
        return RpcError(error.code(), error.details() or "", field=field.decode())
    return RpcError(grpc.StatusCode.UNAVAILABLE, f"connection closed: {error}")
