"""Edges admit from credit on loan: billing may be away, and no cent is lost or overspent."""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from sqlalchemy import select

from services.billing import tables
from tests import world as worlds
from tests.eventually import comes_true
from tests.story.ledger import billing, charged, taken_nano, trial_balance_nano
from tests.story.shop import Shop, open_shop
from tests.story.test_openai_sdk import USAGE, chunk
from tests.world import World

HELLO: Any = [{"role": "user", "content": "hello"}]
COST_NANO = 14 * 1_000  # USAGE at USD 1 per million tokens
REQUESTS = 200
CREDIT_NANO = REQUESTS * COST_NANO


@pytest.fixture
async def shop(var: Path) -> AsyncIterator[Shop]:
    """A world of its own, of one process per service, whose account can pay for 200 requests."""
    credit = f"{CREDIT_NANO / 1e9:.9f}"
    world = await asyncio.to_thread(worlds.separate_processes, var, credit_usd=credit)
    try:
        async with open_shop(world) as opened:
            chunks = [chunk({"content": "hi"}), chunk({}, "stop"), USAGE]
            opened.upstream.answer(opened.path, chunks=chunks)
            yield opened
    finally:
        world.close()


async def ask(client: AsyncOpenAI, shop: Shop) -> int:
    """Ask for a little; return the status."""
    try:
        await client.chat.completions.create(model=shop.model, messages=HELLO, max_tokens=16)
    except openai.APIStatusError as error:
        return error.status_code
    return 200


async def until_refused(clients: list[AsyncOpenAI], shop: Shop) -> tuple[int, list[int]]:
    """Ask every edge in turn until each refuses; return (served, the refusals)."""
    served = 0
    refusals: dict[int, int] = {}
    for number in itertools.cycle(range(len(clients))):
        if len(refusals) == len(clients):
            return served, list(refusals.values())
        if number in refusals:
            continue
        status = await ask(clients[number], shop)
        if status == 200:
            served += 1
        else:
            refusals[number] = status
    raise AssertionError


async def account_of(world: World) -> str:
    async with billing(world) as connection:
        account: str = (await connection.execute(select(tables.account.c.id))).scalar_one()
        return account


async def test_M1_two_edges_serve_without_billing_then_refuse_and_the_sum_is_exact(
    shop: Shop,
) -> None:
    world = shop.world
    second = await asyncio.to_thread(worlds.second_edge, world)
    clients = [shop.client(), shop.client(base_url=f"{second}/api/v1")]
    for client in clients:
        assert await ask(client, shop) == 200
    served = 2
    world.kill("billing", signal.SIGKILL)

    without_billing, refusals = await until_refused(clients, shop)
    assert without_billing >= 2
    assert set(refusals) <= {402, 503}
    served += without_billing

    worlds.start_service(world, "billing")
    account = await account_of(world)
    await _posted(world, account, served)
    statuses: list[int] = []

    for client in clients:  # each finds billing again in its own time

        async def answers_itself(client: AsyncOpenAI = client) -> int:
            status = await ask(client, shop)
            return status if status != 503 else 0

        statuses.append(await comes_true(answers_itself, 60))
    served += statuses.count(200)

    with_billing, refusals = await until_refused(clients, shop)
    served += with_billing
    assert refusals == [402, 402]
    await _posted(world, account, served)
    assert served <= REQUESTS
    assert served * COST_NANO <= CREDIT_NANO


async def _posted(world: World, account: str, served: int) -> None:
    async def all_posted() -> bool:
        return await charged(world, account) == (served, served * COST_NANO)

    await comes_true(all_posted, 30)
    assert await taken_nano(world, account) == served * COST_NANO
    assert await trial_balance_nano(world) == 0
