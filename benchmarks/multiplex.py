"""What the multiplexed stream costs: `python -m benchmarks.multiplex`.

Both ends run in this one process, so CPU time per request is that of edge's and worker's end
together, over a real gRPC stream on loopback, and over the direct link. A request is 1 KB up; a
unary answer is started, one chunk of 1 KB and finished; a streamed one has 100 chunks of 200 B.
"""

import asyncio
import time

import uvloop

from bourse.multiplex import Attempt, GenerationServicer, WorkerLink, WorkerPool
from bourse.rpc import Network
from bourse.v1.events_pb2 import LeaseSpend, PriceVersion, Unit, UnitCount, UnitPrice
from bourse.v1.generation_pb2 import AttemptFacts, Chunk, Finished, Started
from bourse.v1.generation_pb2_grpc import GenerationStub

BODY = b"x" * 900
REPLY = b"y" * 1_000
PIECE = b"z" * 200
CHUNKS = 100
WARM_UP = 2_000
UNARY = 20_000
STREAMED = 1_000


def facts(streamed: bool) -> AttemptFacts:
    return AttemptFacts(
        generation="01J0000000000000000000000A",
        attempt=1,
        account="acc_0123456789",
        key_hash="0" * 64,
        endpoint="ep_0123456789",
        model="author/model",
        price=PriceVersion(
            id="pv_0123456789",
            entries=[
                UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=250_000),
                UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=1_000_000),
            ],
        ),
        plan_version="0123456789abcdef",
        holds=[LeaseSpend(lease="lease_0123456789", amount_nano=1_000_000)],
        streamed=streamed,
    )


async def handle(attempt: Attempt) -> None:
    await attempt.body()
    await attempt.started(Started(upstream_id="up", first_token_ms=1))
    if attempt.facts.streamed:
        for _ in range(CHUNKS):
            await attempt.send(Chunk(choices=PIECE))
            await asyncio.sleep(0)  # as one read of the upstream would
    else:
        await attempt.send(Chunk(choices=REPLY))
    attempt.finish(finished())


def finished() -> Finished:
    usage = [
        UnitCount(unit=Unit.UNIT_PROMPT, count=9),
        UnitCount(unit=Unit.UNIT_COMPLETION, count=9),
    ]
    return Finished(usage=usage, charge_nano=11_250, finish_reason="stop")


async def requests(link: WorkerLink, count: int, streamed: bool) -> None:
    for _ in range(count):
        async for _ in link.open(facts(streamed), BODY, 60_000):
            pass


async def measure(link: WorkerLink, concurrency: int, count: int, streamed: bool) -> float:
    """Return CPU microseconds per request, this process's threads together."""
    each = max(1, count // concurrency)
    before = time.process_time()
    await asyncio.gather(*(requests(link, each, streamed) for _ in range(concurrency)))
    return (time.process_time() - before) * 1e6 / (each * concurrency)


def own_work(count: int) -> float:
    """Return what the benchmark's own messages cost per unary request; every row contains it."""
    before = time.process_time()
    for _ in range(count):
        facts(False)
        Started(upstream_id="up", first_token_ms=1)
        Chunk(choices=REPLY)
        finished()
    return (time.process_time() - before) * 1e6 / count


async def main() -> None:
    print(f"own messages        {own_work(UNARY):8.1f} µs/request, within each unary row")
    network = Network()
    network.serve(GenerationStub, GenerationServicer(handle))
    port = await network.listen("127.0.0.1:0")
    for url in (f"grpc://127.0.0.1:{port}", "local:"):
        pool = WorkerPool(network, url)
        await pool.start()
        while not pool.usable:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        link = pool.choose()
        await measure(link, 32, WARM_UP, False)
        name = url.partition(":")[0]
        for concurrency in (1, 32):
            count = UNARY if concurrency > 1 else UNARY // 10
            unary = await measure(link, concurrency, count, False)
            print(f"{name:5} c={concurrency:<3} unary    {unary:8.1f} µs/request")
        for concurrency in (1, 32):
            count = STREAMED if concurrency > 1 else STREAMED // 10
            streamed = await measure(link, concurrency, count, True)
            print(f"{name:5} c={concurrency:<3} streamed {streamed / CHUNKS:8.1f} µs/chunk")
        await pool.close()
    await network.close()


if __name__ == "__main__":
    uvloop.run(main())
