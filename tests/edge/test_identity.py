"""Keys: hashed, shown once, known to every edge within a second, never made valid by old news."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from bourse import migrate
from bourse.database import Database
from bourse.event_log import IDENTITY, EventLog, open_event_log
from bourse.event_log.outbox import Publisher
from bourse.rpc import Context, Network
from bourse.v1.billing_pb2 import (
    GetUsageRequest,
    GetUsageResponse,
    GrantRequest,
    GrantResponse,
    UsageWindow,
)
from bourse.v1.billing_pb2_grpc import BillingStub
from services.edge import accounts, keys, keys_api, store, tables
from services.edge.errors import ApiError
from services.edge.identity import Identity
from tests.edge.world import World, eventually, world

VISIBLE_WITHIN_S = 1.0


class Records:
    """The part of billing that accounts and keys ask."""

    def __init__(self) -> None:
        self.grants: list[GrantRequest] = []

    async def Grant(self, request: GrantRequest, context: Context) -> GrantResponse:
        self.grants.append(request)
        return GrantResponse(posted_nano=request.amount_nano)

    async def GetUsage(self, request: GetUsageRequest, context: Context) -> GetUsageResponse:
        used = UsageWindow(total_nano=1_500, daily_nano=500)
        return GetUsageResponse(by_key=dict.fromkeys(request.key_hashes, used))


@asynccontextmanager
async def two_edges(
    tmp_path: Path,
) -> AsyncIterator[tuple[World, Identity, Database, Records, EventLog]]:
    """One edge with its database and outbox, and the memory of another."""
    database = Database(f"sqlite:///{tmp_path}/edge.sqlite")
    await migrate.upgrade(database, "edge")
    log = open_event_log(f"sqlite:///{tmp_path}/log.sqlite")
    await log.start()
    await log.create_topics([IDENTITY])
    publisher = Publisher(database, tables.log, log)
    records, network = Records(), Network()
    network.serve(BillingStub, records)
    billing = network.connect("local:", BillingStub)
    here, other = Identity(), Identity()
    router = keys_api.routes(here, database, billing, published=publisher.wake, deadline_s=1.0)
    async with world(routers=[router], identity=here) as edge:
        running = [
            asyncio.create_task(one) for one in (publisher.run(), here.run(log), other.run(log))
        ]
        try:
            made = await accounts.create_account(
                database, billing, name="test", credit_nano=5_000, key_names={}
            )
            publisher.wake()
            await soon(lambda: known(other, made.inference_key))
            await soon(lambda: known(here, made.management_key))
            edge.key, edge.management_key = made.inference_key, made.management_key
            yield edge, other, database, records, log
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await log.close()
            await database.close()


def known(identity: Identity, secret: str) -> bool:
    try:
        identity.caller({b"authorization": f"Bearer {secret}".encode()})
    except ApiError:
        return False
    return True


async def soon(check: Callable[[], bool]) -> float:
    """Return how long it took until the check held."""
    began_at = time.monotonic()
    await eventually(check)
    return time.monotonic() - began_at


async def test_an_account_is_made_with_two_keys_and_its_first_credit(tmp_path: Path) -> None:
    async with two_edges(tmp_path) as (edge, _, database, records, _log):
        assert [one.amount_nano for one in records.grants] == [5_000]
        async with database.read() as connection:
            rows = (await connection.execute(select(tables.key))).all()
    kept = {value for row in rows for value in row}
    assert edge.key not in kept  # only its hash is kept
    assert keys.hash_of(edge.key) in kept
    assert {row.kind for row in rows} == {"inference", "management"}


async def test_T2_a_revoked_key_is_refused_by_another_edge_within_a_second(
    tmp_path: Path,
) -> None:
    async with (
        two_edges(tmp_path) as (edge, other, _, _, _),
        edge.client(edge.management_key) as client,
    ):
        made = await client.post("/api/v1/keys", json={"name": "worker"})
        assert made.status_code == 201
        secret, key_hash = made.json()["key"], made.json()["data"]["hash"]
        assert await soon(lambda: known(other, secret)) <= VISIBLE_WITHIN_S
        changed = await client.patch(f"/api/v1/keys/{key_hash}", json={"disabled": True})
        assert changed.json()["data"]["disabled"] is True
        assert not known(edge.identity, secret)
        assert await soon(lambda: not known(other, secret)) <= VISIBLE_WITHIN_S
        await client.patch(f"/api/v1/keys/{key_hash}", json={"disabled": False})
        assert await soon(lambda: known(other, secret)) <= VISIBLE_WITHIN_S
        assert (await client.delete(f"/api/v1/keys/{key_hash}")).json() == {"deleted": True}
        assert await soon(lambda: not known(other, secret)) <= VISIBLE_WITHIN_S
        assert (await client.get(f"/api/v1/keys/{key_hash}")).status_code == 404


async def test_T1_an_old_state_that_comes_late_changes_nothing() -> None:
    identity = Identity()
    key, secret = keys.mint("acct", keys.INFERENCE, "k", 1)
    disabled = key.changed(2, disabled=True)
    identity.apply(disabled)
    identity.apply(key)
    assert not known(identity, secret)
    identity.remove(key.hash)
    identity.apply(disabled)
    assert not known(identity, secret)


async def test_a_key_that_expires_stops_working_by_itself() -> None:
    now_ms = 1_000
    identity = Identity(wall_ms=lambda: now_ms)
    key, secret = keys.mint("acct", keys.INFERENCE, "k", 1, expires_at_ms=2_000)
    identity.apply(key)
    assert known(identity, secret)
    now_ms = 2_000
    assert not known(identity, secret)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer nobody"}, 401),
        ({"authorization": "Basic abc"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"x-api-key": "nobody"}, 401),
        ({"authorization": "Bearer \xff"}, 401),
    ],
)
async def test_who_is_unknown_is_told_so_before_anything_else(
    headers: dict[str, str], status: int
) -> None:
    async with (
        world() as edge,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=edge.app),
            base_url="http://edge",
        ) as client,
    ):
        encoded = [(name, value.encode("latin-1")) for name, value in headers.items()]
        answer = await client.post(
            "/api/v1/chat/completions",
            content=b"{",
            headers=encoded,  # type: ignore[arg-type]
        )
    assert answer.status_code == status
    assert answer.json()["error"]["metadata"]["error_type"] == "authentication"


async def test_x_api_key_counts_where_authorization_is_absent() -> None:
    async with (
        world() as edge,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=edge.app),
            base_url="http://edge",
            headers={"x-api-key": edge.key},
        ) as client,
    ):
        body = {"model": "acme/one", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200


async def test_a_page_far_beyond_the_last_is_a_400_that_names_the_offset(tmp_path: Path) -> None:
    async with two_edges(tmp_path) as (edge, *_), edge.client(edge.management_key) as client:
        beyond = await client.get(f"/api/v1/keys?offset={10**24 - 1}")
        empty = await client.get("/api/v1/keys?offset=1000")
    assert beyond.status_code == 400
    assert beyond.json()["error"]["metadata"]["field"] == "offset"
    assert (empty.status_code, empty.json()) == (200, {"data": []})


async def test_kinds_of_keys_do_not_do_each_others_work(tmp_path: Path) -> None:
    async with two_edges(tmp_path) as (edge, *_):
        async with edge.client(edge.management_key) as client:
            body = {"model": "acme/one", "messages": [{"role": "user", "content": "Hi"}]}
            refused = await client.post("/api/v1/chat/completions", json=body)
            assert refused.status_code == 403
            listed = await client.get("/api/v1/keys")
            assert {one["name"] for one in listed.json()["data"]} == {"inference", "management"}
            assert listed.json()["data"][0]["usage"] == 0.0000015
        async with edge.client() as client:
            for answer in (
                await client.get("/api/v1/keys"),
                await client.post("/api/v1/keys", json={"name": "x"}),
            ):
                assert answer.status_code == 403
                assert answer.json()["error"]["metadata"]["error_type"] == "permission_denied"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": 7}, "/name"),
        ({"name": "x", "expires_at": "tomorrow"}, "/expires_at"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "expires_at": "2999-01-01T00:00:00+02:00"}, "/expires_at"),
        ({"name": "x", "limit": 5}, "/limit"),
    ],
)
async def test_M4_what_cannot_be_kept_about_a_key_is_refused_by_name(
    tmp_path: Path, body: dict[str, Any], field: str
) -> None:
    async with two_edges(tmp_path) as (edge, *_), edge.client(edge.management_key) as client:
        answer = await client.post("/api/v1/keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["metadata"]["field"] == field


async def test_stored_keys_are_an_accounts_own(tmp_path: Path) -> None:
    async with two_edges(tmp_path) as (edge, _, database, _, _):
        other, _secret = keys.mint("acct_other", keys.INFERENCE, "k", 1)
        async with database.begin() as connection:
            await store.insert_account(connection, "acct_other", "other", 1)
            await store.insert_key(connection, other)
        async with edge.client(edge.management_key) as client:
            for answer in (
                await client.get(f"/api/v1/keys/{other.hash}"),
                await client.patch(f"/api/v1/keys/{other.hash}", json={"name": "mine"}),
                await client.delete(f"/api/v1/keys/{other.hash}"),
            ):
                assert answer.status_code == 404
