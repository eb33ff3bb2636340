"""A worker in a test: the real generator, spool and client, with a real server as its upstream."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson

from bourse.event_log.spool import Spool
from bourse.multiplex import DirectLink, Exchange
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Envelope,
    LeaseSpend,
    PriceVersion,
    Unit,
    UnitPrice,
)
from bourse.v1.generation_pb2 import AttemptFacts, Failed, Finished, ResponseFrame
from services.providers.call import Credential, Endpoint
from services.providers.egress import LOOPBACK, Guard
from services.providers.endpoints import Served, dialect_named
from services.providers.generation import Bounds, Generator
from services.providers.generation_api import GenerationApi
from services.providers.http1 import Limits
from services.providers.measures import Measures
from services.providers.presets import PLAIN
from services.providers.records import Records
from services.providers.sandbox import SandboxTransport
from services.providers.transport import Upstream, guarded_http
from services.providers.watchdog import Patience

PROMPT_PICO = 2_000_000  # $2 per million tokens
COMPLETION_PICO = 10_000_000
COMMISSION_BPS = 500
PRICE = PriceVersion(
    id="pr_1",
    effective_at_ms=1,
    entries=[
        UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=PROMPT_PICO),
        UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=COMPLETION_PICO),
    ],
    commission_bps=COMMISSION_BPS,
)
PLENTY = (LeaseSpend(lease="lease-1", amount_nano=1_000_000_000),)
ENDPOINT = "ep_1"
PATIENT = Patience(first_byte_s=5, idle_s=5, content_s=5, total_s=20, finished_s=2)


class Known:
    """The endpoints of a test."""

    def __init__(self, *served: Served) -> None:
        self._served = {each.endpoint.id: each for each in served}

    def get(self, id: str) -> Served | None:
        return self._served.get(id)

    async def find(self, id: str, timeout_s: float) -> Served | None:
        return self._served.get(id)


class Worker:
    """One life of a worker: `start` it, `open` attempts, read its `events`, `close` it."""

    def __init__(
        self,
        directory: Path,
        base_url: str,
        *,
        dialect: str = "openai_chat",
        patience: Patience = PATIENT,
        first_byte_timeout_s: float = 0.0,
        max_unshipped_nano: int = 10**15,
        checkpoint_s: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.served = Served(
            endpoint=Endpoint(ENDPOINT, base_url, dialect, PLAIN[dialect], "upstream-model"),
            credential=Credential("bearer", "", "sk-secret"),
            dialect=dialect_named(dialect),
            provider="acme",
            provider_name="Acme",
            house=False,
            first_byte_timeout_s=first_byte_timeout_s,
            prompt_tokens_per_byte=0.25,
            completion_tokens_per_byte=0.25,
            extensions={"pool": ENDPOINT},
        )
        self.directory = directory
        self._bounds = Bounds(patience=patience, checkpoint_s=checkpoint_s)
        self._max_unshipped_nano = max_unshipped_nano
        self._transport = transport

    def start(self, boot: str = "boot-1") -> None:
        self.spool = Spool(self.directory)
        self.spool.open()
        self.records = Records(self.spool, "worker-0", boot, self._max_unshipped_nano)
        self.recovered = self.records.recover()
        http = self._transport or guarded_http(Guard(LOOPBACK), Limits(connect_timeout_s=2))
        self.upstream = Upstream({"http": http, "https": http, "sandbox": SandboxTransport()})
        self.generator = Generator(
            Known(self.served),  # type: ignore[arg-type]
            self.records,
            self.upstream,
            self._bounds,
        )
        self.servicer = GenerationApi(self.generator, Measures(self.spool, self.records))
        self.link = DirectLink(self.servicer)

    async def close(self) -> None:
        await self.link.close()
        await self.upstream.aclose()
        self.spool.close()

    def open(self, body: dict[str, Any] | None = None, **facts: Any) -> Exchange:
        """Open an attempt, with plenty of credit unless `holds` says otherwise."""
        remaining_ms = facts.pop("remaining_ms", 20_000)
        given: dict[str, Any] = {
            "generation": "01J00000000000000000000001",
            "attempt": 1,
            "account": "acct-1",
            "endpoint": ENDPOINT,
            "model": "acme/model",
            "price": PRICE,
            "plan_version": "plan-1",
            "holds": PLENTY,
            **facts,
        }
        text = orjson.dumps(body if body is not None else ask())
        return self.link.open(AttemptFacts(**given), text, remaining_ms)

    async def run(self, body: dict[str, Any] | None = None, **facts: Any) -> "Told":
        return await told(self.open(body, **facts))

    def events(self) -> list[AttemptFinished]:
        """The events in the spool, in order."""
        return [
            AttemptFinished.FromString(Envelope.FromString(record.value).data)
            for record in self.spool.unshipped()
        ]

    def event(self) -> AttemptFinished:
        (event,) = self.events()
        return event


class Told:
    """What the edge was told of one attempt."""

    def __init__(self, frames: Sequence[ResponseFrame]) -> None:
        self.kinds = [str(frame.WhichOneof("kind")) for frame in frames]
        self.choices = [
            choice
            for frame in frames
            if frame.HasField("chunk")
            for choice in orjson.loads(frame.chunk.choices)
        ]
        last = frames[-1]
        self.finished: Finished | None = last.finished if last.HasField("finished") else None
        self.failed: Failed = last.failed

    @property
    def started(self) -> bool:
        return "started" in self.kinds

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)


async def told(exchange: Exchange, timeout_s: float = 15.0) -> Told:
    async with asyncio.timeout(timeout_s):
        return Told([frame async for frame in exchange])


async def next_frame(exchange: Exchange, kind: str, timeout_s: float = 10.0) -> ResponseFrame:
    """Take frames until one of this kind comes."""
    async with asyncio.timeout(timeout_s):
        async for frame in exchange:
            if frame.WhichOneof("kind") == kind:
                return frame
    raise AssertionError(f"ended without {kind}")


def ask(**more: Any) -> dict[str, Any]:
    """A call whose prompt has 40 bytes: 10 tokens by the house's count."""
    return {"messages": [{"role": "user", "content": "x" * 40}], **more}


def sse(*documents: Any) -> list[bytes]:
    return [b"data: " + orjson.dumps(document) + b"\n\n" for document in documents]


def delta(content: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chat.completion.chunk."""
    inner = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": {**inner, **fields}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def role() -> dict[str, Any]:
    return delta("", role="assistant")


def usage(prompt: int, completion: int) -> dict[str, Any]:
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": counts}


DONE = b"data: [DONE]\n\n"


def cost_nano(prompt: int, completion: int) -> int:
    """What so many tokens cost at PRICE; whole by its figures."""
    return (prompt * PROMPT_PICO + completion * COMPLETION_PICO) // 1_000


def share_nano(list_nano: int) -> int:
    return list_nano - list_nano * COMMISSION_BPS // 10_000


def with_preset(worker: Worker, **flags: Any) -> None:
    endpoint = replace(worker.served.endpoint, preset=replace(PLAIN["openai_chat"], **flags))
    worker.served = replace(worker.served, endpoint=endpoint)
