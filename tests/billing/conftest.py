"""Books on SQLite and on PostgreSQL, made by the real migrations."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bourse import migrate
from bourse.database import Database
from tests.billing.builders import Books


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with billing's schema, to copy."""
    path = tmp_path_factory.mktemp("billing") / "template.sqlite"

    async def make() -> None:
        database = Database(f"sqlite:///{path}")
        await migrate.upgrade(database, "billing")
        await database.close()

    asyncio.run(make())
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'billing.sqlite'}")
    else:
        opened = Database(request.getfixturevalue("postgres").url)
    await migrate.upgrade(opened, "billing")
    yield opened
    await opened.close()


@pytest.fixture
async def books(database: Database) -> AsyncIterator[Books]:
    """Empty books. Whatever a test did, they must prove at its end."""
    opened = Books(database)
    yield opened
    assert await opened.failing_checks() == []
