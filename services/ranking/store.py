"""Queries of ranking. Every function takes a connection and none commits."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bourse.direct import adding, any_of, inserting, prepared
from services.ranking.boards import Volume
from services.ranking.counting import DAY_HOURS, Attempt, Changes, EndpointHour
from services.ranking.tables import (
    OUTCOMES,
    account_model_day,
    attempt,
    endpoint_hour,
    endpoint_hour_histogram,
    model_hour,
)


async def known_attempts(connection: AsyncConnection, generations: Iterable[str]) -> list[Attempt]:
    """Return every attempt seen before of these generations."""
    return [Attempt(*row) for row in await _known.rows(connection, sorted(set(generations)))]


_known = prepared(
    select(*(attempt.c[name] for name in Attempt._fields)).where(
        any_of(attempt.c.generation, "generations")
    ),
    "generations",
)


async def insert_attempts(connection: AsyncConnection, attempts: Sequence[Attempt]) -> None:
    """Store attempts that `known_attempts` did not find.

    If another member stored one meanwhile (an account's key moved to another partition), this
    fails for its unique key, and the batch is tried again and finds it.
    """
    await _insert_attempt.many(connection, attempts)


_insert_attempt = inserting(attempt)


async def add(connection: AsyncConnection, changes: Changes) -> None:
    """Add to the rollups. Rows go in the order of their keys, so that members never deadlock."""
    models = sorted(changes.models.items())
    rows: list[tuple[Any, ...]] = [(*key, *numbers) for key, numbers in models if any(numbers)]
    await _add_models.many(connection, rows)
    accounts = sorted(changes.accounts.items())
    rows = [(*key, *numbers) for key, numbers in accounts if any(numbers)]
    await _add_accounts.many(connection, rows)
    rows = [_endpoint_row(*item) for item in sorted(changes.endpoints.items(), key=_key)]
    await _add_endpoints.many(connection, rows)
    rows = [(*key, count) for key, count in sorted(changes.histograms.items())]
    await _add_histograms.many(connection, rows)


_add_models = adding(model_hour, ("requests", "prompt_tokens", "completion_tokens", "cost_nano"))
_add_accounts = adding(account_model_day, ("requests", "tokens"))
_add_endpoints = adding(
    endpoint_hour,
    (*OUTCOMES, "prompt_tokens", "completion_tokens", "charge_nano", "insured_nano"),
)
_add_histograms = adding(endpoint_hour_histogram, ("count",))


def _key(item: tuple[tuple[int, str], object]) -> tuple[int, str]:
    return item[0]


def _endpoint_row(key: tuple[int, str], hour: EndpointHour) -> tuple[Any, ...]:
    return (
        *key,
        hour.model,
        hour.provider,
        *(hour.outcomes.get(outcome, 0) for outcome in OUTCOMES),
        hour.prompt_tokens,
        hour.completion_tokens,
        hour.charge_nano,
        hour.insured_nano,
    )


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
