"""The request path leaves nothing that only the garbage collector could free."""

import gc

import pytest

from tests.edge.world import world

REQUESTS = 30


@pytest.mark.parametrize("stream", [False, True])
async def test_P1_a_request_leaves_no_cycle_behind(stream: bool) -> None:
    async with world() as edge:

        async def ask() -> None:
            exchange = await edge.begin(stream=stream).over()
            assert exchange.status == 200

        await ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(REQUESTS):
                await ask()
            left = gc.collect()
        finally:
            gc.enable()
    assert left < REQUESTS, f"{left} objects were in cycles after {REQUESTS} requests"
