"""Billing as its process wires it, and the operator's command."""

import asyncio
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from bourse import migrate
from bourse.database import Database
from bourse.event_log import ACCOUNTS, GENERATIONS, CaughtUp
from bourse.process import Process
from bourse.settings import Settings
from bourse.v1 import billing_pb2 as pb
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.events_pb2 import AccountState, Envelope
from services.billing import __main__ as command
from services.billing import main
from tests.billing.builders import Books, finished, wrapped

CHARGE = 600_000


async def test_billing_starts_posts_and_tells_edges(tmp_path: Path) -> None:
    settings = Settings(var=tmp_path)
    process = Process(settings)
    try:
        await main.start(process, settings)
        billing = process.network.connect("local:", BillingStub)
        grant = pb.GrantRequest(
            id="g", account="alice", amount_nano=10 * CHARGE, kind="paid", actor="test"
        )
        assert (await billing.Grant(grant)).posted_nano == 10 * CHARGE
        log = await process.event_log()
        await log.append(GENERATIONS, [(b"alice", wrapped(finished()).SerializeToString())])
        request = pb.GetGenerationRequest(account="alice", generation="01A")
        deadline = time.monotonic() + 20
        while not (await billing.GetGeneration(request)).attempts:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert (await billing.GetGeneration(request)).posted_nano == CHARGE

        async with asyncio.timeout(20):
            async for records in log.follow(ACCOUNTS):
                if not isinstance(records, CaughtUp) and records:
                    assert records[0].value is not None
                    envelope = Envelope.FromString(records[0].value)
                    state = AccountState.FromString(envelope.data)
                    assert (state.account, state.credit_epoch) == ("alice", 1)
                    break
    finally:
        await process.close()


async def test_verify_prints_equal_and_then_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/billing.sqlite"
    monkeypatch.setenv("BOURSE_BILLING_DATABASE_URL", url)
    database = Database(url)
    await migrate.upgrade(database, "billing")
    books = Books(database)
    await books.grant(10 * CHARGE)
    await books.post(finished())
    assert await command.prove() == 0
    assert "trial balance: equal (0)" in capsys.readouterr().out
    async with database.begin() as connection:
        await connection.execute(text("UPDATE account SET used_nano = used_nano - 5"))
    await database.close()
    assert await command.prove() == 1
    assert f"{CHARGE - 5}, expected {CHARGE}, off -5" in capsys.readouterr().out
