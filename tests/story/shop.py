"""A provider of a story: a replay upstream, onboarded through the registration API."""

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests import world as worlds
from tests.kafka import missing
from tests.recordings.reading import Record, directory, recordings
from tests.replay import Replay
from tests.world import World

PATHS = {
    "openai_chat": "/v1/chat/completions",
    "anthropic_messages": "/v1/messages",
    "gemini": "/v1beta/models/{model}:streamGenerateContent",
}
BASES = {"openai_chat": "/v1", "anthropic_messages": "", "gemini": "/v1beta"}


@dataclass
class Shop:
    """One model at one provider whose upstream is ours to script."""

    world: World
    upstream: Replay
    slug: str
    model: str
    endpoint: str
    dialect: str

    @property
    def path(self) -> str:
        return PATHS[self.dialect].format(model=self.model.split("/")[-1])

    def client(self, **options: Any) -> AsyncOpenAI:
        """The official client; only its base URL and key are ours."""
        base_url = f"{self.world.url}/api/v1"
        given = {"base_url": base_url, "api_key": self.world.key, "max_retries": 0, "timeout": 30}
        return AsyncOpenAI(**{**given, **options})

    def recorded(self, record: Record) -> None:
        self.upstream.exchange(record, path=self.path, any_request=True)


@asynccontextmanager
async def open_shop(
    world: World, *, dialect: str = "openai_chat", model: str = "", price: str = "1", **facts: Any
) -> AsyncIterator[Shop]:
    """Start an upstream and list `model` (a new one, if not named) there."""
    slug = f"shop-{secrets.token_hex(4)}"
    model = model or f"story/m-{secrets.token_hex(4)}"
    async with Replay() as upstream:
        endpoint = await asyncio.to_thread(
            worlds.list_model,
            world,
            upstream.url + BASES[dialect],
            slug=slug,
            model=model,
            dialect=dialect,
            prompt_usd_per_million=price,
            completion_usd_per_million=price,
            **facts,
        )
        yield Shop(world, upstream, slug, model, endpoint, dialect)


def recorded(
    wanted: Callable[[Record], bool], *, kind: str = "openai.chat", provider: str = "openai"
) -> Record:
    """The first recorded success of that provider that is wanted; skips visibly without any."""
    root = directory()
    if not root.is_dir():
        missing(f"no recordings in {root}")
    for record in recordings(kind, root):
        if record["status"] == 200 and record["provider"] == provider and wanted(record):
            return record
    pytest.fail("no recording is like that")


def tagged(*tags: str, stream: bool, without: tuple[str, ...] = ()) -> Callable[[Record], bool]:
    def wanted(record: Record) -> bool:
        has = set(record["tags"])
        return has >= set(tags) and not has & set(without) and bool(record["stream"]) == stream

    return wanted


def events(record: Record) -> list[dict[str, Any]]:
    """A recorded stream's JSON events, read without any of Bourse's code."""
    lines = record["body_text"].splitlines()
    datas = [line[5:].strip() for line in lines if line.startswith("data:")]
    return [json.loads(data) for data in datas if data and data != "[DONE]"]


def text_of(record: Record) -> str:
    """The text of a recorded openai.chat answer."""
    if not record["stream"]:
        return str(record["body"]["choices"][0]["message"]["content"] or "")
    deltas = itertools.chain.from_iterable(event["choices"] for event in events(record))
    return "".join(choice["delta"].get("content") or "" for choice in deltas)


async def posted(shop: Shop, generation: str) -> dict[str, Any]:
    """The record of a generation, once it can be read: within a second of its last chunk."""

    def read() -> Any:
        with shop.world.client() as client:
            reply = client.get("/api/v1/generation", params={"id": generation})
        return reply.json()["data"] if reply.status_code == 200 else None

    found: dict[str, Any] = await asyncio.to_thread(
        worlds.wait_until, f"generation {generation}", read, 10
    )
    return found
