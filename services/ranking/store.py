"""Queries of ranking. Every function takes a connection and none commits."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Table, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.database import add_excluded, insert_if_absent, upsert
from services.ranking.boards import Volume
from services.ranking.counting import DAY_HOURS, Attempt, Changes
from services.ranking.tables import (
    OUTCOMES,
    account_model_day,
    attempt,
    endpoint_hour,
    endpoint_hour_histogram,
    model_hour,
)

SELECT_LIMIT = 1_000

_COLUMNS = [attempt.c[name] for name in Attempt.__slots__]


async def known_attempts(connection: AsyncConnection, generations: Iterable[str]) -> list[Attempt]:
    """Return every attempt seen before of these generations."""
    wanted = sorted(set(generations))
    found: list[Attempt] = []
    for start in range(0, len(wanted), SELECT_LIMIT):
        some = wanted[start : start + SELECT_LIMIT]
        rows = await connection.execute(select(*_COLUMNS).where(attempt.c.generation.in_(some)))
        found.extend(Attempt(*row) for row in rows)
    return found


async def insert_attempts(
    connection: AsyncConnection, attempts: Sequence[Attempt]
) -> set[tuple[str, int]]:
    """Store attempts; return the (generation, attempt) of those that were not there before."""
    rows = [asdict(each) for each in attempts]
    keys = [attempt.c.generation, attempt.c.attempt]
    inserted = await insert_if_absent(connection, attempt, rows, keys)
    return {(row.generation, row.attempt) for row in inserted}


async def add(connection: AsyncConnection, changes: Changes) -> None:
    """Add to the rollups. Rows go in the order of their keys, so that members never deadlock."""
    await _add(
        connection,
        model_hour,
        ("hour", "model"),
        ("requests", "prompt_tokens", "completion_tokens", "cost_nano"),
        [(*key, *numbers) for key, numbers in sorted(changes.models.items()) if any(numbers)],
    )
    await _add(
        connection,
        account_model_day,
        ("day", "model", "account_hash"),
        ("requests", "tokens"),
        [(*key, *numbers) for key, numbers in sorted(changes.accounts.items()) if any(numbers)],
    )
    await _add_endpoints(connection, changes)
    await _add(
        connection,
        endpoint_hour_histogram,
        ("hour", "endpoint", "measure", "input_bucket", "bucket"),
        ("count",),
        [(*key, count) for key, count in sorted(changes.histograms.items())],
    )


async def _add(
    connection: AsyncConnection,
    table: Table,
    key: tuple[str, ...],
    numbers: tuple[str, ...],
    values: list[tuple[Any, ...]],
) -> None:
    names = key + numbers
    rows = [dict(zip(names, row, strict=True)) for row in values]
    await upsert(connection, table, rows, key, add_excluded(connection, table, numbers))


async def _add_endpoints(connection: AsyncConnection, changes: Changes) -> None:
    numbers = (*OUTCOMES, "prompt_tokens", "completion_tokens", "charge_nano", "insured_nano")
    rows = [
        {
            "hour": key[0],
            "endpoint": key[1],
            "model": hour.model,
            "provider": hour.provider,
            **{outcome: hour.outcomes.get(outcome, 0) for outcome in OUTCOMES},
            "prompt_tokens": hour.prompt_tokens,
            "completion_tokens": hour.completion_tokens,
            "charge_nano": hour.charge_nano,
            "insured_nano": hour.insured_nano,
        }
        for key, hour in sorted(changes.endpoints.items())
    ]
    values = add_excluded(connection, endpoint_hour, numbers)
    await upsert(connection, endpoint_hour, rows, ("hour", "endpoint"), values)


async def volumes(connection: AsyncConnection, first_day: int, end_day: int) -> list[Volume]:
    """Return each model's use in `[first_day, end_day)`, with its accounts told apart."""
    hours = model_hour.c
    totals = await connection.execute(
        select(
            hours.model,
            func.sum(hours.prompt_tokens),
            func.sum(hours.completion_tokens),
            func.sum(hours.requests),
        )
        .where(hours.hour >= first_day * DAY_HOURS, hours.hour < end_day * DAY_HOURS)
        .group_by(hours.model)
    )
    days = account_model_day.c
    by_account = (
        select(days.model, func.sum(days.tokens).label("tokens"))
        .where(days.day >= first_day, days.day < end_day)
        .group_by(days.model, days.account_hash)
        .having(func.sum(days.requests) > 0)
        .subquery()
    )
    query = select(by_account.c.model, func.count(), func.max(by_account.c.tokens)).group_by(
        by_account.c.model
    )
    accounts = {model: (n, int(most)) for model, n, most in await connection.execute(query)}
    return [
        Volume(model, int(prompt), int(completion), int(requests), *accounts.get(model, (0, 0)))
        for model, prompt, completion, requests in totals
        if requests
    ]


async def count_accounts(
    connection: AsyncConnection, first_day: int, end_day: int, except_models: Sequence[str]
) -> int:
    """Count the distinct accounts that used any model but these."""
    days = account_model_day.c
    others = (
        select(days.account_hash)
        .where(days.day >= first_day, days.day < end_day, days.model.not_in(except_models))
        .group_by(days.account_hash)
        .having(func.sum(days.requests) > 0)
        .subquery()
    )
    return await connection.scalar(select(func.count()).select_from(others)) or 0


async def forget_accounts(connection: AsyncConnection, before_day: int) -> None:
    """Delete what tells accounts apart before a day; totals stay."""
    await connection.execute(delete(account_model_day).where(account_model_day.c.day < before_day))
    old = (attempt.c.hour < before_day * DAY_HOURS) & (attempt.c.account_hash != "")
    await connection.execute(update(attempt).where(old).values(account_hash=""))
