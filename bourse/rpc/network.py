"""What a process serves and whom it calls."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from bourse import telemetry
from bourse.rpc.call import (
    DEFAULT_TIMEOUT_S,
    STOP_GRACE_S,
    RpcError,
    context,
    failure_of_servicer,
    implementation,
    methods,
    service_name,
)
from bourse.rpc.client import open_channel, remote
from bourse.rpc.server import Server

LOCAL = "local:"


class Network:
    """The servicers and the channels of one process. Belongs to the event loop that uses it."""

    def __init__(
        self,
        *,
        ready: Callable[[], bool] = lambda: True,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self._ready = ready
        self._alive = alive
        self._servicers: dict[str, object] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._server: Server | None = None

    def serve(self, stub: type, servicer: object) -> None:
        """Serve the stub's service, for `local:` from now on and for gRPC from `listen` on."""
        if self._server is not None:
            raise RuntimeError("serve everything before listening")
        self._servicers[service_name(stub)] = servicer

    def servicer(self, stub: type) -> Any:
        """Return what serves the stub's service in this process, or None."""
        return self._servicers.get(service_name(stub))

    async def listen(self, address: str) -> int:
        """Start one gRPC server for all that is served, and for health; return its port.

        `address` is `host:port`, port 0 for any. Health says SERVING while `ready()` holds,
        and while `alive()` does when it is asked about the service `live`.
        """
        server = Server(self._servicers, self._ready, self._alive)
        port = await server.start(address)
        self._server = server
        return port

    def connect(self, url: str, stub: type) -> Any:
        """Return a client with one method per RPC of the stub.

        `local:` calls this process's own servicer, looked up at each call, so that the order of
        starting does not matter; `grpc://host:port` and `dns:///name:port` open a channel. Unary:
        `await client.Method(request, timeout=5.0)`. Server streaming: `async for response in
        client.Method(request)`, without a deadline. Every failure is RpcError. Over gRPC a unary
        call that meets UNAVAILABLE is tried up to three times within its deadline.
        """
        name = service_name(stub)
        offered = [method for method in methods(name) if not method.client_streaming]
        if url == LOCAL:
            return SimpleNamespace(**{m.name: self._local(name, m) for m in offered})
        channel = self._channels.get(url)
        if channel is None:
            channel = self._channels[url] = open_channel(url)
        return SimpleNamespace(**{m.name: remote(channel, m) for m in offered})

    async def close(self) -> None:
        """Stop within seconds: streams end at once, unary calls get a grace."""
        if self._server is not None:
            await self._server.stop()
            self._server = None
        for channel in self._channels.values():
            with suppress(TimeoutError):
                await asyncio.wait_for(channel.close(None), STOP_GRACE_S)
        self._channels.clear()

    def _local(self, service: str, method: MethodDescriptor) -> Callable[..., Any]:
        def run() -> Callable[..., Any]:
            if (servicer := self._servicers.get(service)) is None:
                message = f"{service} is not served in this process"
                raise RpcError(grpc.StatusCode.UNAVAILABLE, message)
            if (found := implementation(servicer, method)) is None:
                message = f"{method.full_name} is not implemented"
                raise RpcError(grpc.StatusCode.UNIMPLEMENTED, message)
            return found

        async def unary(request: Message, timeout: float | None = DEFAULT_TIMEOUT_S) -> Any:
            here = context(timeout, telemetry.current())
            deadline = asyncio.timeout(timeout)
            try:
                async with deadline:
                    return await run()(request, here)
            except Exception as error:
                if isinstance(error, TimeoutError) and deadline.expired():
                    message = f"{method.name} did not answer in time"
                    raise RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
                raise failure_of_servicer(error, method) from None

        async def streaming(request: Message) -> AsyncIterator[Any]:
            here = context(None, telemetry.current())
            try:
                async with aclosing(run()(request, here)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                raise failure_of_servicer(error, method) from None

        return streaming if method.server_streaming else unary
