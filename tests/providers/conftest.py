"""A real upstream and a worker that calls it."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.providers.worker import Worker
from tests.replay import Replay

PATH = "/v1/chat/completions"

MakeWorker = Callable[..., Worker]


@pytest.fixture
async def upstream() -> AsyncIterator[Replay]:
    async with Replay() as replay:
        yield replay


@pytest.fixture
async def make_worker(tmp_path: Path, upstream: Replay) -> AsyncIterator[MakeWorker]:
    """Start workers in front of `upstream`; each has a spool of its own."""
    made: list[Worker] = []

    def make(**settings: Any) -> Worker:
        directory = settings.pop("directory", tmp_path / f"spool-{len(made)}")
        base_url = settings.pop("base_url", f"{upstream.url}/v1")
        boot = settings.pop("boot", "boot-1")
        worker = Worker(directory, base_url, **settings)
        worker.start(boot)
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.close()


@pytest.fixture
async def worker(make_worker: MakeWorker) -> Worker:
    return make_worker()
