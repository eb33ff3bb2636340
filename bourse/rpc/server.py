"""The serving end over gRPC: one server per process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from bourse import telemetry
from bourse.rpc.call import (
    EOF,
    FIELD,
    KEEPALIVE,
    MAX_MESSAGE_BYTES,
    STOP_GRACE_S,
    TRACEPARENT,
    TRANSPORT_ERRORS,
    Context,
    RpcError,
    context,
    failure_of_servicer,
    failure_of_transport,
    implementation,
    methods,
)

HEALTH = "grpc.health.v1.Health"
LIVE = "live"
"""What a liveness probe asks health about; every other name asks for readiness."""

HEALTH_POLL_S = 1.0

_OPTIONS = (
    *KEEPALIVE,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else a second process on the port takes half the calls, silently
)
# Without an age new pods get no traffic. A stream that never ends must not be cut by it, so a
# process that serves bidirectional calls goes without.
_AGE = (
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
)


class Server:
    """A gRPC server for a set of servicers by service name, and the standard health service."""

    def __init__(
        self,
        servicers: Mapping[str, object],
        ready: Callable[[], bool],
        alive: Callable[[], bool],
    ) -> None:
        served = {**servicers, HEALTH: _Health(ready, alive)}
        endless = any(m.client_streaming for name in served for m in methods(name))
        self._server = grpc.aio.server(options=(*_OPTIONS, *(() if endless else _AGE)))
        self._streams: set[asyncio.Task[Any]] = set()
        self._stopping = False
        for name, servicer in served.items():
            handlers = {
                method.name: self._handler(run, method)
                for method in methods(name)
                if (run := implementation(servicer, method)) is not None
            }
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, handlers),)
            )

    async def start(self, address: str) -> int:
        """Listen on `host:port`; return the port. Raises OSError when that is taken."""
        try:
            port = self._server.add_insecure_port(address)  # TLS would come in here
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from None
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Take nothing new; end streams at once, give unary calls a few seconds."""
        self._stopping = True
        for task in tuple(self._streams):
            task.cancel()
        await self._server.stop(STOP_GRACE_S)

    def _handler(self, run: Callable[..., Any], method: MethodDescriptor) -> Any:
        async def unary(request: Message, call: Any) -> Any:
            received = _received(call)
            try:
                return await run(request, received)
            except Exception as error:
                await _abort(call, failure_of_servicer(error, method))

        async def streaming(request: Message, call: Any) -> None:
            received = _received(call)

            async def respond() -> None:
                async with aclosing(run(request, received)) as responses:
                    async for response in responses:
                        await call.write(response)

            await self._stream(call, method, respond())

        async def bidirectional(_requests: object, call: Any) -> None:
            await self._stream(call, method, run(_ServerStream(call), _received(call)))

        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(bidirectional, None, None)
        deserialize = message_factory.GetMessageClass(method.input_type).FromString
        serialize = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.server_streaming:
            handle: Any = streaming
            return grpc.unary_stream_rpc_method_handler(handle, deserialize, serialize)
        return grpc.unary_unary_rpc_method_handler(unary, deserialize, serialize)

    async def _stream(self, call: Any, method: MethodDescriptor, body: Awaitable[None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await body
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()  # ours, from `stop`: the other end shall know to dial again
            await _abort(call, RpcError(grpc.StatusCode.UNAVAILABLE, "server stops"))
        except Exception as error:
            await _abort(call, failure_of_servicer(error, method))
        finally:
            self._streams.discard(task)


class _ServerStream:
    """The serving end of a bidirectional RPC; errors are RpcError."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.peer: str = call.peer()

    async def accept(self) -> None:
        """Tell the caller that its call has arrived, before there is a message."""
        await self._call.send_initial_metadata(())

    async def read(self) -> bytes | None:
        try:
            message: Any = await self._call.read()
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None
        return None if message is EOF else message

    async def write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except TRANSPORT_ERRORS as error:
            raise failure_of_transport(error) from None


class _Health:
    """The standard health service, for the process as a whole: is it ready, or is it alive.

    The two differ. A process that catches up or drains is not ready, and must not be killed for it.
    """

    def __init__(self, ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
        self._ready = ready
        self._alive = alive

    async def Check(
        self, request: health_pb2.HealthCheckRequest, _context: Context
    ) -> health_pb2.HealthCheckResponse:
        statuses = health_pb2.HealthCheckResponse
        good = self._alive() if request.service == LIVE else self._ready()
        return health_pb2.HealthCheckResponse(
            status=statuses.SERVING if good else statuses.NOT_SERVING
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            response = await self.Check(request, context)
            if response != last:
                yield response
                last = response
            await asyncio.sleep(HEALTH_POLL_S)


def _received(call: Any) -> Context:
    traceparent = ""
    for key, value in call.invocation_metadata() or ():
        if key == TRACEPARENT:
            traceparent = str(value)
    telemetry.enter(traceparent)
    return context(call.time_remaining(), traceparent)


async def _abort(call: Any, error: RpcError) -> None:
    trailing = ((FIELD, error.field.encode()),) if error.field else ()
    await call.abort(error.code, error.message, trailing)
