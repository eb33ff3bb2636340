"""The registry through its contract: who may write what, and what the others come to see."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bourse import migrate
from bourse.database import Database
from bourse.event_log import CATALOG, CaughtUp, EventLog, open_event_log
from bourse.event_log.outbox import Publisher
from bourse.rpc import Context, RpcError, StatusCode
from bourse.v1 import registry_pb2 as pb
from bourse.v1.events_pb2 import (
    Envelope,
    Listing,
    ListingState,
    PriceVersion,
    ProviderProfile,
    Unit,
    UnitPrice,
)
from services.providers.egress import Guard
from services.providers.endpoints import dialect_names
from services.providers.grpc_api import RegistryApi
from services.providers.registration import Known
from services.providers.registry import Registry, Rules
from services.providers.sealing import Sealer
from services.providers.tables import audit, consumer_tables, provider

NOW_MS = 1_700_000_030_000
CONTEXT = Context(None, "")
SECRET = "sk-live-0123456789abcdef"
LISTED = ListingState.LISTING_STATE_LISTED
STAGED = ListingState.LISTING_STATE_STAGED


@dataclass
class Shop:
    """A registry with its log, at a time that the test sets."""

    api: RegistryApi
    registry: Registry
    database: Database
    publisher: Publisher
    log: EventLog
    sealer: Sealer
    now_ms: list[int] = field(default_factory=lambda: [NOW_MS])

    async def create(self, slug: str = "acme", account: str = "acct-1", **more: Any) -> pb.Provider:
        profile = ProviderProfile(slug=slug, name="Acme", **more.pop("profile", {}))
        response = await self.api.CreateProvider(
            pb.CreateProviderRequest(account=account, profile=profile, **more), CONTEXT
        )
        return response.provider

    async def connect(self, slug: str = "acme", **more: Any) -> None:
        connection = pb.Connection(
            **{"base_url": "https://api.acme.example/v1", "dialect": "openai_chat", **more}
        )
        await self.api.SetConnection(
            pb.SetConnectionRequest(account="acct-1", slug=slug, connection=connection), CONTEXT
        )

    async def credential(self, secret: str = SECRET, kind: str = "bearer") -> pb.Provider:
        request = pb.SetCredentialRequest(account="acct-1", slug="acme", kind=kind, secret=secret)
        return (await self.api.SetCredential(request, CONTEXT)).provider

    async def put(self, model: str = "acme/one", price: int | None = 100, **more: Any) -> Listing:
        listing = Listing(**{"model": model, "context_length": 8_000, **more.pop("listing", {})})
        request = pb.PutModelRequest(
            account="acct-1", slug="acme", listing=listing, upstream_model="one", **more
        )
        if price is not None:
            request.price.CopyFrom(listed(price))
        return (await self.api.PutModel(request, CONTEXT)).listing

    async def price(self, endpoint: str, price: PriceVersion, **more: Any) -> Listing:
        request = pb.AddPriceRequest(
            account="acct-1", slug="acme", endpoint=endpoint, price=price, **more
        )
        return (await self.api.AddPrice(request, CONTEXT)).listing

    async def catalogue(self) -> dict[bytes, Listing]:
        """Ship the outbox; return the newest listing of each key."""
        while await self.publisher.ship():
            pass
        found: dict[bytes, Listing] = {}
        async for records in self.log.follow(CATALOG):
            if isinstance(records, CaughtUp):
                return found
            for record in records:
                assert record.value is not None
                envelope = Envelope.FromString(record.value)
                assert envelope.type == "Listing"
                found[record.key] = Listing.FromString(envelope.data)
        raise AssertionError

    async def audited(self) -> list[str]:
        async with self.database.read() as connection:
            return list((await connection.execute(select(audit.c.action))).scalars())


def listed(pico: int, **more: Any) -> PriceVersion:
    units = (Unit.UNIT_PROMPT, Unit.UNIT_COMPLETION)
    return PriceVersion(entries=[UnitPrice(unit=unit, price_pico=pico) for unit in units], **more)


@pytest.fixture(params=["sqlite", "postgresql"])
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/providers.sqlite")
    else:
        database = Database(request.getfixturevalue("postgres").url)
    await migrate.upgrade(database, "providers")
    log = open_event_log(f"sqlite:///{tmp_path}/log.sqlite")
    await log.start()
    await log.create_topics([CATALOG])
    publisher = Publisher(database, consumer_tables, log)
    now_ms = [NOW_MS]
    known = Known(Guard(), dialect_names(), frozenset({"openai"}))
    registry = Registry(database, publisher, Rules(known), clock_ms=lambda: now_ms[0])
    sealer = Sealer([b"k" * 32])
    api = RegistryApi(registry, sealer, poll_s=0.05)
    yield Shop(api, registry, database, publisher, log, sealer, now_ms)
    await log.close()
    await database.close()


async def test_a_provider_lists_itself_and_appears_in_the_catalogue(shop: Shop) -> None:
    await shop.create()
    await shop.connect()
    staged = await shop.put()
    assert staged.state == STAGED  # nobody can call it yet
    await shop.credential()

    catalogue = await shop.catalogue()
    ((key, listing),) = catalogue.items()
    assert key == f"acme/acme/one/{listing.endpoint}".encode()
    assert listing.state == LISTED
    assert (listing.model, listing.author, listing.tag) == ("acme/one", "acme", "acme")
    assert listing.prices[0].commission_bps == 500
    assert listing.prices[0].id
    assert listing.quantization == "unknown"
    assert listing.profile.name == "Acme"
    assert await shop.audited() == [
        "provider.create",
        "connection.set",
        "price.add",
        "model.put",
        "credential.set",
    ]


async def test_without_a_price_in_force_an_endpoint_is_not_listed_until_one_starts(
    shop: Shop,
) -> None:
    await shop.create()
    await shop.connect()
    await shop.credential()
    endpoint = (await shop.put(price=None)).endpoint
    later = await shop.price(endpoint, listed(100, effective_at_ms=NOW_MS + 60_000))
    assert later.state == STAGED
    await shop.registry.publish_due()
    assert [each.state for each in (await shop.catalogue()).values()] == [STAGED]
    shop.now_ms[0] += 60_000
    await shop.registry.publish_due()
    assert [each.state for each in (await shop.catalogue()).values()] == [LISTED]


async def test_an_open_endpoint_needs_no_secret(shop: Shop) -> None:
    await shop.create()
    await shop.connect()
    await shop.put()
    provider_ = await shop.credential(secret="", kind="none")
    assert not provider_.has_credential
    assert [each.state for each in (await shop.catalogue()).values()] == [LISTED]


async def test_the_secret_is_sealed_and_never_shown(shop: Shop) -> None:
    await shop.create()
    shown = await shop.credential()
    assert shown.has_credential
    assert SECRET not in str(shown)
    assert shown.credential_label == "sk-…cdef"
    async with shop.database.read() as connection:
        row = (await connection.execute(select(provider))).one()
        trail = (await connection.execute(select(audit.c.before, audit.c.after))).all()
    assert SECRET.encode() not in row.sealed_credential
    assert shop.sealer.open(row.sealed_credential, "acme") == SECRET
    assert SECRET not in str(trail)


async def test_another_accounts_provider_is_not_there(shop: Shop) -> None:
    await shop.create()
    stranger: dict[str, Any] = {"account": "acct-2", "slug": "acme"}
    calls = [
        shop.api.GetProvider(pb.GetProviderRequest(**stranger), CONTEXT),
        shop.api.SetPolicies(pb.SetPoliciesRequest(**stranger), CONTEXT),
        shop.api.SetConnection(pb.SetConnectionRequest(**stranger), CONTEXT),
        shop.api.SetCredential(pb.SetCredentialRequest(**stranger, kind="none"), CONTEXT),
        shop.api.UpdateProvider(pb.UpdateProviderRequest(**stranger), CONTEXT),
        shop.api.PutModel(pb.PutModelRequest(**stranger), CONTEXT),
        shop.api.AddPrice(pb.AddPriceRequest(**stranger), CONTEXT),
        shop.api.ListEndpoints(pb.ListEndpointsRequest(**stranger), CONTEXT),
    ]
    for call in calls:
        with pytest.raises(RpcError) as refusal:
            await call
        assert refusal.value.code is StatusCode.NOT_FOUND
    mine = await shop.api.ListProviders(pb.ListProvidersRequest(account="acct-2"), CONTEXT)
    assert list(mine.providers) == []
    everyone = await shop.api.ListProviders(pb.ListProvidersRequest(), CONTEXT)
    assert [each.profile.slug for each in everyone.providers] == ["acme"]


async def test_a_slug_is_taken_once(shop: Shop) -> None:
    await shop.create()
    with pytest.raises(RpcError) as refusal:
        await shop.create(account="acct-2")
    assert (refusal.value.code, refusal.value.field) == (StatusCode.ALREADY_EXISTS, "/slug")


@pytest.mark.parametrize(
    ("slug", "profile", "field"),
    [
        ("Acme", {}, "/slug"),
        ("a", {}, "/slug"),
        ("-acme", {}, "/slug"),
        ("acme-", {}, "/slug"),
        ("ac/me", {}, "/slug"),
        ("a" * 41, {}, "/slug"),
        ("stealth", {}, "/slug"),
        ("acme", {"headquarters": "Germany"}, "/headquarters"),
        ("acme", {"datacenters": ["DE", "d"]}, "/datacenters/1"),
        ("acme", {"privacy_policy_url": "javascript:alert(1)"}, "/privacy_policy_url"),
        ("acme", {"status_page_url": "https://u:p@x.example/"}, "/status_page_url"),
    ],
)
async def test_a_bad_profile_names_its_field(
    shop: Shop, slug: str, profile: dict[str, Any], field: str
) -> None:
    with pytest.raises(RpcError) as refusal:
        await shop.create(slug, profile=profile)
    assert (refusal.value.code, refusal.value.field) == (StatusCode.INVALID_ARGUMENT, field)


@pytest.mark.parametrize(
    ("connection", "field"),
    [
        ({"base_url": "http://169.254.169.254/v1"}, "/base_url"),
        ({"base_url": "sandbox://openai"}, "/base_url"),
        ({"base_url": "https://api.acme.example/v1?key=x"}, "/base_url"),
        ({"models_url": "http://localhost/models"}, "/models_url"),
        ({"dialect": "telepathy"}, "/dialect"),
        ({"preset": "nobody"}, "/preset"),
        ({"first_byte_timeout_ms": 300_001}, "/first_byte_timeout_ms"),
    ],
)
async def test_a_bad_connection_names_its_field(
    shop: Shop, connection: dict[str, Any], field: str
) -> None:
    await shop.create()
    with pytest.raises(RpcError) as refusal:
        await shop.connect(**connection)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("credential", "field"),
    [
        ({"kind": "basic", "secret": "x"}, "/kind"),
        ({"kind": "bearer"}, "/secret"),
        ({"kind": "bearer", "secret": "a b"}, "/secret"),
        ({"kind": "bearer", "secret": "a\r\nHost: x"}, "/secret"),
        ({"kind": "none", "secret": "x"}, "/secret"),
        ({"kind": "header", "secret": "x"}, "/header"),
        ({"kind": "header", "header": "Host", "secret": "x"}, "/header"),
        ({"kind": "bearer", "header": "x-key", "secret": "x"}, "/header"),
    ],
)
async def test_a_bad_credential_names_its_field(
    shop: Shop, credential: dict[str, Any], field: str
) -> None:
    await shop.create()
    request = pb.SetCredentialRequest(account="acct-1", slug="acme", **credential)
    with pytest.raises(RpcError) as refusal:
        await shop.api.SetCredential(request, CONTEXT)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("put", "field"),
    [
        ({"model": "one"}, "/model"),
        ({"model": "Acme/One"}, "/model"),
        ({"model": "stealth/x"}, "/model"),
        ({"listing": {"context_length": 0}}, "/context_length"),
        ({"listing": {"max_completion_tokens": 9_000}}, "/max_completion_tokens"),
        ({"listing": {"quantization": "int3"}}, "/quantization"),
        ({"listing": {"input_modalities": ["text", "smell"]}}, "/input_modalities/1"),
        ({"listing": {"supported_parameters": ["a b"]}}, "/supported_parameters/0"),
        ({"base_url": "http://10.0.0.1/"}, "/base_url"),
        ({"dialect": "telepathy"}, "/dialect"),
        ({"price": -1}, "/price/entries/0/price_pico"),
    ],
)
async def test_a_bad_model_names_its_field_and_leaves_nothing(
    shop: Shop, put: dict[str, Any], field: str
) -> None:
    await shop.create()
    with pytest.raises(RpcError) as refusal:
        await shop.put(**put)
    assert refusal.value.field == field
    assert await shop.catalogue() == {}
    assert await shop.audited() == ["provider.create"]


async def test_writing_the_same_again_writes_nothing(shop: Shop) -> None:
    await shop.create()
    for _ in range(2):
        await shop.connect()
        await shop.credential()
        await shop.put()
    assert len(await shop.audited()) == 5
    await shop.catalogue()
    first = await shop.put()
    assert first == await shop.put()


async def test_an_endpoint_keeps_its_id_when_its_model_changes(shop: Shop) -> None:
    await shop.create()
    before = await shop.put()
    after = await shop.put(listing={"context_length": 16_000}, price=None)
    assert after.endpoint == before.endpoint
    assert after.context_length == 16_000
    assert list(after.prices) == list(before.prices)


async def test_a_price_change_goes_by_its_rules_and_shows_its_date(shop: Shop) -> None:
    await shop.create()
    endpoint = (await shop.put()).endpoint
    dearer = await shop.price(endpoint, listed(150))
    assert [p.effective_at_ms for p in dearer.prices] == [NOW_MS, NOW_MS + 86_400_000]
    assert dearer.prices[0].ends_at_ms == NOW_MS + 86_400_000
    with pytest.raises(RpcError) as refusal:
        await shop.price(endpoint, listed(2_000))
    assert refusal.value.field == "/confirm"
    with pytest.raises(RpcError) as refusal:
        await shop.price("ep_nowhere", listed(10))
    assert refusal.value.code is StatusCode.NOT_FOUND


async def test_a_house_provider_takes_no_commission_and_may_be_the_sandbox(shop: Shop) -> None:
    await shop.create(house=True)
    await shop.connect(base_url="sandbox://openai")
    await shop.credential(secret="", kind="none")
    listing = await shop.put()
    assert listing.house
    assert listing.prices[0].commission_bps == 0
    shop.now_ms[0] += 1
    again = await shop.put(price=150)
    assert [price.entries[0].price_pico for price in again.prices] == [150]


async def test_profile_fields_change_one_by_one(shop: Shop) -> None:
    await shop.create(profile={"headquarters": "DE", "datacenters": ["DE"]})
    request = pb.UpdateProviderRequest(
        account="acct-1",
        slug="acme",
        profile=ProviderProfile(name="Acme 2", datacenters=["FR", "US"]),
        fields=["name", "datacenters"],
    )
    changed = (await shop.api.UpdateProvider(request, CONTEXT)).provider
    assert changed.profile.name == "Acme 2"
    assert list(changed.profile.datacenters) == ["FR", "US"]
    assert changed.profile.headquarters == "DE"
    request.fields.append("slug")
    with pytest.raises(RpcError) as refusal:
        await shop.api.UpdateProvider(request, CONTEXT)
    assert refusal.value.field == "/fields/2"


@pytest.mark.parametrize("name", ["acme", "ACME", " Acme ", "\uff21cme"])
async def test_a_name_is_taken_once_however_it_is_written(shop: Shop, name: str) -> None:
    await shop.create()
    other = ProviderProfile(slug="other", name=name)
    request = pb.CreateProviderRequest(account="acct-2", profile=other)
    with pytest.raises(RpcError) as refusal:
        await shop.api.CreateProvider(request, CONTEXT)
    assert (refusal.value.code, refusal.value.field) == (StatusCode.ALREADY_EXISTS, "/name")
    other.name = "Other"
    request = pb.CreateProviderRequest(account="acct-2", profile=other)
    await shop.api.CreateProvider(request, CONTEXT)
    rename = pb.UpdateProviderRequest(
        account="acct-2", slug="other", profile=ProviderProfile(name=name), fields=["name"]
    )
    with pytest.raises(RpcError) as refusal:
        await shop.api.UpdateProvider(rename, CONTEXT)
    assert (refusal.value.code, refusal.value.field) == (StatusCode.ALREADY_EXISTS, "/name")
    own = pb.UpdateProviderRequest(
        account="acct-1", slug="acme", profile=ProviderProfile(name="ACME"), fields=["name"]
    )
    assert (await shop.api.UpdateProvider(own, CONTEXT)).provider.profile.name == "ACME"


@pytest.mark.parametrize("mark", ["\n", "\t", "\x7f", "\u2028", "\u202e", "\u200b", "\u2066"])
async def test_a_name_holds_nothing_that_does_not_show(shop: Shop, mark: str) -> None:
    profile = ProviderProfile(slug="acme", name=f"Ac{mark}me")
    request = pb.CreateProviderRequest(account="acct-1", profile=profile)
    with pytest.raises(RpcError) as refusal:
        await shop.api.CreateProvider(request, CONTEXT)
    assert (refusal.value.code, refusal.value.field) == (StatusCode.INVALID_ARGUMENT, "/name")


async def test_policies_show_in_every_listing(shop: Shop) -> None:
    await shop.create()
    await shop.put()
    policies = pb.Policies(trains=True, retention_days=30)
    request = pb.SetPoliciesRequest(account="acct-1", slug="acme", policies=policies)
    await shop.api.SetPolicies(request, CONTEXT)
    (listing,) = (await shop.catalogue()).values()
    assert (listing.trains, listing.retention_days) == (True, 30)
    request.policies.retention_days = -1
    with pytest.raises(RpcError) as refusal:
        await shop.api.SetPolicies(request, CONTEXT)
    assert refusal.value.field == "/retention_days"


async def test_watch_gives_a_snapshot_then_changes_here_and_elsewhere(shop: Shop) -> None:
    await shop.create()
    await shop.connect()
    await shop.credential()
    one = await shop.put("acme/one")
    watching = shop.api.Watch(pb.WatchRequest(worker="w"), CONTEXT)

    async def next_one() -> pb.WatchResponse:
        async with asyncio.timeout(10):
            return await anext(watching)

    snapshot = await next_one()
    assert [each.endpoint for each in snapshot.endpoints] == [one.endpoint]
    (told,) = snapshot.endpoints
    assert told.base_url == "https://api.acme.example/v1"
    assert (told.dialect, told.upstream_model, told.credential_kind) == (
        "openai_chat",
        "one",
        "bearer",
    )
    assert shop.sealer.open(told.sealed_credential, "acme") == SECRET
    assert (await next_one()).synced

    two = await shop.put("acme/two")
    assert [each.endpoint for each in (await next_one()).endpoints] == [two.endpoint]
    # Another registry process on the same database: nothing wakes this one but its poll.
    other = Registry(shop.database, shop.publisher, shop.registry.rules, clock_ms=lambda: NOW_MS)
    await other.change_provider(
        "acct-1", "acme", "test", lambda _: {"base_url": "https://b.example"}
    )
    changed = await next_one()
    assert {each.endpoint for each in changed.endpoints} == {one.endpoint, two.endpoint}
    assert {each.base_url for each in changed.endpoints} == {"https://b.example"}
    await watching.aclose()  # type: ignore[attr-defined]


async def test_writers_at_once_lose_nothing(shop: Shop) -> None:
    await shop.create()
    await asyncio.gather(*(shop.put(f"acme/m{index}") for index in range(20)))
    listings = (
        await shop.api.ListEndpoints(
            pb.ListEndpointsRequest(account="acct-1", slug="acme"), CONTEXT
        )
    ).listings
    assert {each.model for each in listings} == {f"acme/m{index}" for index in range(20)}
    assert len(await shop.catalogue()) == 20
