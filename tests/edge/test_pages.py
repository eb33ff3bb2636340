"""The ordinary routes: catalogue, records, registration, boards, probes, the OpenAPI document."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import openai
import pytest

from bourse.event_log import Record
from bourse.event_log.envelope import envelope
from bourse.rpc import Context, Network, RpcError
from bourse.v1 import registry_pb2 as registry
from bourse.v1.billing_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    GetGenerationRequest,
    GetGenerationResponse,
    GetUsageRequest,
    GetUsageResponse,
    UsageWindow,
)
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.events_pb2 import (
    AttemptFinished,
    CostLine,
    Listing,
    ListingState,
    Outcome,
    PriceVersion,
    ProviderProfile,
    Unit,
    UnitCount,
    UnitPrice,
)
from bourse.v1.ranking_pb2 import BoardRow, GetBoardRequest, GetBoardResponse
from bourse.v1.ranking_pb2_grpc import RankingStub
from bourse.v1.registry_pb2_grpc import RegistryStub
from services.edge import boards_api, catalogue, providers_api, records
from services.edge.identity import Identity
from services.edge.listings import Listings
from services.edge.ulid import Ulids
from tests.edge.world import ACCOUNT, MODEL, World, price, world


class Neighbours:
    """Billing's records, the registry and ranking, as far as the pages ask them."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.generation = GetGenerationResponse()
        self.next_generations: list[GetGenerationResponse] = []
        self.refusal: RpcError | None = None

    async def GetGeneration(
        self, request: GetGenerationRequest, context: Context
    ) -> GetGenerationResponse:
        self.asked.append(request)
        return self.next_generations.pop(0) if self.next_generations else self.generation

    async def GetUsage(self, request: GetUsageRequest, context: Context) -> GetUsageResponse:
        used = UsageWindow(total_nano=123_456_789, daily_nano=1)
        return GetUsageResponse(by_key=dict.fromkeys(request.key_hashes, used))

    async def GetBalance(self, request: GetBalanceRequest, context: Context) -> GetBalanceResponse:
        self.asked.append(request)
        return GetBalanceResponse(granted_nano=10_000_000_001, used_nano=5)

    async def GetBoard(self, request: GetBoardRequest, context: Context) -> GetBoardResponse:
        if request.days not in (1, 7, 30):
            raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "1, 7 or 30", field="days")
        self.asked.append(request)
        rows = [BoardRow(rank=1, model=MODEL, total_tokens=15, requests=1, share=1.0, accounts=1)]
        return GetBoardResponse(rows=rows, as_of_ms=1_700_000_000_000, partial=True)

    async def CreateProvider(
        self, request: registry.CreateProviderRequest, context: Context
    ) -> registry.CreateProviderResponse:
        self._take(request)
        provider = registry.Provider(account=request.account, profile=request.profile)
        return registry.CreateProviderResponse(provider=provider)

    async def SetCredential(
        self, request: registry.SetCredentialRequest, context: Context
    ) -> registry.SetCredentialResponse:
        self._take(request)
        provider = registry.Provider(has_credential=True, credential_label="sk-...xyz")
        return registry.SetCredentialResponse(provider=provider)

    async def UpdateProvider(
        self, request: registry.UpdateProviderRequest, context: Context
    ) -> registry.UpdateProviderResponse:
        self._take(request)
        return registry.UpdateProviderResponse(provider=registry.Provider(profile=request.profile))

    async def SetConnection(
        self, request: registry.SetConnectionRequest, context: Context
    ) -> registry.SetConnectionResponse:
        self._take(request)
        provider = registry.Provider(connection=request.connection)
        return registry.SetConnectionResponse(provider=provider)

    async def PutModel(
        self, request: registry.PutModelRequest, context: Context
    ) -> registry.PutModelResponse:
        self._take(request)
        listing = Listing(endpoint="ep-1", model=request.listing.model)
        return registry.PutModelResponse(listing=listing)

    async def AddPrice(
        self, request: registry.AddPriceRequest, context: Context
    ) -> registry.AddPriceResponse:
        self._take(request)
        listing = Listing(endpoint=request.endpoint, model=MODEL, prices=[request.price])
        return registry.AddPriceResponse(listing=listing)

    async def ListEndpoints(
        self, request: registry.ListEndpointsRequest, context: Context
    ) -> registry.ListEndpointsResponse:
        self._take(request)
        listing = Listing(endpoint="ep-1", model=MODEL, prices=[price()])
        return registry.ListEndpointsResponse(listings=[listing])

    def _take(self, request: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(request)


@asynccontextmanager
async def exchange() -> AsyncIterator[tuple[World, Neighbours, Listings]]:
    network, neighbours, listings, identity = Network(), Neighbours(), Listings(), Identity()
    for stub in (BillingStub, RegistryStub, RankingStub):
        network.serve(stub, neighbours)
    routers = [
        catalogue.routes(listings, "https://exchange.example"),
        records.routes(
            identity,
            network.connect("local:", BillingStub),
            deadline_s=1.0,
            first_token_deadline_s=120.0,
        ),
        providers_api.routes(identity, network.connect("local:", RegistryStub), listings, 1.0),
        boards_api.routes(network.connect("local:", RankingStub), 1.0),
    ]
    async with world(routers=routers, identity=identity) as edge:
        yield edge, neighbours, listings


def listed(listings: Listings, listing: Listing, offset: int = 0) -> None:
    event = envelope("id", "Listing", "registry", listing.endpoint, listing.SerializeToString())
    record = Record("catalog", 0, offset, listing.endpoint.encode(), event.SerializeToString(), 1)
    listings._read(record)


def listing(endpoint: str, **facts: Any) -> Listing:
    facts = {
        "model": MODEL,
        "model_name": "One",
        "provider": "acme",
        "provider_name": "Acme",
        "tag": "acme",
        "state": ListingState.LISTING_STATE_LISTED,
        "context_length": 8_000,
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "supported_parameters": ["tools"],
        "prices": [price()],
        "profile": ProviderProfile(slug="acme", name="Acme", datacenters=["NL"]),
        **facts,
    }
    return Listing(endpoint=endpoint, **facts)


async def test_models_are_open_to_all_and_show_the_lowest_price_in_force() -> None:
    future = PriceVersion(
        effective_at_ms=(time.time_ns() // 1_000_000) + 10**9,
        entries=[UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=1)],
    )
    async with exchange() as (edge, _, listings):
        listed(listings, listing("dear", prices=[price(2_000_000)]))
        listed(listings, listing("cheap", prices=[price(1_000_000), future]))
        listed(listings, listing("hidden", state=ListingState.LISTING_STATE_HIDDEN, model="x/y"))
        listed(listings, listing("unpriced", prices=[], model="x/z"))
        async with edge.client(key="") as client:
            models = (await client.get("/api/v1/models")).json()
            endpoints = (await client.get(f"/v1/models/{MODEL}/endpoints")).json()["data"]
            unknown = await client.get("/api/v1/models/x/y/endpoints")
            providers = (await client.get("/api/v1/providers")).json()["data"]
    (model,) = models["data"]
    assert models["total_count"] == 1
    assert model["id"] == MODEL
    assert model["pricing"] == {"prompt": "0.000001", "completion": "0.000004"}
    for required in (
        "canonical_slug", "name", "created", "context_length", "architecture", "top_provider",
        "per_request_limits", "supported_parameters", "default_parameters", "supported_voices",
        "links",
    ):  # fmt: skip
        assert required in model
    assert [one["id"] for one in endpoints["endpoints"]] == ["cheap", "dear"]
    assert endpoints["endpoints"][0]["latency_last_30m"] is None
    assert unknown.status_code == 404
    assert unknown.json()["error"]["metadata"]["error_type"] == "not_found"
    assert providers[0]["slug"] == "acme"


async def test_models_are_paged_and_sorted_when_asked() -> None:
    async with exchange() as (edge, _, listings), edge.client(key="") as client:
        for number in range(5):
            listed(
                listings,
                listing(f"e{number}", model=f"acme/m{number}", prices=[price(10 - number)]),
            )
        page = (await client.get("/api/v1/models?limit=2&offset=1")).json()
        sort = (await client.get("/api/v1/models?sort=pricing-low-to-high")).json()
        bad = await client.get("/api/v1/models?limit=none")
        bad_sort = await client.get("/api/v1/models?sort=beauty")
    assert [one["id"] for one in page["data"]] == ["acme/m1", "acme/m2"]
    assert page["total_count"] == 5
    assert "offset=3" in page["links"]["next"]
    assert sort["data"][0]["id"] == "acme/m4"
    assert (bad.status_code, bad.json()["error"]["metadata"]["field"]) == (400, "limit")
    assert (bad_sort.status_code, bad_sort.json()["error"]["metadata"]["field"]) == (400, "sort")


async def test_a_model_is_found_by_its_name_as_openai_has_it() -> None:
    async with exchange() as (edge, _, listings), edge.client(key="") as client:
        listed(listings, listing("a", created_at_ms=1_700_000_000_000))
        shown = (await client.get(f"/api/v1/models/{MODEL}")).json()
        data = (await client.get(f"/api/v1/model/{MODEL}")).json()["data"]
        unknown = await client.get("/api/v1/models/x/y")
        http: Any = client
        official = openai.AsyncOpenAI(base_url="http://edge/v1", api_key="none", http_client=http)
        retrieved = await official.models.retrieve(MODEL)
    assert shown == {
        "id": MODEL,
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "acme",
        "data": data,
    }
    assert unknown.status_code == 404
    assert (retrieved.id, retrieved.object, retrieved.owned_by) == (MODEL, "model", "acme")


async def test_a_slash_at_the_end_changes_nothing_and_redirects_nowhere() -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    async with exchange() as (edge, _, _), edge.client() as client:
        asked = await client.post("/v1/chat/completions/", json=body)
        models = await client.get("/api/v1/models/")
        nothing = await client.get("/api/v1/nothing/")
    assert asked.json()["choices"][0]["message"]["content"] == "Hello world"
    assert models.json()["data"] == []
    assert nothing.status_code == 404


async def test_a_removed_listing_is_gone() -> None:
    async with exchange() as (edge, _, listings), edge.client(key="") as client:
        listed(listings, listing("a"))
        listings._read(Record("catalog", 0, 1, b"a", None, 1))
        assert (await client.get("/api/v1/models")).json()["data"] == []


def attempt(generation: str, **facts: Any) -> AttemptFinished:
    facts = {
        "attempt": 1,
        "account": ACCOUNT,
        "model": MODEL,
        "provider_name": "Acme",
        "outcome": Outcome.OUTCOME_COMPLETED,
        "final": True,
        "finish_reason": "stop",
        "started_at_ms": 1_700_000_000_000,
        "first_token_ms": 12,
        "duration_ms": 80,
        "usage": [
            UnitCount(unit=Unit.UNIT_PROMPT, count=10),
            UnitCount(unit=Unit.UNIT_COMPLETION, count=5),
        ],
        "cost_lines": [CostLine(unit=Unit.UNIT_PROMPT, count=10, price_pico=1, cost_pico=10)],
        "charge_nano": 30_000,
        "commission_nano": 1_500,
        **facts,
    }
    return AttemptFinished(generation=generation, **facts)


async def test_M15_a_generation_shows_the_ledgers_posting_and_every_attempt() -> None:
    ulid = Ulids().new()
    async with exchange() as (edge, billing, _), edge.client() as client:
        billing.generation = GetGenerationResponse(
            attempts=[
                attempt(ulid, outcome=Outcome.OUTCOME_FAILED, charge_nano=0, status=529),
                attempt(ulid, attempt=2),
            ],
            final=True,
            posted_nano=30_000,
        )
        answer = await client.get(f"/api/v1/generation?id=gen-{ulid}")
    data = answer.json()["data"]
    assert billing.asked[0].account == ACCOUNT
    assert billing.asked[0].generation == ulid
    assert data["id"] == f"gen-{ulid}"
    assert '"total_cost":0.00003,' in answer.text
    assert data["tokens_prompt"] == 10
    assert data["native_tokens_completion"] == 5
    assert [one["status"] for one in data["provider_responses"]] == [529, 200]
    assert data["cost_lines"][-1] == {"unit": "commission", "cost_usd": "0.0000015"}
    assert data["cancelled"] is False


async def test_a_generation_that_is_not_final_is_a_404_that_says_when_to_ask_again() -> None:
    ulid = Ulids().new()
    async with exchange() as (edge, billing, _), edge.client() as client:
        unknown = await client.get(f"/api/v1/generation?id=gen-{ulid}")
        billing.generation = GetGenerationResponse(attempts=[attempt(ulid)], final=False)
        running = await client.get(f"/api/v1/generation?id=gen-{ulid}")
        old = await client.get("/api/v1/generation?id=gen-01ARZ3NDEKTSV4RRFFQ69G5FAV")
        missing = await client.get("/api/v1/generation")
    for answer in (unknown, running):
        assert answer.status_code == 404
        assert answer.headers["retry-after"] == "1"
    assert old.status_code == 200
    assert (missing.status_code, missing.json()["error"]["metadata"]["field"]) == (400, "id")


async def test_a_generation_that_has_just_ended_is_waited_for() -> None:
    ulid = Ulids().new()
    unfinished = GetGenerationResponse(attempts=[attempt(ulid)], final=False)
    async with exchange() as (edge, billing, _), edge.client() as client:
        billing.next_generations = [GetGenerationResponse(), unfinished]
        billing.generation = GetGenerationResponse(attempts=[attempt(ulid)], final=True)
        answer = await client.get(f"/api/v1/generation?id=gen-{ulid}")
    assert answer.status_code == 200
    assert len(billing.asked) == 3


@pytest.mark.parametrize("shown", ["gen-01ARZ3NDEKTSV4RRFFQ69G5FAV", "gen-", "x", "7" * 64, "old"])
async def test_an_old_or_malformed_generation_is_asked_for_once(shown: str) -> None:
    if shown == "old":
        shown = "gen-" + ulid_of(time.time_ns() // 1_000_000 - 11_000)
    async with exchange() as (edge, billing, _), edge.client() as client:
        answer = await client.get(f"/api/v1/generation?id={shown}")
    assert answer.status_code == 404
    assert answer.headers["retry-after"] == "1"
    assert len(billing.asked) == 1


def ulid_of(at_ms: int) -> str:
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return "".join(digits[at_ms >> shift & 31] for shift in range(45, -1, -5)) + "0" * 16


async def test_key_and_credits() -> None:
    async with exchange() as (edge, _, _):
        async with edge.client() as client:
            key = (await client.get("/api/v1/key")).json()["data"]
            forbidden = await client.get("/api/v1/credits")
        async with edge.client(edge.management_key) as client:
            money = await client.get("/v1/credits")
            own = (await client.get("/api/v1/key")).json()["data"]
    assert key["usage"] == 0.123456789
    assert key["rate_limit"]["requests"] == -1
    assert (key["is_management_key"], own["is_management_key"]) == (False, True)
    assert forbidden.status_code == 403
    assert money.text == '{"data":{"total_credits":10.000000001,"total_usage":0.000000005}}'


async def test_a_provider_registers_and_prices_become_whole_pico_usd() -> None:
    async with exchange() as (edge, registered, _), edge.client(edge.management_key) as client:
        made = await client.post(
            "/api/v1/providers", json={"slug": "acme", "name": "Acme", "datacenters": ["NL"]}
        )
        changed = await client.patch("/api/v1/providers/acme", json={"headquarters": "NL"})
        sealed = await client.put(
            "/api/v1/providers/acme/credential", json={"kind": "bearer", "secret": "s3cret"}
        )
        model = await client.put(
            f"/api/v1/providers/acme/models/{MODEL}:free",
            json={
                "name": "One",
                "context_length": 8_000,
                "upstream_model_id": "one",
                "pricing": {"prompt": "0.000001", "completion": "0.0000004", "discount": 0.25},
            },
        )
        priced = await client.post(
            "/api/v1/providers/acme/endpoints/ep-1/prices",
            json={"pricing": {"prompt": "0.0000000000025"}, "effective_at": "2099-01-01T00:00:00Z"},
        )
        prices = await client.get("/api/v1/providers/acme/endpoints/ep-1/prices")
    create, update, credential, put, add, _ = registered.asked
    assert made.status_code == 201
    assert create.account == ACCOUNT
    assert changed.status_code == 200
    assert list(update.fields) == ["headquarters"]
    assert credential.secret == "s3cret"
    assert "s3cret" not in sealed.text
    assert put.listing.model == f"{MODEL}:free"
    assert put.upstream_model == "one"
    assert {e.unit: e.price_pico for e in put.price.entries} == {
        Unit.UNIT_PROMPT: 1_000_000,
        Unit.UNIT_COMPLETION: 400_000,
    }
    assert (put.price.discount_numerator, put.price.discount_denominator) == (3, 4)
    assert model.json()["data"]["id"] == "ep-1"
    assert priced.status_code == 201
    assert add.price.entries[0].price_pico == 2  # two and a half, to even
    assert add.price.effective_at_ms == 4_070_908_800_000
    assert prices.json()["data"][0]["pricing"]["prompt"] == "0.000001"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "", {"name": "x"}, "/slug"),
        ("POST", "", {"slug": 7, "name": "x"}, "/slug"),
        ("POST", "", [], "/"),
        ("PUT", "/acme/policies", {"retention_days": -1}, "/retention_days"),
        ("PUT", "/acme/policies", {"trains": "no"}, "/trains"),
        ("PUT", "/acme/connection", {"dialect": "x"}, "/base_url"),
        ("PUT", "/acme/models/a/b", {"context_length": "8k"}, "/context_length"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": 1}}, "/pricing/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "-1"}}, "/pricing/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "NaN"}}, "/pricing/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "0.0000000000005"}}, "/pricing/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "1e-400"}}, "/pricing/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "0", "promt": "1"}}, "/pricing/promt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "1", "overrides": [
            {"min_prompt_tokens": 9, "prompt": "1e-13"}]}}, "/pricing/overrides/0/prompt"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "1", "overrides": [
            {"min_prompt_tokens": 0, "prompt": "0", "utc_start": "2200"}]}},
         "/pricing/overrides/0/utc_start"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "1"}, "discount": 0.99999999},
         "/discount"),
        ("PUT", "/acme/models/a/b", {"pricing": {"prompt": "1"}, "discount": -1e300},
         "/discount"),
        ("POST", "/acme/endpoints/e/prices", {"pricing": {"completion": "1e-13"}},
         "/pricing/completion"),
        ("POST", "/acme/endpoints/e/prices", {"pricing": {}}, "/pricing"),
        ("POST", "/acme/endpoints/e/prices", {"pricing": {"prompt": "1"}, "effective_at": "soon"},
         "/effective_at"),
        ("POST", "/acme/endpoints/e/prices", {"pricing": {"prompt": "1"}, "discount": 2},
         "/discount"),
    ],
)  # fmt: skip
async def test_a_malformed_registration_names_the_field_by_json_pointer(
    method: str, path: str, body: Any, field: str
) -> None:
    async with exchange() as (edge, registered, _), edge.client(edge.management_key) as client:
        answer = await client.request(method, f"/api/v1/providers{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == 400
    assert error["metadata"]["field"].rstrip("/") == field.rstrip("/")
    assert registered.asked == []


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (rb'{"pricing": {"\ud800": "1"}}', "/pricing/?"),
        (rb'{"name": "\ud800"}', "body"),
        (rb'{"pricing": {"prompt": "\ud800"}}', "/pricing/prompt"),
        (rb'{"pricing": {"prompt": "1", "discount": NaN}}', "/discount"),
        (rb'{"pricing": {"prompt": "1", "discount": -1e999}}', "/discount"),
    ],
)
async def test_what_json_can_spell_and_nothing_can_hold_is_a_400(
    content: bytes, field: str
) -> None:
    async with exchange() as (edge, _, _), edge.client(edge.management_key) as client:
        answer = await client.put(
            "/api/v1/providers/acme/models/a/b",
            content=content,
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["metadata"]["field"] == field


async def test_a_price_of_zero_is_free_on_purpose() -> None:
    async with exchange() as (edge, registered, _), edge.client(edge.management_key) as client:
        answer = await client.put(
            f"/api/v1/providers/acme/models/{MODEL}", json={"pricing": {"prompt": "0.000"}}
        )
    assert answer.status_code == 200
    assert registered.asked[0].price.entries[0].price_pico == 0


@pytest.mark.parametrize(
    ("method", "path", "said", "field"),
    [
        ("PUT", "models/a/b", "/model_name", "/name"),
        ("PUT", "models/a/b", "/upstream_model", "/upstream_model_id"),
        ("PUT", "models/a/b", "/price/entries", "/pricing"),
        ("PUT", "models/a/b", "/context_length", "/context_length"),
        ("PUT", "connection", "/first_byte_timeout_ms", "/first_byte_timeout_s"),
        ("POST", "endpoints/e/prices", "/entries", "/pricing"),
        ("POST", "endpoints/e/prices", "/overrides/0/entries", "/pricing/overrides/0"),
        ("POST", "endpoints/e/prices", "/discount/numerator", "/discount"),
    ],
)
async def test_a_refused_registration_names_the_field_as_the_client_sent_it(
    method: str, path: str, said: str, field: str
) -> None:
    body = {"pricing": {"prompt": "1"}, "base_url": "https://a.example", "dialect": "x"}
    async with exchange() as (edge, registered, _), edge.client(edge.management_key) as client:
        registered.refusal = RpcError(grpc.StatusCode.INVALID_ARGUMENT, "no", field=said)
        answer = await client.request(method, f"/api/v1/providers/acme/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["metadata"]["field"] == field


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("models?offset=999999999999999999999999", "offset"),
        ("models?offset=-1", "offset"),
        ("models?limit=99999999999999999999999", "limit"),
        ("boards/most-used?days=99999999999999999999999", "days"),
    ],
)
async def test_a_number_out_of_bounds_is_a_400_that_names_it(path: str, field: str) -> None:
    async with exchange() as (edge, _, _), edge.client(key="") as client:
        answer = await client.get(f"/api/v1/{path}")
    assert answer.status_code == 400
    assert answer.json()["error"]["metadata"]["field"] == field


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.ALREADY_EXISTS, 409),
        (grpc.StatusCode.FAILED_PRECONDITION, 412),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNAUTHENTICATED, 500),
    ],
)
async def test_O7_refusals_of_services_become_typed_errors_and_never_a_401(
    code: grpc.StatusCode, status: int
) -> None:
    async with exchange() as (edge, registered, _), edge.client(edge.management_key) as client:
        registered.refusal = RpcError(code, "no", field="/slug")
        answer = await client.post("/api/v1/providers", json={"slug": "a", "name": "A"})
    error = answer.json()["error"]
    assert answer.status_code == error["code"] == status
    assert error["metadata"].get("field") == ("/slug" if status < 500 else None)


@pytest.mark.parametrize("board", ["most-used", "most_used"])
async def test_the_most_used_board(board: str) -> None:
    async with exchange() as (edge, ranking, _), edge.client(key="") as client:
        answer = (await client.get(f"/api/v1/boards/{board}?days=7")).json()
        bad = await client.get(f"/api/v1/boards/{board}?days=2")
    assert ranking.asked[0].board == "most_used"
    assert answer["data"][0]["total_tokens"] == 15
    assert answer["meta"]["partial"] is True
    assert (bad.status_code, bad.json()["error"]["metadata"]["field"]) == (400, "days")


async def test_probes_documents_and_unknown_routes() -> None:
    async with exchange() as (edge, _, _), edge.client() as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        document = (await client.get("/api/v1/openapi.json")).json()
        assert (await client.get("/api/v1/docs")).status_code == 200
        unknown = await client.get("/api/v1/nothing")
        method = await client.get("/api/v1/chat/completions")
    paths = document["paths"]
    body = paths["/api/v1/chat/completions"]["post"]["requestBody"]
    assert "messages" in body["content"]["application/json"]["schema"]["required"]
    for path in ("/api/v1/models", "/api/v1/generation", "/api/v1/key", "/api/v1/providers"):
        assert path in paths
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, 404)
    assert (method.status_code, method.json()["error"]["code"]) == (405, 405)


async def test_the_twin_route_answers_as_the_bare_function_does() -> None:
    async with exchange() as (edge, _, _):
        pages = edge.app._pages
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=pages),
            base_url="http://edge",
            headers={"authorization": f"Bearer {edge.key}"},
        ) as client:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
            answer = await client.post("/api/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello world"


async def test_the_docs_page_needs_nothing_from_elsewhere_and_can_send_a_key() -> None:
    async with exchange() as (edge, _, _), edge.client() as client:
        page = (await client.get("/api/v1/docs")).text
        sources = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert sources
        for source in sources:
            assert httpx.URL(source).host == client.base_url.host
            assert (await client.get(source)).is_success
        document = (await client.get("/api/v1/openapi.json")).json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["paths"]["/api/v1/chat/completions"]["post"]["security"]
