"""Random histories on real books against a small model that knows nothing of their code."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bourse.database import Database
from bourse.v1.events_pb2 import AttemptFinished, Outcome
from tests.billing.builders import Books, finished

ACCOUNTS = ("alice", "bob")
NANO_PER_TOKEN = 600


@dataclass
class Model:
    """What the totals must be: plain sums over what happened."""

    granted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0))
    attempts: dict[tuple[str, int], AttemptFinished] = field(default_factory=dict)
    lent: dict[str, tuple[str, int]] = field(default_factory=dict)
    returned: dict[str, int] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def standing(self) -> dict[str, AttemptFinished]:
        """The one charged attempt of each generation: the highest."""
        best: dict[str, AttemptFinished] = {}
        for (generation, number), event in sorted(self.attempts.items()):
            if event.charge_nano:
                assert generation not in best or number > best[generation].attempt
                best[generation] = event
        return best

    def used(self, account: str) -> int:
        return sum(e.charge_nano for e in self.standing().values() if e.account == account)

    def pending(self) -> int:
        """Providers keep their share of every charge, also of one that was given back."""
        return sum(
            e.charge_nano - e.commission_nano + e.insured_nano for e in self.attempts.values()
        )

    def commission(self) -> int:
        return sum(e.commission_nano for e in self.attempts.values())

    def insurance(self) -> int:
        charged = sum(e.charge_nano for e in self.attempts.values())
        standing = sum(e.charge_nano for e in self.standing().values())
        return charged - standing + sum(e.insured_nano for e in self.attempts.values())

    def spent(self, lease: str) -> int:
        return sum(
            spend.amount_nano
            for event in self.attempts.values()
            for spend in event.lease_spends
            if spend.lease == lease
        )

    def reserved(self, account: str) -> int:
        return sum(
            max(0, amount - self.spent(lease) - self.returned[lease])
            for lease, (owner, amount) in self.lent.items()
            if owner == account and lease not in self.closed
        )


outcomes = st.sampled_from(
    [
        Outcome.OUTCOME_COMPLETED,
        Outcome.OUTCOME_COMPLETED,
        Outcome.OUTCOME_CLIENT_LEFT,
        Outcome.OUTCOME_FAILED,
        Outcome.OUTCOME_LOST,
    ]
)
events = st.tuples(
    st.sampled_from(["01A", "01B", "01C", "01D"]),
    st.integers(1, 3),
    st.integers(0, 2_000),
    outcomes,
    st.integers(0, 5),
)
steps = st.one_of(
    st.tuples(st.just("grant"), st.sampled_from(ACCOUNTS), st.integers(1, 2_000_000)),
    st.tuples(st.just("post"), st.lists(events, min_size=1, max_size=5)),
    st.tuples(st.just("replay"), st.randoms(use_true_random=False)),
    st.tuples(st.just("lease"), st.sampled_from(ACCOUNTS), st.integers(1, 900_000)),
    st.tuples(st.just("return"), st.integers(0, 5), st.integers(0, 900_000)),
    st.tuples(st.just("close"), st.integers(0, 5)),
)


@settings(max_examples=40, deadline=None)
@given(history=st.lists(steps, max_size=20))
def test_any_history_gives_what_the_model_says(
    migrated_file: Path, history: list[tuple[object, ...]]
) -> None:
    asyncio.run(play(migrated_file, history))


async def play(template: Path, history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "billing.sqlite")
        database = Database(f"sqlite:///{folder}/billing.sqlite")
        try:
            books, model = Books(database), Model()
            for number, step in enumerate(history):
                await apply(books, model, number, step)
                await compare(books, model)
        finally:
            await database.close()


async def apply(books: Books, model: Model, number: int, step: tuple[object, ...]) -> None:
    match step:
        case ("grant", str(account), int(nano)):
            await books.grant(nano, account, name=f"grant-{number}")
            model.granted[account] += nano
        case ("post", list(drawn)):
            batch = [made for one in drawn if (made := event_of(model, one)) is not None]
            await books.post(*batch)
            for made in batch:
                model.attempts[made.generation, made.attempt] = made
        case ("replay", drawn_by):
            past = list(model.attempts.values()) * 2
            drawn_by.shuffle(past)  # type: ignore[attr-defined]
            await books.post(*past)
        case ("lease", str(account), int(estimate)):
            grant = await books.lease(estimate, account)
            available = model.granted[account] - model.used(account) - model.reserved(account)
            assert bool(grant.lease) == (available >= estimate)
            if grant.lease:
                assert estimate <= grant.amount_nano <= available
                model.lent[grant.lease] = (account, grant.amount_nano)
                model.returned[grant.lease] = 0
        case ("return", int(index), int(nano)) if index < len(model.lent):
            lease = list(model.lent)[index]
            live = model.lent[lease][1] - model.spent(lease) - model.returned[lease]
            await books.give_back(lease, nano)
            if lease not in model.closed:
                model.returned[lease] += max(0, min(nano, live))
        case ("close", int(index)) if index < len(model.lent):
            lease = list(model.lent)[index]
            spending = [
                spend.amount_nano
                for event in model.attempts.values()
                for spend in event.lease_spends
                if spend.lease == lease and spend.amount_nano
            ]
            await books.close(lease, len(spending), sum(spending))
            model.closed.add(lease)


def event_of(
    model: Model, drawn: tuple[str, int, int, Outcome.ValueType, int]
) -> AttemptFinished | None:
    """An event for an attempt not seen yet (a second time it would have to be the same)."""
    generation, number, tokens, outcome, index = drawn
    if (generation, number) in model.attempts:
        return None
    account = ACCOUNTS[ord(generation[-1]) % 2]
    leases = [x for x, (owner, _) in model.lent.items() if owner == account]
    charged = outcome in (Outcome.OUTCOME_COMPLETED, Outcome.OUTCOME_CLIENT_LEFT)
    spends = []
    if charged and tokens and index < len(leases):
        spends = [(leases[index], tokens * NANO_PER_TOKEN)]
    made = finished(
        generation, number, account=account, tokens=tokens, outcome=outcome, spends=spends
    )
    # Within one batch the first of two different events with one id would already be wrong.
    model.attempts[generation, number] = made
    return made


async def compare(books: Books, model: Model) -> None:
    ledger = await books.ledger()
    assert ledger.get("prov:provider:pending", 0) == model.pending()
    assert ledger.get("commission", 0) == model.commission()
    assert ledger.get("insurance", 0) == -model.insurance()
    assert sum(ledger.values()) == 0
    for account in ACCOUNTS:
        balance = await books.balance(account)
        assert balance.granted_nano == model.granted[account]
        assert balance.used_nano == model.used(account)
        assert balance.reserved_nano == model.reserved(account)
        grants = {n: v for n, v in ledger.items() if n.startswith(f"cust:{account}:")}
        overdrawn = grants.pop(f"cust:{account}:paid:overdraft", 0)
        assert all(left > 0 for left in grants.values())
        assert overdrawn == min(0, balance.posted_nano)
    assert await books.failing_checks() == []
