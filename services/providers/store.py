"""The registry's queries. Every function takes a connection; none commits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import insert_if_absent
from bourse.v1.events_pb2 import ListingState, PriceVersion
from services.providers.tables import audit, endpoint, price, provider, revision


@dataclass(frozen=True, slots=True)
class Offer:
    """An endpoint with its provider and its price versions, oldest first."""

    endpoint: Row[Any]
    provider: Row[Any]
    prices: Sequence[PriceVersion]


async def raise_revision(connection: AsyncConnection) -> int:
    """Take the next revision. It also locks out every other writer until this one commits."""
    raised = (
        update(revision)
        .where(revision.c.id == 1)
        .values(value=revision.c.value + 1)
        .returning(revision.c.value)
    )
    return int((await connection.execute(raised)).scalar_one())


async def current_revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(revision.c.value))).scalar_one())


async def insert_provider(connection: AsyncConnection, values: Mapping[str, Any]) -> bool:
    """Return whether the slug was free."""
    return bool(await insert_if_absent(connection, provider, [values], [provider.c.slug]))


async def update_provider(
    connection: AsyncConnection, slug: str, values: Mapping[str, Any]
) -> None:
    await connection.execute(update(provider).where(provider.c.slug == slug).values(values))


async def provider_of(connection: AsyncConnection, account: str, slug: str) -> Row[Any] | None:
    """Return the provider if it is this account's."""
    found = select(provider).where(provider.c.slug == slug, provider.c.account == account)
    return (await connection.execute(found)).one_or_none()


async def providers(connection: AsyncConnection, account: str = "") -> Sequence[Row[Any]]:
    """Return the account's providers, or all, by slug."""
    found = select(provider).order_by(provider.c.slug)
    if account:
        found = found.where(provider.c.account == account)
    return (await connection.execute(found)).all()


async def insert_endpoint(connection: AsyncConnection, values: Mapping[str, Any]) -> None:
    await connection.execute(insert(endpoint).values(values))


async def update_endpoint(connection: AsyncConnection, id_: str, values: Mapping[str, Any]) -> None:
    await connection.execute(update(endpoint).where(endpoint.c.id == id_).values(values))


async def endpoint_named(
    connection: AsyncConnection, slug: str, model: str, tag: str
) -> Row[Any] | None:
    found = select(endpoint).where(
        endpoint.c.provider == slug, endpoint.c.model == model, endpoint.c.tag == tag
    )
    return (await connection.execute(found)).one_or_none()


async def insert_price(
    connection: AsyncConnection, endpoint_id: str, version: PriceVersion, now_ms: int
) -> None:
    await connection.execute(
        insert(price).values(
            id=version.id,
            endpoint=endpoint_id,
            effective_at_ms=version.effective_at_ms,
            version=version.SerializeToString(),
            created_at_ms=now_ms,
        )
    )


async def offer(connection: AsyncConnection, slug: str, endpoint_id: str) -> Offer | None:
    found = await _offers(
        connection, and_(endpoint.c.provider == slug, endpoint.c.id == endpoint_id)
    )
    return found[0] if found else None


async def offers_of(connection: AsyncConnection, slug: str) -> list[Offer]:
    return await _offers(connection, endpoint.c.provider == slug)


async def offers_since(connection: AsyncConnection, after_revision: int) -> list[Offer]:
    """Return the endpoints that were written after this revision (0: all)."""
    return await _offers(connection, endpoint.c.revision > after_revision)


async def offers_staged(connection: AsyncConnection, now_ms: int) -> list[Offer]:
    """Return the staged endpoints that have a price in force."""
    priced = select(price.c.endpoint).where(price.c.effective_at_ms <= now_ms)
    staged = endpoint.c.state == ListingState.LISTING_STATE_STAGED
    return await _offers(connection, and_(staged, endpoint.c.id.in_(priced)))


async def insert_audit(connection: AsyncConnection, values: Mapping[str, Any]) -> None:
    await connection.execute(insert(audit).values(values))


async def _offers(connection: AsyncConnection, where: Any) -> list[Offer]:
    endpoints = (
        await connection.execute(select(endpoint).where(where).order_by(endpoint.c.id))
    ).all()
    if not endpoints:
        return []
    sellers = {
        row.slug: row
        for row in await connection.execute(
            select(provider).where(
                provider.c.slug.in_(select(endpoint.c.provider).where(where).distinct())
            )
        )
    }
    versions: dict[str, list[PriceVersion]] = {}
    for row in await connection.execute(
        select(price.c.endpoint, price.c.version)
        .where(price.c.endpoint.in_(select(endpoint.c.id).where(where)))
        .order_by(price.c.endpoint, price.c.effective_at_ms)
    ):
        versions.setdefault(row.endpoint, []).append(PriceVersion.FromString(row.version))
    return [Offer(row, sellers[row.provider], versions.get(row.id, [])) for row in endpoints]
