"""What was acknowledged is posted, once, whatever is killed."""

import asyncio
import signal
from typing import Any

import openai
import pytest

from bourse.event_log import GENERATIONS, CaughtUp, Record, open_event_log
from bourse.v1.events_pb2 import AttemptFinished, Envelope
from tests import world as worlds
from tests.eventually import comes_true, eventually
from tests.kafka import Broker, LocalBroker
from tests.story.ledger import (
    charged,
    everything,
    forget_offsets,
    next_offsets,
    taken_nano,
    trial_balance_nano,
)
from tests.story.shop import Shop, open_shop, posted
from tests.story.test_openai_sdk import USAGE, chunk
from tests.world import World

HELLO: Any = [{"role": "user", "content": "hello"}]
COST_NANO = 14 * 1_000  # USAGE at USD 1 per million tokens


def answers(shop: Shop) -> None:
    shop.upstream.answer(shop.path, chunks=[chunk({"content": "hi"}), chunk({}, "stop"), USAGE])


async def ask(shop: Shop, **options: Any) -> Any:
    return await shop.client(**options).chat.completions.create(model=shop.model, messages=HELLO)


async def account_of(world: World) -> str:
    """The account of the world's key, from an event of its own."""
    async with open_shop(world) as shop:
        answers(shop)
        done = await ask(shop)
        await posted(shop, done.id)
        return (await event_of(world, done.id)).account


async def records_of(world: World) -> list[Record]:
    """Every record of the generations topic."""
    log = open_event_log(world.env["BOURSE_EVENT_LOG_URL"])
    await log.start()
    found: list[Record] = []
    try:
        async with asyncio.timeout(30):
            async for some in log.follow(GENERATIONS):
                if isinstance(some, CaughtUp):
                    return found
                found.extend(some)
    finally:
        await log.close()
    raise AssertionError


async def event_of(world: World, generation: str) -> AttemptFinished:
    wanted = generation.removeprefix("gen-")
    for record in await records_of(world):
        event = AttemptFinished.FromString(Envelope.FromString(record.value or b"").data)
        if event.generation == wanted:
            return event
    raise AssertionError(f"no event of {generation}")


async def test_M12_a_worker_killed_between_spool_and_log_posts_once_after_its_restart(
    real_world: World, broker: Broker
) -> None:
    if not isinstance(broker, LocalBroker):
        pytest.skip("the broker is not ours to stop")
    world = real_world
    account = await account_of(world)
    async with open_shop(world) as shop:
        answers(shop)
        before = await charged(world, account)
        broker.pause()  # from here nothing leaves the spool
        try:
            done = await ask(shop)
            assert done.choices[0].message.content == "hi"
            world.kill("providers.worker", signal.SIGKILL)
        finally:
            broker.resume()
        assert await charged(world, account) == before
        worlds.start_service(world, "providers.worker")
        await posted(shop, done.id)
        assert await charged(world, account) == (before[0] + 1, before[1] + COST_NANO)
        await usable(shop)
        assert await charged(world, account) == (before[0] + 2, before[1] + 2 * COST_NANO)
        assert await trial_balance_nano(world) == 0


async def test_M13_the_same_event_published_twenty_times_posts_once(real_world: World) -> None:
    world = real_world
    account = await account_of(world)
    async with open_shop(world) as shop:
        answers(shop)
        done = await ask(shop)
        await posted(shop, done.id)
        wanted = done.id.removeprefix("gen-").encode()
        (record,) = [r for r in await records_of(world) if wanted in (r.value or b"")]
        before = await everything(world)
        log = open_event_log(world.env["BOURSE_EVENT_LOG_URL"])
        await log.start()
        await log.append(GENERATIONS, [(record.key, record.value)] * 20)
        await log.close()
        later = await ask(shop)  # behind the twenty in the same partition
        await posted(shop, later.id)
        count, nano = await charged(world, account)
        after = await everything(world)
        assert len(after["attempt"]) == len(before["attempt"]) + 1
        assert [row for row in after["attempt"] if row in before["attempt"]] == before["attempt"]
        assert nano == await taken_nano(world, account)
        assert count > 0


async def test_M13_replaying_the_topic_from_zero_changes_no_row(real_world: World) -> None:
    world = real_world
    await account_of(world)
    world.kill("billing", signal.SIGTERM)
    before, offsets = await everything(world), await next_offsets(world)
    assert sum(offsets.values()) > 0
    await forget_offsets(world)
    worlds.start_service(world, "billing")

    async def read_again() -> bool:
        return await next_offsets(world) == offsets

    await comes_true(read_again, 60)
    assert await everything(world) == before


async def test_O6_a_broker_killed_under_load_loses_nothing_and_doubles_nothing(
    real_world: World, broker: Broker
) -> None:
    if not isinstance(broker, LocalBroker):
        pytest.skip("the broker is not ours to kill")
    world = real_world
    account = await account_of(world)
    async with open_shop(world) as shop:
        answers(shop)
        before = await charged(world, account)
        client = shop.client()
        served: list[str] = []
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                done = await client.chat.completions.create(model=shop.model, messages=HELLO)
                served.append(done.id)

        running = [asyncio.create_task(load()) for _ in range(8)]
        await eventually(lambda: len(served) >= 100)
        await asyncio.to_thread(broker.kill)
        at_kill = len(served)
        await eventually(lambda: len(served) >= at_kill + 100)  # served on, into the spool
        await asyncio.to_thread(broker.start)
        at_start = len(served)
        await eventually(lambda: len(served) >= at_start + 100)
        stop.set()
        await asyncio.gather(*running)
        assert len(set(served)) == len(served)
        wanted = (before[0] + len(served), before[1] + len(served) * COST_NANO)

        async def all_posted() -> bool:
            return await charged(world, account) == wanted

        await comes_true(all_posted, 90)
        assert await taken_nano(world, account) == wanted[1]
        assert await trial_balance_nano(world) == 0


async def usable(shop: Shop) -> None:
    """One request passes again, however long edge takes to find the worker."""

    async def served() -> bool:
        try:
            done = await ask(shop)
        except openai.APIStatusError:
            return False
        await posted(shop, done.id)
        return True

    await comes_true(served, 30)
