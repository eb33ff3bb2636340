"""The worker's view of endpoints, fed by a registry that comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from bourse.rpc import RpcError, StatusCode
from bourse.v1.registry_pb2 import WatchRequest, WatchResponse, WorkerEndpoint
from services.providers.egress import Guard
from services.providers.endpoints import Endpoints
from services.providers.sealing import Sealer
from tests.eventually import eventually

SEALER = Sealer([b"k" * 32])


def told(id_: str, **more: object) -> WorkerEndpoint:
    fields = {
        "endpoint": id_,
        "provider": "acme",
        "base_url": "https://api.acme.example/v1",
        "dialect": "openai_chat",
        "upstream_model": "one",
        "credential_kind": "bearer",
        "sealed_credential": SEALER.seal("sk-secret", "acme"),
        **more,
    }
    return WorkerEndpoint(**fields)  # type: ignore[arg-type]


class Script:
    """A registry: each list is one connection's responses, after which it breaks."""

    def __init__(self, *connections: list[WatchResponse]) -> None:
        self.connections = list(connections)
        self.more: asyncio.Queue[WatchResponse] = asyncio.Queue()

    async def Watch(self, request: WatchRequest) -> AsyncIterator[WatchResponse]:
        if not self.connections:
            await asyncio.sleep(3_600)
        for response in self.connections.pop(0):
            yield response
        while True:
            response = await self.more.get()
            if response.removed == ["break"]:
                raise RpcError(StatusCode.UNAVAILABLE, "gone")
            yield response

    def break_off(self) -> None:
        self.more.put_nowait(WatchResponse(removed=["break"]))


@contextmanager
def running(script: Script, guard: Guard | None = None) -> Iterator[Endpoints]:
    endpoints = Endpoints(script, SEALER, guard or Guard(), "worker-0")
    task = asyncio.ensure_future(endpoints.run())
    try:
        yield endpoints
    finally:
        task.cancel()


def snapshot(*endpoints: WorkerEndpoint) -> list[WatchResponse]:
    return [WatchResponse(endpoints=endpoints), WatchResponse(synced=True)]


async def test_the_credential_is_open_only_here() -> None:
    with running(Script(snapshot(told("ep_1")))) as endpoints:
        await eventually(lambda: endpoints.synced)
        served = endpoints.get("ep_1")
        assert served is not None
        assert served.credential.secret == "sk-secret"
        assert "sk-secret" not in repr(served)
        assert served.prompt_tokens_per_byte == 0.25


async def test_serving_goes_on_while_the_registry_is_away_and_catches_up_after() -> None:
    script = Script(snapshot(told("ep_1"), told("ep_2")), snapshot(told("ep_2"), told("ep_3")))
    with running(script) as endpoints:
        await eventually(lambda: endpoints.synced)
        script.break_off()
        assert endpoints.get("ep_1") is not None
        await eventually(lambda: endpoints.get("ep_3"))
        assert endpoints.get("ep_1") is None  # it went while nobody watched
        assert endpoints.get("ep_2") is not None


async def test_nothing_is_forgotten_before_the_new_snapshot_is_complete() -> None:
    script = Script(snapshot(told("ep_1")), [WatchResponse(endpoints=[told("ep_2")])])
    with running(script) as endpoints:
        await eventually(lambda: endpoints.synced)
        script.break_off()
        await eventually(lambda: endpoints.get("ep_2"))
        assert endpoints.get("ep_1") is not None


async def test_changes_and_removals_arrive() -> None:
    script = Script(snapshot(told("ep_1")))
    with running(script) as endpoints:
        await eventually(lambda: endpoints.synced)
        script.more.put_nowait(WatchResponse(endpoints=[told("ep_1", upstream_model="two")]))
        await eventually(
            lambda: (s := endpoints.get("ep_1")) and s.endpoint.upstream_model == "two"
        )
        script.more.put_nowait(WatchResponse(removed=["ep_1"]))
        await eventually(lambda: endpoints.get("ep_1") is None)


@pytest.mark.parametrize(
    "broken",
    [
        told("ep_1", sealed_credential=SEALER.seal("sk-secret", "other")),
        told("ep_1", base_url="http://10.0.0.1/v1"),
        told("ep_1", dialect="telepathy"),
    ],
    ids=["seal", "egress", "dialect"],
)
async def test_an_endpoint_that_cannot_be_served_is_left_out_alone(broken: WorkerEndpoint) -> None:
    script = Script(snapshot(told("ep_1"), told("ep_2")))
    with running(script) as endpoints:
        await eventually(lambda: endpoints.synced)
        script.more.put_nowait(WatchResponse(endpoints=[broken]))
        await eventually(lambda: endpoints.get("ep_1") is None)
        assert endpoints.get("ep_2") is not None


async def test_a_new_endpoint_is_waited_for_a_little() -> None:
    script = Script(snapshot())
    with running(script) as endpoints:
        await eventually(lambda: endpoints.synced)
        found = asyncio.ensure_future(endpoints.find("ep_9", 10))
        await asyncio.sleep(0)
        script.more.put_nowait(WatchResponse(endpoints=[told("ep_9")]))
        assert await found is not None
        assert await endpoints.find("ep_nowhere", 0.01) is None
