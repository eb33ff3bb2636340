"""How an edge finds its workers, spreads attempts over them and survives their going."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bourse.multiplex import (
    Attempt,
    Broken,
    GenerationServicer,
    Handler,
    NoWorker,
    WorkerPool,
    pool,
)
from bourse.rpc import Network
from bourse.v1.generation_pb2 import Failed, Finished, Started
from bourse.v1.generation_pb2_grpc import GenerationStub
from tests.bourse.multiplex_world import collect, facts
from tests.eventually import eventually

MINUTE_MS = 60_000


class Worker:
    """A worker process's network, on a port that it keeps."""

    def __init__(self, name: str, handler: Handler | None = None) -> None:
        self.name = name
        self.release = asyncio.Event()
        self.servicer = GenerationServicer(handler or self._handle)
        self.network = Network()
        self.port = 0

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> "Worker":
        self.network.serve(GenerationStub, self.servicer)
        self.port = await self.network.listen(f"{host}:{port}")
        return self

    async def _handle(self, attempt: Attempt) -> None:
        if await attempt.body() == b"wait":
            await attempt.started(Started())
            async with attempt.until_left():
                await self.release.wait()
        attempt.finish(Finished(upstream_id=self.name))


@asynccontextmanager
async def connected(urls: str) -> AsyncIterator[WorkerPool]:
    workers = WorkerPool(Network(), urls)
    await workers.start()
    try:
        yield workers
    finally:
        await workers.close()


async def served_by(workers: WorkerPool) -> str:
    _, terminal = await collect(workers.choose().open(facts(), b"", MINUTE_MS))
    assert isinstance(terminal, Finished)
    return terminal.upstream_id


async def test_no_worker_to_reach_is_said_at_once() -> None:
    async with connected("grpc://127.0.0.1:1") as workers:
        assert not workers.usable
        with pytest.raises(NoWorker):
            workers.choose()


async def test_an_attempt_goes_where_fewer_are_in_flight() -> None:
    one, other = await Worker("one").start(), await Worker("other").start()
    async with connected(f"grpc://127.0.0.1:{one.port}, grpc://127.0.0.1:{other.port}") as workers:
        await eventually(lambda: len(workers.links) == 2)
        opened = [workers.choose().open(facts(), b"wait", MINUTE_MS) for _ in range(40)]
        assert sorted(link.in_flight for link in workers.links) == [20, 20]
        one.release.set()
        other.release.set()
        answers = await asyncio.gather(*map(collect, opened))
        served = [terminal.upstream_id for _, terminal in answers if isinstance(terminal, Finished)]
        assert (served.count("one"), served.count("other")) == (20, 20)
    await one.network.close()
    await other.network.close()


async def test_a_worker_that_dies_breaks_its_own_attempts_only_and_is_found_again() -> None:
    one, other = await Worker("one").start(), await Worker("other").start()
    async with connected(f"grpc://127.0.0.1:{one.port},grpc://127.0.0.1:{other.port}") as workers:
        await eventually(lambda: len(workers.links) == 2)
        exchanges = {
            name: link.open(facts(), b"wait", MINUTE_MS)
            for link in workers.links
            for name in ("one" if link.name.endswith(str(one.port)) else "other",)
        }
        for exchange in exchanges.values():
            assert (await anext(exchange)).HasField("started")
        await one.network.close()
        with pytest.raises(Broken):
            await collect(exchanges["one"])
        other.release.set()
        _, terminal = await collect(exchanges["other"])
        assert isinstance(terminal, Finished)
        assert await served_by(workers) == "other"

        again = await Worker("again").start(one.port)
        await eventually(lambda: len(workers.links) == 2)
        await other.network.close()
        await eventually(lambda: len(workers.links) == 1)
        assert await served_by(workers) == "again"
    await again.network.close()


async def test_a_rollout_under_load_fails_no_attempt() -> None:
    old, new = await Worker("old").start(), Worker("new")
    spare = await Worker("spare").start()
    urls = f"grpc://127.0.0.1:{old.port},grpc://127.0.0.1:{spare.port}"
    async with connected(urls) as workers:
        await eventually(lambda: len(workers.links) == 2)
        stop = asyncio.Event()
        served: list[str] = []

        async def client() -> None:
            while not stop.is_set():
                served.append(await served_by(workers))

        clients = [asyncio.create_task(client()) for _ in range(20)]
        await eventually(lambda: "old" in served)
        async with asyncio.timeout(20):
            await old.servicer.drain()
        await old.network.close()
        await new.start(old.port)
        await eventually(lambda: "new" in served)
        stop.set()
        await asyncio.gather(*clients)
    for worker in (new, spare):
        await worker.network.close()


async def test_a_draining_worker_is_not_chosen_and_finishes_what_runs() -> None:
    worker = await Worker("one").start()
    async with connected(f"grpc://127.0.0.1:{worker.port}") as workers:
        await eventually(lambda: workers.usable)
        exchange = workers.choose().open(facts(), b"wait", MINUTE_MS)
        assert (await anext(exchange)).HasField("started")
        draining = asyncio.create_task(worker.servicer.drain())
        await eventually(lambda: not workers.usable)
        assert not draining.done()
        worker.release.set()
        _, terminal = await collect(exchange)
        assert isinstance(terminal, Finished)
        async with asyncio.timeout(20):
            await draining
    await worker.network.close()


async def test_draining_the_pool_waits_for_what_is_in_flight() -> None:
    worker = await Worker("one").start()
    async with connected(f"grpc://127.0.0.1:{worker.port}") as workers:
        await eventually(lambda: workers.usable)
        exchange = workers.choose().open(facts(), b"wait", MINUTE_MS)
        assert (await anext(exchange)).HasField("started")
        draining = asyncio.create_task(workers.drain())
        await eventually(lambda: not workers.usable)
        with pytest.raises(NoWorker):
            workers.choose()
        worker.release.set()
        async with asyncio.timeout(20):
            await collect(exchange)
            await draining
    await worker.network.close()


async def test_every_address_of_a_name_gets_a_stream_and_loses_it_when_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = await Worker("one").start(host="127.0.0.1")
    other = await Worker("other").start(one.port, host="127.0.0.2")
    addresses = ["127.0.0.1"]

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "workers.test"
        if not addresses:
            raise socket.gaierror("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr(pool, "RESOLVE_EVERY_S", 0.02)
    async with connected(f"dns:///workers.test:{one.port}") as workers:
        await eventually(lambda: len(workers.links) == 1)
        exchange = workers.choose().open(facts(), b"wait", MINUTE_MS)
        assert (await anext(exchange)).HasField("started")

        addresses.append("127.0.0.2")
        await eventually(lambda: len(workers.links) == 2)

        addresses.remove("127.0.0.1")
        await eventually(lambda: len(workers.links) == 1)
        assert await served_by(workers) == "other"
        one.release.set()  # its stream lived on for what it carried
        _, terminal = await collect(exchange)
        assert isinstance(terminal, Finished)
        await eventually(lambda: not one.servicer.sessions)

        addresses.clear()  # a name service that fails takes no worker away
        await asyncio.sleep(0.1)
        assert await served_by(workers) == "other"
    await one.network.close()
    await other.network.close()


async def test_the_worker_of_this_process_is_found_whenever_it_is_served() -> None:
    network = Network()
    workers = WorkerPool(network, "local:")
    await workers.start()
    assert not workers.usable
    worker = Worker("here")
    network.serve(GenerationStub, worker.servicer)
    assert await served_by(workers) == "here"
    await worker.servicer.drain()
    assert not workers.usable
    await workers.close()


async def test_closing_the_pool_breaks_what_is_in_flight_and_tells_the_worker() -> None:
    left = asyncio.Event()

    async def handle(attempt: Attempt) -> None:
        await attempt.started(Started())
        await attempt.left()
        assert attempt.broken
        attempt.finish(Failed())
        left.set()

    worker = await Worker("one", handle).start()
    async with connected(f"grpc://127.0.0.1:{worker.port}") as workers:
        await eventually(lambda: workers.usable)
        exchange = workers.choose().open(facts(), b"", MINUTE_MS)
        assert (await anext(exchange)).HasField("started")
    with pytest.raises(Broken):
        await collect(exchange)
    async with asyncio.timeout(20):
        await left.wait()
    await worker.network.close()


async def test_streams_to_one_address_do_not_share_a_connection() -> None:
    worker = await Worker("one").start()
    url = f"grpc://127.0.0.1:{worker.port}"
    async with connected(url) as one, connected(url) as other:
        await eventually(lambda: one.usable and other.usable)
        peers = {session.peer for session in worker.servicer.sessions}
        assert len(peers) == 2
    await worker.network.close()


@pytest.mark.parametrize("urls", ["", " , ", "http://worker", "local:,worker:50051"])
async def test_worker_urls_are_checked_at_once(urls: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        WorkerPool(Network(), urls)
