"""CPU that billing's handler needs per event: `python benchmarks/billing_consumer.py [URL …]`.

Posts one event per generation in batches of 1, 100, 200 and 1,000, each batch in one transaction
with its commit, and prints microseconds of CPU (all threads of this process) and of wall time per
event, once with all events on one account and once with an account each. The first database is a
new SQLite file; further URLs name PostgreSQL databases that may be filled, whose own CPU is not
counted.
"""

import asyncio
import gc
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bourse import migrate, rating
from bourse.database import Database
from bourse.event_log.envelope import envelope
from bourse.v1.events_pb2 import (
    AttemptFinished,
    Envelope,
    LeaseSpend,
    Outcome,
    PriceVersion,
    Unit,
    UnitCount,
    UnitPrice,
)
from services.billing import consumer, lending, posting
from services.billing.leases import Rule

BATCHES = (1, 100, 200, 1000)
EVENTS = 4000
EVENTS_OF_ONE = 300
RULE = Rule(cap_nano=10**15, ttl_ms=30_000, grace_ms=10_000, estimates_min=1)

PRICE = PriceVersion(
    id="price-1",
    entries=[
        UnitPrice(unit=Unit.UNIT_PROMPT, price_pico=150_000),
        UnitPrice(unit=Unit.UNIT_CACHE_READ, price_pico=75_000),
        UnitPrice(unit=Unit.UNIT_COMPLETION, price_pico=600_000),
    ],
    commission_bps=500,
)


def event(generation: str, account: str, lease: str) -> Envelope:
    usage = [
        UnitCount(unit=Unit.UNIT_PROMPT, count=812),
        UnitCount(unit=Unit.UNIT_COMPLETION, count=341),
    ]
    rated = rating.rate(usage, PRICE)
    finished = AttemptFinished(
        generation=generation,
        attempt=1,
        account=account,
        key_hash="0123456789abcdef" * 4,
        app="https://app.example",
        model="author/model",
        endpoint="endpoint-1",
        provider="provider",
        provider_name="Provider",
        outcome=Outcome.OUTCOME_COMPLETED,
        final=True,
        status=200,
        finish_reason="stop",
        streamed=True,
        had_content=True,
        started_at_ms=time.time_ns() // 1_000_000,
        first_token_ms=120,
        duration_ms=900,
        usage=usage,
        price=PRICE,
        plan_version="plan-1",
        cost_lines=rated.cost_lines,
        list_nano=rated.total_nano,
        charge_nano=rated.total_nano,
        commission_nano=rating.commission_nano(rated.total_nano, PRICE.commission_bps),
        lease_spends=[LeaseSpend(lease=lease, amount_nano=rated.total_nano)],
        worker="worker-0",
        boot="0123456789abcdef",
    )
    return envelope(
        id=f"{generation}:attempt:1",
        type="AttemptFinished",
        source="worker/worker-0",
        subject=generation,
        data=finished.SerializeToString(),
    )


async def measure(database: Database, batch: int, accounts: int, run: str) -> tuple[float, float]:
    """Return microseconds of CPU and of wall time per event."""
    leases = {}
    for index in range(accounts):
        account = f"account-{run}-{index}"
        async with database.begin() as connection:
            credit = posting.Credit(f"grant-{run}-{index}", account, "paid", 10**15, "bench", "")
            await posting.give(connection, credit, 1)
            want = lending.Want(account, 10**12, 0)
            loans = await lending.lend(connection, "edge", [want], 1, RULE, 1)
            assert loans[0].lease is not None
            leases[account] = loans[0].lease.id
    names = list(leases)
    events = EVENTS_OF_ONE if batch == 1 else EVENTS
    batches = [
        [
            event(f"01{run}{start + at:022d}", names[at % accounts], leases[names[at % accounts]])
            for at in range(batch)
        ]
        for start in range(0, events, batch)
    ]
    gc.collect()
    gc.freeze()  # the prepared events are not the handler's garbage
    cpu, wall = time.process_time(), time.perf_counter()
    for items in batches:
        async with database.begin() as connection:
            await consumer.handle(connection, items)
    count = sum(map(len, batches))
    return (
        (time.process_time() - cpu) / count * 1e6,
        (time.perf_counter() - wall) / count * 1e6,
    )


async def main(urls: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for url in [f"sqlite:///{Path(folder) / 'billing.sqlite'}", *urls]:
            database = Database(url)
            await migrate.upgrade(database, "billing")
            print("sqlite" if database.is_sqlite else "postgresql")
            print(f"{'batch':>8} {'accounts':>9} {'CPU µs/event':>13} {'wall µs/event':>14}")
            run = f"{time.time_ns() % 10**9:09d}"
            for index, batch in enumerate(BATCHES):
                for accounts in sorted({1, batch}):
                    cpu, wall = await measure(database, batch, accounts, f"{run}{index}{accounts}")
                    print(f"{batch:>8} {accounts:>9} {cpu:>13.1f} {wall:>14.1f}")
            await database.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1:]))
