"""One suite for both transports: a direct call and gRPC must not differ for their callers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bourse import telemetry
from bourse.rpc import Context, Network, RpcError, StatusCode
from bourse.v1 import registry_pb2, registry_pb2_grpc, routing_pb2, routing_pb2_grpc
from tests.eventually import eventually

TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


class RoutingApi:
    """Does what the request's account says."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.calls = 0
        self.contexts: list[Context] = []

    async def Plan(
        self, request: routing_pb2.PlanRequest, context: Context
    ) -> routing_pb2.PlanResponse:
        self.calls += 1
        self.contexts.append(context)
        if request.account == "missing":
            raise RpcError(StatusCode.NOT_FOUND, "no such mödel", field="models[0]")
        if request.account == "bug":
            raise KeyError("secret detail")
        if request.account == "own timeout":
            raise TimeoutError("of something inside")
        if request.account == "away":
            raise RpcError(StatusCode.UNAVAILABLE, "not now")
        if request.account == "slow":
            try:
                await asyncio.sleep(30)
            finally:
                self.left.set()
        return routing_pb2.PlanResponse(version=request.account)


class RegistryApi:
    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def Watch(
        self, request: registry_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[registry_pb2.WatchResponse]:
        try:
            for number in range(3):
                yield registry_pb2.WatchResponse(removed=[str(number)])
            if request.worker == "breaks":
                raise RpcError(StatusCode.ABORTED, "changed under you")
            if request.worker == "stays":
                await asyncio.sleep(30)
        finally:
            self.left.set()


class World:
    def __init__(self, network: Network, url: str, routing: RoutingApi, registry: RegistryApi):
        self.network = network
        self.url = url
        self.routing_api = routing
        self.registry_api = registry
        self.routing = network.connect(url, routing_pb2_grpc.RoutingStub)
        self.registry = network.connect(url, registry_pb2_grpc.RegistryStub)


@pytest_asyncio.fixture(params=["local", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    network = Network()
    routing, registry = RoutingApi(), RegistryApi()
    network.serve(routing_pb2_grpc.RoutingStub, routing)
    network.serve(registry_pb2_grpc.RegistryStub, registry)
    port = await network.listen("127.0.0.1:0")
    url = "local:" if request.param == "local" else f"grpc://127.0.0.1:{port}"
    yield World(network, url, routing, registry)
    await network.close()


def plan(account: str) -> routing_pb2.PlanRequest:
    return routing_pb2.PlanRequest(account=account)


async def failure(call: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value


async def test_a_call_returns_what_the_servicer_returned(world: World) -> None:
    response = await world.routing.Plan(plan("anna"))
    assert response.version == "anna"


async def test_a_typed_failure_keeps_its_code_message_and_field(world: World) -> None:
    error = await failure(world.routing.Plan(plan("missing")))
    assert (error.code, error.message, error.field) == (
        StatusCode.NOT_FOUND,
        "no such mödel",
        "models[0]",
    )


@pytest.mark.parametrize("account", ["bug", "own timeout"])
async def test_an_unexpected_failure_tells_nothing_of_itself(world: World, account: str) -> None:
    error = await failure(world.routing.Plan(plan(account)))
    assert (error.code, error.message) == (StatusCode.INTERNAL, "internal error")


async def test_a_deadline_ends_the_call_at_both_ends(world: World) -> None:
    error = await failure(world.routing.Plan(plan("slow"), timeout=0.05))
    assert error.code is StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await world.routing_api.left.wait()


async def test_the_servicer_sees_how_long_its_caller_waits(world: World) -> None:
    await world.routing.Plan(plan("anna"), timeout=7.0)
    remaining_s = world.routing_api.contexts[0].remaining_s
    assert remaining_s is not None
    assert 6 < remaining_s < 7.5  # gRPC rounds up


async def test_a_call_without_a_timeout_has_the_default_one(world: World) -> None:
    await world.routing.Plan(plan("anna"))
    remaining_s = world.routing_api.contexts[0].remaining_s
    assert remaining_s is not None
    assert 4 < remaining_s < 5.5


async def test_a_cancelled_caller_cancels_the_servicer(world: World) -> None:
    task = asyncio.create_task(world.routing.Plan(plan("slow")))
    await eventually(lambda: world.routing_api.calls)
    async with asyncio.timeout(5):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await world.routing_api.left.wait()


async def test_a_stream_yields_everything_in_order_and_ends(world: World) -> None:
    request = registry_pb2.WatchRequest(worker="w")
    seen = [response.removed[0] async for response in world.registry.Watch(request)]
    assert seen == ["0", "1", "2"]


async def test_a_stream_that_breaks_says_why_after_what_it_sent(world: World) -> None:
    seen = []

    async def read() -> None:
        async for response in world.registry.Watch(registry_pb2.WatchRequest(worker="breaks")):
            seen.append(response.removed[0])  # noqa: PERF401  it breaks in the middle

    error = await failure(read())
    assert seen == ["0", "1", "2"]
    assert (error.code, error.message) == (StatusCode.ABORTED, "changed under you")


async def test_leaving_a_stream_ends_the_servicers_generator(world: World) -> None:
    async with asyncio.timeout(5):
        responses = world.registry.Watch(registry_pb2.WatchRequest(worker="stays"))
        async with contextlib.aclosing(responses):
            async for _ in responses:
                break
        await world.registry_api.left.wait()


async def test_what_is_not_implemented_says_so(world: World) -> None:
    error = await failure(world.registry.GetProvider(registry_pb2.GetProviderRequest()))
    assert error.code is StatusCode.UNIMPLEMENTED


async def test_unavailable_reaches_the_caller(world: World) -> None:
    error = await failure(world.routing.Plan(plan("away")))
    assert error.code is StatusCode.UNAVAILABLE


async def test_the_trace_of_the_caller_reaches_the_servicer(world: World) -> None:
    telemetry.enter(TRACEPARENT)
    await world.routing.Plan(plan("anna"))
    telemetry.enter("")
    await world.routing.Plan(plan("anna"))
    assert [c.traceparent for c in world.routing_api.contexts] == [TRACEPARENT, ""]


async def test_many_calls_at_once_get_each_its_own_answer(world: World) -> None:
    names = [str(number) for number in range(200)]
    responses = await asyncio.gather(*(world.routing.Plan(plan(name)) for name in names))
    assert [response.version for response in responses] == names


async def test_a_local_service_may_be_served_after_it_is_connected() -> None:
    network = Network()
    client = network.connect("local:", routing_pb2_grpc.RoutingStub)
    error = await failure(client.Plan(plan("anna")))
    assert error.code is StatusCode.UNAVAILABLE
    network.serve(routing_pb2_grpc.RoutingStub, RoutingApi())
    assert (await client.Plan(plan("anna"))).version == "anna"


async def test_a_unary_call_is_retried_a_few_times_while_unavailable() -> None:
    network = Network()
    api = RoutingApi()
    network.serve(routing_pb2_grpc.RoutingStub, api)
    port = await network.listen("127.0.0.1:0")
    client = network.connect(f"grpc://127.0.0.1:{port}", routing_pb2_grpc.RoutingStub)
    await failure(client.Plan(plan("away")))
    assert api.calls == 3
    await network.close()


async def test_nobody_listening_is_unavailable_within_the_deadline() -> None:
    network = Network()
    client = network.connect("grpc://127.0.0.1:1", routing_pb2_grpc.RoutingStub)
    error = await failure(client.Plan(plan("anna"), timeout=10.0))
    assert error.code is StatusCode.UNAVAILABLE
    await network.close()


async def test_a_client_finds_a_server_that_starts_again() -> None:
    caller = Network()
    first = Network()
    first.serve(routing_pb2_grpc.RoutingStub, RoutingApi())
    port = await first.listen("127.0.0.1:0")
    client = caller.connect(f"grpc://127.0.0.1:{port}", routing_pb2_grpc.RoutingStub)
    await client.Plan(plan("anna"))
    await first.close()
    second = Network()
    second.serve(routing_pb2_grpc.RoutingStub, RoutingApi())
    await second.listen(f"127.0.0.1:{port}")
    codes = []
    async with asyncio.timeout(20):
        while True:
            try:
                response = await client.Plan(plan("bert"))
                break
            except RpcError as error:
                codes.append(error.code)
                await asyncio.sleep(0.02)
    assert response.version == "bert"
    assert set(codes) <= {StatusCode.UNAVAILABLE}
    await caller.close()
    await second.close()


async def test_closing_ends_streams_with_unavailable_and_at_once() -> None:
    server, caller = Network(), Network()
    server.serve(registry_pb2_grpc.RegistryStub, RegistryApi())
    port = await server.listen("127.0.0.1:0")
    client = caller.connect(f"grpc://127.0.0.1:{port}", registry_pb2_grpc.RegistryStub)
    seen = []

    async def read() -> None:
        async for response in client.Watch(registry_pb2.WatchRequest(worker="stays")):
            seen.append(response)  # noqa: PERF401  others look at it meanwhile

    reading = asyncio.create_task(read())
    await eventually(lambda: len(seen) == 3)
    async with asyncio.timeout(10):
        await server.close()
        error = await failure(reading)
    assert (error.code, error.message) == (StatusCode.UNAVAILABLE, "server stops")
    await caller.close()


async def test_closing_the_caller_fails_its_calls_as_unavailable() -> None:
    server, caller = Network(), Network()
    api = RoutingApi()
    server.serve(routing_pb2_grpc.RoutingStub, api)
    port = await server.listen("127.0.0.1:0")
    client = caller.connect(f"grpc://127.0.0.1:{port}", routing_pb2_grpc.RoutingStub)
    call = asyncio.create_task(client.Plan(plan("slow")))
    await eventually(lambda: api.calls)
    async with asyncio.timeout(10):
        await caller.close()
        error = await failure(call)
        later = await failure(client.Plan(plan("anna")))
    assert error.code is later.code is StatusCode.UNAVAILABLE
    await server.close()


async def test_closing_lets_a_unary_call_finish() -> None:
    server, caller = Network(), Network()
    release = asyncio.Event()
    entered = asyncio.Event()

    class Patient:
        async def Plan(self, request: Any, context: Context) -> routing_pb2.PlanResponse:
            entered.set()
            await release.wait()
            return routing_pb2.PlanResponse(version="done")

    server.serve(routing_pb2_grpc.RoutingStub, Patient())
    port = await server.listen("127.0.0.1:0")
    client = caller.connect(f"grpc://127.0.0.1:{port}", routing_pb2_grpc.RoutingStub)
    call = asyncio.create_task(client.Plan(plan("anna")))
    async with asyncio.timeout(10):
        await entered.wait()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        release.set()
        assert (await call).version == "done"
        await closing
    await caller.close()


async def test_health_follows_readiness() -> None:
    ready = False
    network = Network(ready=lambda: ready)
    port = await network.listen("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        statuses = health_pb2.HealthCheckResponse
        request = health_pb2.HealthCheckRequest()
        assert (await stub.Check(request, timeout=5)).status == statuses.NOT_SERVING
        ready = True
        assert (await stub.Check(request, timeout=5)).status == statuses.SERVING
    await network.close()


async def test_a_taken_port_is_an_error_not_shared() -> None:
    first, second = Network(), Network()
    port = await first.listen("127.0.0.1:0")
    with pytest.raises(OSError, match="cannot listen"):
        await second.listen(f"127.0.0.1:{port}")
    await first.close()


async def test_an_unknown_scheme_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="not a service URL"):
        Network().connect("http://billing", routing_pb2_grpc.RoutingStub)


def test_the_clock_of_a_context_never_goes_below_zero() -> None:
    assert Context(time.monotonic() - 1, "").remaining_s == 0.0
    assert Context(None, "").remaining_s is None
