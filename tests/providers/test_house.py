"""What the house lists by itself, and the whole of providers in one process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bourse import migrate
from bourse.event_log import GENERATIONS, CaughtUp
from bourse.multiplex import WorkerPool
from bourse.process import Process
from bourse.rpc import Context
from bourse.settings import Settings
from bourse.v1 import registry_pb2 as pb
from bourse.v1.billing_pb2 import ConfirmLeasesRequest, ConfirmLeasesResponse
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.events_pb2 import AttemptFinished, Envelope, LeaseSpend, ListingState, Unit
from bourse.v1.generation_pb2 import AttemptFacts, ProbeRequest
from bourse.v1.generation_pb2_grpc import GenerationStub
from bourse.v1.registry_pb2_grpc import RegistryStub
from services.providers import house, registry_main, worker_main
from services.providers.presets import PRESETS
from tests.eventually import eventually
from tests.providers.worker import ask, told

HOUSE = "acct-house"


class Billing:
    """Hears the worker's reports."""

    def __init__(self) -> None:
        self.reports: list[ConfirmLeasesRequest] = []

    async def ConfirmLeases(
        self, request: ConfirmLeasesRequest, _context: Context
    ) -> ConfirmLeasesResponse:
        self.reports.append(request)
        return ConfirmLeasesResponse()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    settings = Settings(var=tmp_path)
    await migrate.create_topics(settings)
    process = Process(settings, instance="worker-0")
    process.network.serve(BillingStub, Billing())
    await registry_main.start(process, settings)
    await worker_main.start(process, settings)
    yield process
    await process.close()


def registry(process: Process) -> Any:
    return process.network.connect("local:", RegistryStub)


async def endpoints_of(process: Process, slug: str) -> list[Any]:
    request = pb.ListEndpointsRequest(account=HOUSE, slug=slug)
    return list((await registry(process).ListEndpoints(request)).listings)


async def test_a_first_start_sells_the_sandbox_end_to_end(process: Process) -> None:
    assert await house.register(registry(process), HOUSE, {}) == ["sandbox"]
    listings = await endpoints_of(process, "sandbox")
    assert {each.model for each in listings} >= {
        "sandbox/echo",
        "sandbox/echo-anthropic",
        "sandbox/echo-gemini",
    }
    assert {each.state for each in listings} == {ListingState.LISTING_STATE_LISTED}
    echo = next(each for each in listings if each.model == "sandbox/echo")
    assert list(echo.input_modalities) == ["text", "image"]
    assert all(each.house and each.prices[0].commission_bps == 0 for each in listings)
    await eventually(lambda: process.ready)

    pool = WorkerPool(process.network, "local:")
    await pool.start()
    for number, listing in enumerate(listings):
        facts = AttemptFacts(
            generation=f"01J{number:023d}",
            attempt=1,
            account="acct-1",
            endpoint=listing.endpoint,
            model=listing.model,
            price=listing.prices[0],
            holds=[LeaseSpend(lease="lease-1", amount_nano=10**9)],
        )
        seen = await told(pool.choose().open(facts, orjson.dumps(ask()), 10_000))
        assert seen.text == "x" * 40
        assert seen.finished is not None
        assert seen.finished.charge_nano > 0
    await pool.close()

    log = await process.event_log()
    shipped: list[AttemptFinished] = []

    async def read() -> None:
        async for records in log.follow(GENERATIONS):
            if isinstance(records, CaughtUp):
                continue
            for record in records:
                assert record.key == b"acct-1"
                envelope = Envelope.FromString(record.value or b"")
                shipped.append(AttemptFinished.FromString(envelope.data))
                assert envelope.id == f"{shipped[-1].generation}:attempt:1"
            if len(shipped) == len(listings):
                return

    await asyncio.wait_for(read(), 20)
    assert [event.seq for event in shipped] == list(range(1, len(listings) + 1))
    assert {event.worker for event in shipped} == {"worker-0"}


async def test_the_worker_reports_its_leases_at_boot(process: Process) -> None:
    billing = process.network.servicer(BillingStub)
    await eventually(lambda: billing.reports)
    assert billing.reports[0].worker == "worker-0"
    assert billing.reports[0].boot == process.boot


async def test_a_probe_goes_the_way_of_an_attempt_and_leaves_no_event(process: Process) -> None:
    await house.register(registry(process), HOUSE, {})
    listing = (await endpoints_of(process, "sandbox"))[0]
    await eventually(lambda: process.ready)
    worker = process.network.connect("local:", GenerationStub)
    body = orjson.dumps(ask())
    answer = await worker.Probe(ProbeRequest(endpoint=listing.endpoint, body=body))
    assert answer.status == 200
    assert orjson.loads(answer.message_json)["content"] == "x" * 40
    unknown = await worker.Probe(ProbeRequest(endpoint="ep_nowhere", body=body))
    assert unknown.status == 503
    log = await process.event_log()
    async for records in log.follow(GENERATIONS):
        assert isinstance(records, CaughtUp)
        break


async def test_providers_come_from_keys_in_the_environment(process: Process) -> None:
    preset = next(slug for slug in ("anthropic", "openai") if slug in PRESETS)
    secret = "sk-test-0123456789abcdefgh"
    environment = {PRESETS[preset].env[0]: secret, "UNRELATED": "x"}
    assert await house.register(registry(process), HOUSE, environment) == ["sandbox", preset]
    listings = await endpoints_of(process, preset)
    assert 0 < len(listings) <= house.MODELS_MAX
    for listing in listings:
        assert listing.state == ListingState.LISTING_STATE_LISTED
        units = {entry.unit: entry.price_pico for entry in listing.prices[0].entries}
        assert units[Unit.UNIT_COMPLETION] > units[Unit.UNIT_PROMPT] > 0
        assert secret not in str(listing)
    before = {each.endpoint for each in listings}
    await house.register(registry(process), HOUSE, environment)
    assert {each.endpoint for each in await endpoints_of(process, preset)} == before


async def test_a_local_ollama_is_listed_for_free(process: Process) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/api/tags"
        return httpx.Response(200, json={"models": [{"name": "llama3.2:3b"}]})

    transport = httpx.MockTransport(answer)
    listed = await house.register(registry(process), HOUSE, {}, ollama=transport)
    assert listed == ["sandbox", "ollama"]
    (listing,) = await endpoints_of(process, "ollama")
    assert listing.model == "ollama/llama3.2-3b"
    assert {entry.price_pico for entry in listing.prices[0].entries} == {0}


@pytest.mark.parametrize("reply", [httpx.Response(500), httpx.Response(200, text="no JSON")])
async def test_an_ollama_that_answers_strangely_is_not_listed(reply: httpx.Response) -> None:
    assert await house._ollama(httpx.MockTransport(lambda _: reply)) == []


@pytest.mark.parametrize(
    ("preset", "upstream", "slug"),
    [
        ("openai", "gpt-4o", "openai/gpt-4o"),
        ("groq", "llama-3.3-70b-versatile", "meta-llama/llama-3.3-70b-versatile"),
        ("together", "deepseek-ai/DeepSeek-V3", "deepseek/deepseek-v3"),
        ("xai", "grok-4", "x-ai/grok-4"),
        ("cerebras", "gpt-oss-120b", "openai/gpt-oss-120b"),
        ("mistral", "codestral-2508", "mistralai/codestral-2508"),
    ],
)
def test_a_model_is_listed_under_its_author(preset: str, upstream: str, slug: str) -> None:
    assert house.model_slug(preset, upstream) == slug
