"""Register providers, their models and prices.

Each write is one transaction: the rows, an audit row, and in the outbox the listings that changed.
What changes nothing writes nothing.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import Database
from bourse.event_log import CATALOG
from bourse.event_log.envelope import envelope
from bourse.event_log.outbox import Publisher, enqueue
from bourse.v1.events_pb2 import Listing, ListingState, PriceVersion, ProviderProfile
from bourse.v1.registry_pb2 import Provider, PutModelRequest
from services.providers import catalogue, prices, registration, store
from services.providers.registration import Invalid, Known
from services.providers.store import Offer
from services.providers.tables import consumer_tables

Decide = Callable[[Row[Any]], Mapping[str, Any]]
"""A provider's row -> the columns to set; raises Invalid."""


class NotFound(Exception):
    """No such thing, or another account's. `field` names what was looked up."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class SlugTaken(Exception):
    """A provider has this slug already."""


class NameTaken(Exception):
    """Another provider shows this name already."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decides about registration."""

    known: Known
    commission_bps: int = 500
    increase_notice_ms: int = 86_400_000


class Registry:
    """The registry's writes. Each raises Invalid, NotFound, SlugTaken or
    NameTaken, having done nothing."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        rules: Rules,
        *,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.database = database
        self.clock_ms = clock_ms
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, after each write."""
        self._publisher = publisher
        self.rules = rules

    async def create_provider(
        self, account: str, profile: ProviderProfile, contact: str, *, house: bool
    ) -> Provider:
        registration.check_profile(profile, house=house)
        registration.check_contact(contact)
        values = {
            **_NEW_PROVIDER,
            **profile_values(profile, registration.PROFILE_FIELDS),
            "slug": profile.slug,
            "account": account,
            "contact": contact,
            "house": house,
            "commission_bps": 0 if house else self.rules.commission_bps,
            "created_at_ms": self.clock_ms(),
        }
        async with self.database.begin() as connection:
            await store.raise_revision(connection)  # one writer at a time: no name comes twice
            await self._check_name(connection, profile.slug, profile.name)
            if not await store.insert_provider(connection, values):
                raise SlugTaken
            made = catalogue.provider(await self.provider(connection, account, profile.slug))
            await self._audit(connection, account, "provider.create", profile.slug, None, made)
        return made

    async def change_provider(
        self, account: str, slug: str, action: str, decide: Decide
    ) -> Provider:
        """Set columns of a provider and publish its endpoints anew."""
        async with self.database.begin() as connection:
            row = await self.provider(connection, account, slug)
            values = decide(row)
            if all(getattr(row, name) == value for name, value in values.items()):
                return catalogue.provider(row)
            revision = await store.raise_revision(connection)
            if values.get("name", row.name) != row.name:
                await self._check_name(connection, slug, values["name"])
            before = catalogue.provider(row)
            await store.update_provider(connection, slug, values)
            after = catalogue.provider(await self.provider(connection, account, slug))
            await self._audit(connection, account, action, slug, before, after)
            for offer in await store.offers_of(connection, slug):
                await self._publish(connection, offer, revision)
        self._wake()
        return after

    async def put_model(self, request: PutModelRequest) -> Listing:
        """Make or change an endpoint, with its first price if the request has one."""
        async with self.database.begin() as connection:
            seller = await self.provider(connection, request.account, request.slug)
            registration.check_model(request, self.rules.known, house=seller.house)
            offer = await self._put_model(connection, seller, request)
        self._wake()
        return catalogue.listing(offer, self.clock_ms())

    async def add_price(
        self, account: str, slug: str, endpoint: str, asked: PriceVersion, *, confirm: bool
    ) -> Listing:
        async with self.database.begin() as connection:
            await self.provider(connection, account, slug)
            offer = await store.offer(connection, slug, endpoint)
            if offer is None:
                raise NotFound("/endpoint", "no such endpoint")
            revision = await store.raise_revision(connection)
            await self._add_price(connection, offer, asked, "", confirm=confirm)
            offer = await self._publish(connection, offer, revision)
        self._wake()
        return catalogue.listing(offer, self.clock_ms())

    async def publish_due(self) -> None:
        """Publish the endpoints that a price which has just started makes listed."""
        now = self.clock_ms()
        async with self.database.read() as connection:
            staged = await store.offers_staged(connection, now)
        due = [offer for offer in staged if catalogue.state(offer, now) != offer.endpoint.state]
        if due:
            async with self.database.begin() as connection:
                revision = await store.raise_revision(connection)
                for offer in due:
                    await self._publish(connection, offer, revision)
            self._wake()

    async def provider(self, connection: AsyncConnection, account: str, slug: str) -> Row[Any]:
        row = await store.provider_of(connection, account, slug)
        if row is None:
            raise NotFound("/slug", "no such provider")
        return row

    async def _check_name(self, connection: AsyncConnection, slug: str, name: str) -> None:
        """Raise NameTaken where another provider's name looks like this one."""
        asked = registration.folded(name)
        for other in await store.providers(connection):
            if other.slug != slug and registration.folded(other.name) == asked:
                raise NameTaken

    async def _put_model(
        self, connection: AsyncConnection, seller: Row[Any], request: PutModelRequest
    ) -> Offer:
        asked = request.listing
        tag = asked.tag or seller.slug
        row = await store.endpoint_named(connection, seller.slug, asked.model, tag)
        before = None if row is None else await store.offer(connection, seller.slug, row.id)
        values: dict[str, Any] = {
            "upstream_model": request.upstream_model,
            "preset": request.preset,
            "dialect": request.dialect,
            "base_url": request.base_url.rstrip("/"),
            "facts": _facts(asked).SerializeToString(deterministic=True),
        }
        priced = request.HasField("price") and not (
            before is not None and before.prices and prices.same(before.prices[-1], request.price)
        )
        if (
            before is not None
            and not priced
            and all(getattr(row, name) == value for name, value in values.items())
        ):
            return before
        revision = await store.raise_revision(connection)
        if row is None:
            id_ = f"ep_{secrets.token_hex(10)}"
            values |= {
                "id": id_,
                "provider": seller.slug,
                "model": asked.model,
                "tag": tag,
                "state": int(ListingState.LISTING_STATE_STAGED),
                "prompt_tokens_per_byte": 0.0,
                "completion_tokens_per_byte": 0.0,
                "created_at_ms": self.clock_ms(),
                "revision": revision,
            }
            await store.insert_endpoint(connection, values)
        else:
            id_ = row.id
            await store.update_endpoint(connection, id_, values)
        offer = await store.offer(connection, seller.slug, id_)
        assert offer is not None
        if priced:
            await self._add_price(connection, offer, request.price, "/price", confirm=seller.house)
        after = await self._publish(connection, offer, revision)
        await self._audit(
            connection,
            seller.account,
            "model.put",
            f"{seller.slug}/{id_}",
            None if before is None else catalogue.listing(before, self.clock_ms()),
            catalogue.listing(after, self.clock_ms()),
        )
        return after

    async def _add_price(
        self,
        connection: AsyncConnection,
        offer: Offer,
        asked: PriceVersion,
        pointer: str,
        *,
        confirm: bool,
    ) -> None:
        seller, now = offer.provider, self.clock_ms()
        try:
            version = prices.next_version(
                asked,
                offer.prices,
                id=f"pr_{secrets.token_hex(10)}",
                now_ms=now,
                commission_bps=seller.commission_bps,
                increase_notice_ms=self.rules.increase_notice_ms,
                house=seller.house,
                confirm=confirm,
                free=offer.endpoint.model.endswith(":free"),
            )
        except Invalid as invalid:
            raise Invalid(pointer + invalid.field, invalid.message) from None
        await store.insert_price(connection, offer.endpoint.id, version, now)
        await self._audit(
            connection,
            seller.account,
            "price.add",
            f"{seller.slug}/{offer.endpoint.id}",
            prices.in_force(offer.prices, now),
            version,
        )

    async def _publish(self, connection: AsyncConnection, offer: Offer, revision: int) -> Offer:
        """Store an endpoint's state as it is now, and put its listing into the outbox."""
        fresh = await store.offer(connection, offer.provider.slug, offer.endpoint.id)
        assert fresh is not None
        made = catalogue.listing(fresh, self.clock_ms())
        await store.update_endpoint(
            connection, made.endpoint, {"state": int(made.state), "revision": revision}
        )
        event = envelope(
            id=f"{made.endpoint}:listing:{revision}",
            type="Listing",
            source="registry",
            subject=made.endpoint,
            data=made.SerializeToString(),
        )
        key = catalogue.catalogue_key(fresh)
        await enqueue(connection, consumer_tables, CATALOG, key, event.SerializeToString())
        return fresh

    async def _audit(
        self,
        connection: AsyncConnection,
        account: str,
        action: str,
        subject: str,
        before: Message | None,
        after: Message,
    ) -> None:
        values = {
            "at_ms": self.clock_ms(),
            "account": account,
            "action": action,
            "subject": subject,
            "before": "" if before is None else MessageToJson(before, indent=None),
            "after": MessageToJson(after, indent=None),
        }
        await store.insert_audit(connection, values)

    def _wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self._publisher.wake()


def profile_values(profile: ProviderProfile, fields: tuple[str, ...]) -> dict[str, Any]:
    """The columns of these fields of a profile."""
    values = {field: getattr(profile, field) for field in fields}
    if "datacenters" in values:
        values["datacenters"] = ",".join(profile.datacenters)
    return values


def _facts(asked: Listing) -> Listing:
    """Of a listing, what the provider says about the model."""
    return Listing(
        model_name=asked.model_name,
        description=asked.description,
        created_at_ms=asked.created_at_ms,
        context_length=asked.context_length,
        max_completion_tokens=asked.max_completion_tokens,
        max_prompt_tokens=asked.max_prompt_tokens,
        quantization=asked.quantization,
        input_modalities=asked.input_modalities or ["text"],
        output_modalities=asked.output_modalities or ["text"],
        supported_parameters=asked.supported_parameters,
        supports_implicit_caching=asked.supports_implicit_caching,
        hugging_face_id=asked.hugging_face_id,
        tokenizer=asked.tokenizer,
    )


_NEW_PROVIDER: Mapping[str, Any] = {
    "trains": False,
    "retention_days": 0,
    "can_publish": False,
    "moderated": False,
    "requires_user_id": False,
    "base_url": "",
    "dialect": "",
    "models_url": "",
    "preset": "",
    "first_byte_timeout_ms": 0,
    "credential_kind": "",
    "credential_header": "",
    "credential_label": "",
    "sealed_credential": b"",
}
