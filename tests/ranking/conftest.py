"""Ranking's database, migrated, on both of the kinds it runs on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bourse import migrate
from bourse.database import Database


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/ranking.sqlite"
    else:
        url = request.getfixturevalue("postgres").url
    made = Database(url)
    await migrate.upgrade(made, "ranking")
    yield made
    await made.close()
