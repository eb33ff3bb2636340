"""Each generation once, by its charged or last attempt, in whatever order events come."""

import random
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Table, select

from bourse.database import Database
from bourse.v1.events_pb2 import AttemptFinished, Outcome, Unit, UnitCount
from services.ranking import counting
from services.ranking.accounts import AccountHash, key_from_file
from services.ranking.consumer import Counter
from services.ranking.counting import Changes, Malformed
from services.ranking.tables import (
    OUTCOMES,
    account_model_day,
    endpoint_hour,
    endpoint_hour_histogram,
    model_hour,
)
from services.ranking.tables import (
    attempt as attempt_table,
)
from tests.ranking.builders import DAY_MS, HOUR_MS, NOW_MS, attempt, failed, wrapped

HASH = AccountHash(b"a key of sixteen")
ROLLUPS = (model_hour, account_model_day, endpoint_hour, endpoint_hour_histogram)
HOUR = NOW_MS // HOUR_MS


async def count(database: Database, *events: AttemptFinished) -> None:
    async with database.begin() as connection:
        await Counter(HASH).handle(connection, [wrapped(event) for event in events])


async def rows(database: Database, table: Table) -> list[tuple[object, ...]]:
    """A table's rows in order; rows whose numbers were all taken out again count as absent."""
    async with database.read() as connection:
        found = [tuple(row) for row in await connection.execute(select(table))]
    if table in (model_hour, account_model_day):
        place = list(table.columns.keys()).index("requests")
        found = [row for row in found if any(row[place:])]
    return sorted(found)


async def rollups(database: Database) -> dict[str, list[tuple[object, ...]]]:
    return {table.name: await rows(database, table) for table in ROLLUPS}


async def models(database: Database) -> dict[str, tuple[object, ...]]:
    """Model -> requests, prompt tokens, completion tokens, cost."""
    return {str(row[1]): row[2:] for row in await rows(database, model_hour)}


async def test_an_event_counts_in_every_rollup(database: Database) -> None:
    await count(database, attempt(prompt=1_500, completion=50))
    assert await rows(database, model_hour) == [(HOUR, "author/model", 1, 1_500, 50, 7)]
    day = (HOUR // 24, "author/model", HASH("account-1"), 1, 1_550)
    assert await rows(database, account_model_day) == [day]
    (hour,) = await rows(database, endpoint_hour)
    assert hour[:4] == (HOUR, "e1", "author/model", "p1")
    assert dict(zip(OUTCOMES, hour[4:14], strict=True)) == dict.fromkeys(OUTCOMES, 0) | {
        "completed": 1
    }
    assert hour[14:] == (1_500, 50, 7, 0)
    histograms = await rows(database, endpoint_hour_histogram)
    assert [(row[2], row[3], row[5]) for row in histograms] == [
        ("first_token_ms", 1, 1),
        ("tokens_per_s", 1, 1),
    ]


async def test_every_unit_is_prompt_or_completion_once(database: Database) -> None:
    usage = [UnitCount(unit=unit, count=10**unit) for unit in Unit.values() if unit]
    await count(database, attempt(usage=usage))
    prompt = sum(10**unit for unit in (1, 2, 3, 4, 7, 8, 9, 10, 16))
    completion = sum(10**unit for unit in (5, 6, 11, 12))
    assert await models(database) == {"author/model": (1, prompt, completion, 7)}


async def test_a_failed_over_generation_counts_once_where_it_was_served(database: Database) -> None:
    await count(database, failed("g", 1, endpoint="e1", model="first/model"))
    assert await models(database) == {}
    await count(database, attempt("g", 2, endpoint="e2", model="second/model"))
    assert await models(database) == {"second/model": (1, 30, 12, 7)}
    endpoints = {str(row[1]): row[4:14] for row in await rows(database, endpoint_hour)}
    assert dict(zip(OUTCOMES, endpoints["e1"], strict=True))["failed"] == 1
    assert dict(zip(OUTCOMES, endpoints["e2"], strict=True))["completed"] == 1


async def test_a_generation_that_failed_altogether_counts_by_its_last_attempt(
    database: Database,
) -> None:
    await count(database, failed("g", 1, model="first/model"), failed("g", 2, final=True, prompt=5))
    assert await models(database) == {"author/model": (1, 5, 0, 0)}


async def test_a_hedge_that_lost_does_not_replace_the_one_that_served(database: Database) -> None:
    for generation, order in (("g", (0, 1)), ("h", (1, 0))):
        served = attempt(generation, 1, final=False)
        lost = failed(
            generation, 2, model="other/model", outcome=Outcome.OUTCOME_HEDGE_LOST, final=True
        )
        for place in order:
            await count(database, (served, lost)[place])
    assert await models(database) == {"author/model": (2, 60, 24, 14)}


async def test_a_better_attempt_takes_the_former_out_again(database: Database) -> None:
    free = attempt("g", 1, charge_nano=0, finished_ms=NOW_MS - 2 * DAY_MS, model="first/model")
    await count(database, free)
    assert await models(database) == {"first/model": (1, 30, 12, 0)}
    await count(database, attempt("g", 2, account="account-2"))
    assert await models(database) == {"author/model": (1, 30, 12, 7)}
    assert await rows(database, account_model_day) == [
        (HOUR // 24, "author/model", HASH("account-2"), 1, 42)
    ]


async def test_a_late_event_goes_to_the_window_of_its_own_time(database: Database) -> None:
    await count(database, attempt("g1"), attempt("g2", finished_ms=NOW_MS - 40 * DAY_MS))
    hours = [row[0] for row in await rows(database, model_hour)]
    assert hours == [HOUR - 40 * 24, HOUR]


async def test_an_hour_begins_with_its_first_millisecond(database: Database) -> None:
    await count(database, attempt("g1", finished_ms=NOW_MS - 1), attempt("g2", finished_ms=NOW_MS))
    assert [row[0] for row in await rows(database, model_hour)] == [HOUR - 1, HOUR]


async def test_our_own_probes_count_nowhere_and_the_row_says_why(database: Database) -> None:
    await count(database, attempt(account=""))
    assert not any((await rollups(database)).values())
    async with database.read() as connection:
        (row,) = await connection.execute(select(attempt_table))
    assert row.excluded == "probe"


async def test_the_same_event_twenty_times_counts_once(database: Database) -> None:
    await count(database, *[attempt() for _ in range(20)])
    for _ in range(3):
        await count(database, attempt())
    assert await models(database) == {"author/model": (1, 30, 12, 7)}


async def test_other_events_are_passed_over(database: Database) -> None:
    other = wrapped(attempt())
    other.type = "SomethingElse"
    async with database.begin() as connection:
        await Counter(HASH).handle(connection, [other])
        await Counter(HASH).handle(connection, [])
    assert await models(database) == {}


@pytest.mark.parametrize(
    "facts",
    [
        {"model": ""},
        {"endpoint": ""},
        {"generation": ""},
        {"usage": [UnitCount(unit=Unit.UNIT_PROMPT, count=-1)]},
    ],
)
def test_an_event_that_cannot_be_counted_says_so(facts: dict[str, object]) -> None:
    event = attempt()
    event.MergeFrom(AttemptFinished())
    for name, value in facts.items():
        event.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(event, name).extend(value)
    with pytest.raises(Malformed):
        counting.read(event, NOW_MS, HASH)


def generations(chance: random.Random, how_many: int) -> list[AttemptFinished]:
    """Generations of one to four attempts; which of them counts is for the model to say."""
    made = []
    for number in range(how_many):
        attempts = chance.randint(1, 4)
        charged = chance.choice([0, attempts, chance.randint(1, attempts)])
        for place in range(1, attempts + 1):
            outcome = chance.choice([1, 1, 2, 3, 4, 5, 6]) if place != charged else 1
            made.append(
                attempt(
                    f"g{number}",
                    place,
                    outcome=outcome,
                    status=chance.choice([0, 400, 401, 429, 503]),
                    final=place == attempts and chance.random() < 0.8,
                    charge_nano=chance.randint(1, 99) if place == charged else 0,
                    model=f"author/m{chance.randrange(4)}",
                    account=f"account-{chance.randrange(5)}",
                    endpoint=f"e{chance.randrange(4)}",
                    prompt=chance.randrange(30_000),
                    completion=chance.randrange(300),
                    finished_ms=NOW_MS - chance.randrange(3 * DAY_MS),
                    first_token_ms=chance.randrange(1, 9_000),
                )
            )
    return made


def expected_models(events: list[AttemptFinished]) -> dict[tuple[int, str], list[int]]:
    """The rule as a sentence: the charged attempt, else the last served, else the final one."""
    by_generation: dict[str, list[AttemptFinished]] = {}
    for event in events:
        by_generation.setdefault(event.generation, []).append(event)
    totals: dict[tuple[int, str], list[int]] = {}
    for attempts in by_generation.values():
        attempts.sort(key=lambda event: event.attempt)
        charged = [event for event in attempts if event.charge_nano]
        served = [event for event in attempts if event.outcome in (1, 2, 3, 7)]
        final = [event for event in attempts if event.final]
        for event in (charged or served or final)[-1:]:
            hour = (event.started_at_ms + event.duration_ms) // HOUR_MS
            row = totals.setdefault((hour, event.model), [0, 0, 0, 0])
            row[0] += 1
            row[1] += event.usage[0].count
            row[2] += event.usage[1].count
            row[3] += event.charge_nano
    return totals


@pytest.mark.parametrize("seed", range(3))
async def test_order_batches_and_replays_change_no_number(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    events = generations(chance, 40)
    arrivals = events + chance.choices(events, k=60)
    chance.shuffle(arrivals)
    while arrivals:
        size = chance.randint(1, 40)
        await count(database, *arrivals[:size])
        arrivals = arrivals[size:]
    found = {(row[0], row[1]): list(row[2:]) for row in await rows(database, model_hour)}
    assert found == expected_models(events)
    before = await rollups(database)
    outcomes = [number for row in before["endpoint_hour"] for number in row[4:14]]
    assert sum(cast(list[int], outcomes)) == len(events)
    await count(database, *events)
    for event in reversed(events):
        await count(database, event)
    assert await rollups(database) == before


async def test_a_batch_that_fails_leaves_nothing(database: Database) -> None:
    bad = wrapped(attempt("g2"))
    bad.data = b"\xff"
    with pytest.raises(Malformed):
        async with database.begin() as connection:
            await Counter(HASH).handle(connection, [wrapped(attempt("g1")), bad])
    assert await models(database) == {}
    await count(database, attempt("g1"))
    assert await models(database) == {"author/model": (1, 30, 12, 7)}


@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_what_counts_does_not_depend_on_the_order(chance: random.Random, how_many: int) -> None:
    events = generations(chance, how_many)
    chance.shuffle(events)
    totals: dict[tuple[int, str], list[int]] = {}
    seen: list[counting.Attempt] = []
    for event in events:
        changes = Changes()
        made = counting.read(event, NOW_MS, HASH)
        siblings = [other for other in seen if other.generation == made.generation]
        counting.count_generations(changes, siblings, [made])
        seen.append(made)
        for key, numbers in changes.models.items():
            row = totals.setdefault(key, [0, 0, 0, 0])
            totals[key] = [old + new for old, new in zip(row, numbers, strict=True)]
    assert {key: row for key, row in totals.items() if any(row)} == expected_models(events)


def test_accounts_are_hashed_under_a_key_that_a_restart_keeps(tmp_path: Path) -> None:
    path = tmp_path / "var" / "key"
    key = key_from_file(path)
    assert key_from_file(path) == key
    assert path.stat().st_mode & 0o077 == 0
    first, second = AccountHash(key), AccountHash(key_from_file(path.with_name("another")))
    assert first("a") == AccountHash(key)("a")
    assert len({first("a"), first("b"), second("a"), "a"}) == 4
    with pytest.raises(ValueError, match="account_key"):
        AccountHash(b"short")
