"""The calling end over gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from bourse import telemetry
from bourse.rpc.call import (
    DEFAULT_TIMEOUT_S,
    EOF,
    KEEPALIVE,
    MAX_MESSAGE_BYTES,
    STOP_GRACE_S,
    TRACEPARENT,
    TRANSPORT_ERRORS,
    RpcError,
    failure_of_transport,
)

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_OPTIONS = (
    *KEEPALIVE,
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.dns_min_time_between_resolutions_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)


def target(url: str) -> str:
    """Return the gRPC target of a URL: `host:port`, or `dns:///name:port` as it is."""
    if url.startswith("grpc://"):
        return url.removeprefix("grpc://")
    if url.startswith("dns:///"):
        return url
    raise ValueError(f"not a service URL (local:, grpc://host:port, dns:///name:port): {url!r}")


def open_channel(url: str) -> grpc.aio.Channel:
    """Open a channel for unary and server-streaming calls."""
    return _channel(target(url), _OPTIONS)


def _channel(address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    # The one place where a channel is made: TLS would come in here.
    return grpc.aio.insecure_channel(address, options=options)


def remote(channel: grpc.aio.Channel, method: MethodDescriptor) -> Callable[..., Any]:
    """Return the method as a coroutine function or, if it streams, an async generator."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    serialize = message_factory.GetMessageClass(method.input_type).SerializeToString
    deserialize = message_factory.GetMessageClass(method.output_type).FromString
    if method.server_streaming:
        return _streaming(channel.unary_stream(path, serialize, deserialize))
    start = channel.unary_unary(path, serialize, deserialize)

    async def unary(request: Message, timeout: float | None = DEFAULT_TIMEOUT_S) -> Any:
        try:
            return await start(request, timeout=timeout, metadata=_metadata())
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None

    return unary


def _streaming(start: Any) -> Callable[..., Any]:
    async def streaming(request: Message) -> AsyncIterator[Any]:
        call = None
        try:
            call = start(request, metadata=_metadata())
            async for response in call:
                yield response
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None
        finally:
            if call is not None:
                call.cancel()

    return streaming


def _metadata() -> Any:
    traceparent = telemetry.current()
    return ((TRACEPARENT, traceparent),) if traceparent else None


class ClientStream:
    """The calling end of a bidirectional RPC, on a connection of its own.

    `distinct` must differ between streams that shall not share a connection: channels to one
    address with equal arguments do. Errors are RpcError.
    """

    def __init__(self, address: str, path: str, *, distinct: str, max_message_bytes: int) -> None:
        self._channel: Any = _channel(
            address,
            (
                *KEEPALIVE,
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                ("bourse.stream", distinct),
            ),
        )
        self._call: Any = self._channel.stream_stream(path, None, None)(None)

    async def connected(self, timeout_s: float) -> None:
        """Return when the other end has taken the call."""
        try:
            async with asyncio.timeout(timeout_s):
                # Not `wait_for_connection`, which does not wait for the servicer to accept.
                await self._call.initial_metadata()
                if self._call.done():
                    raise RpcError(await self._call.code(), await self._call.details() or "")
        except TimeoutError:
            raise RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "no connection in time") from None
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None

    async def read(self) -> bytes | None:
        """Return the next message; None when the other end has ended the call well."""
        try:
            message: Any = await self._call.read()
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None
        return None if message is EOF else message

    async def write(self, message: bytes) -> None:
        """Return when the transport has taken the message."""
        try:
            await self._call.write(message)
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None

    async def done_writing(self) -> None:
        """Tell the other end that nothing more is written; reading goes on."""
        try:
            await self._call.done_writing()
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None

    async def close(self) -> None:
        """Cut the call and the connection."""
        self._call.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._channel.close(None), STOP_GRACE_S)
