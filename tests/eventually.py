"""Wait for something to become true, with a bound."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

BOUND_S = 20.0

T = TypeVar("T")


async def eventually(holds: Callable[[], object], bound_s: float = BOUND_S) -> None:
    """Return as soon as `holds()` is true. TimeoutError when it does not come true in time."""
    async with asyncio.timeout(bound_s):
        while not holds():  # noqa: ASYNC110  there is nobody who could set an event
            await asyncio.sleep(0.002)


async def comes_true(
    holds: Callable[[], Awaitable[T]], bound_s: float = BOUND_S, every_s: float = 0.05
) -> T:
    """Return the first true value of `await holds()`. TimeoutError when none comes in time."""
    async with asyncio.timeout(bound_s):
        while not (value := await holds()):  # noqa: ASYNC110  it asks another process
            await asyncio.sleep(every_s)
        return value
