"""What probes hear from a process: ready and alive are two questions."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bourse.process import Process
from bourse.settings import Settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("ready", "alive"), [(True, True), (False, True), (True, False), (False, False)]
)
async def test_a_process_that_is_not_ready_is_still_alive(ready: bool, alive: bool) -> None:
    process = Process(Settings())
    process.ready_when("caught up", lambda: ready)
    process.alive_when("polled", lambda: alive)
    port = await process.network.listen("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for service, good in (("", ready), ("live", alive)):
                request = health_pb2.HealthCheckRequest(service=service)
                answer = await stub.Check(request, timeout=5)
                assert answer.status == (SERVING if good else NOT_SERVING)
    finally:
        await process.close()


async def test_a_draining_process_is_alive_but_not_ready() -> None:
    process = Process(Settings())
    process.draining.set()
    assert not process.ready
    assert process.alive
    await process.close()
