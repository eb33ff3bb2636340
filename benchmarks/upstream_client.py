"""Compare the worker's upstream client with general ones: `python -m benchmarks.upstream_client`.

One process, pinned to one core, asks the compiled upstream on the other for a streamed answer of
one write. Prints the client's CPU time per request. aiohttp is compared where it is installed.
"""

import asyncio
import importlib.util
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence

import httpx
import uvloop

from benchmarks.__main__ import GATEWAY_CPU, compiled, upstream
from services.providers.http1 import Http1Transport

REQUESTS = 5_000
BODY = json.dumps(
    {"model": "bench", "stream": True, "messages": [{"role": "user", "content": "x" * 800}]},
    separators=(",", ":"),
).encode()
HEADERS = {"authorization": "Bearer x", "content-type": "application/json"}
Ask = Callable[[], Awaitable[None]]


async def loopback(host: str, port: int) -> Sequence[tuple[str, int]]:
    return [(host, port)]


async def cpu_us(ask: Ask, concurrency: int) -> float:
    async def several(number: int) -> None:
        for _ in range(number):
            await ask()

    await several(50)
    before = time.process_time()
    await asyncio.gather(*(several(REQUESTS // concurrency) for _ in range(concurrency)))
    return (time.process_time() - before) * 1e6 / (REQUESTS // concurrency * concurrency)


async def compare(port: int) -> None:
    url = httpx.URL(f"http://127.0.0.1:{port}/v1/chat/completions")
    headers = httpx.Headers(HEADERS)
    own = Http1Transport(loopback)
    client = httpx.AsyncClient()

    async def ours() -> None:
        request = httpx.Request("POST", url, headers=headers, stream=httpx.ByteStream(BODY))
        request.read()
        response = await own.handle_async_request(request)
        async for _ in response.aiter_raw():
            pass

    async def with_httpx() -> None:
        async with client.stream("POST", url, headers=headers, content=BODY) as response:
            async for _ in response.aiter_raw():
                pass

    asks: dict[str, Ask] = {"services.providers.http1": ours, "httpx on httpcore": with_httpx}
    session = None
    if importlib.util.find_spec("aiohttp"):
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

        async def with_aiohttp() -> None:
            assert session is not None
            async with session.post(str(url), headers=HEADERS, data=BODY) as response:
                async for _ in response.content.iter_any():
                    pass

        asks["aiohttp"] = with_aiohttp
    for name, ask in asks.items():
        figures = [f"c={c}: {await cpu_us(ask, c):6.1f} µs" for c in (1, 32)]
        print(f"{name:<26}{', '.join(figures)}")
    await own.aclose()
    await client.aclose()
    if session is not None:
        await session.close()


def main() -> None:
    os.sched_setaffinity(0, {int(GATEWAY_CPU)})
    with upstream(compiled(), 20) as (port, _):
        time.sleep(0.2)
        uvloop.run(compare(port))


if __name__ == "__main__":
    main()
