"""Bring databases to the newest schema: `python -m bourse.migrate [service ...]`.

One Alembic history per service serves SQLite and PostgreSQL. Version files lie in
`services/<service>/migrations/`, the tables they must match in `services/<service>/tables.py`.
Run as a command it also creates the topics of the event log.
"""

import argparse
import asyncio
import importlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, text

from bourse.database import Database
from bourse.event_log import (
    ACCOUNTS,
    CATALOG,
    GENERATIONS,
    IDENTITY,
    dead_letter_topic,
    open_event_log,
)
from bourse.settings import Settings

SERVICES = ("edge", "providers", "billing", "ranking")
"""The services that own a database."""

TOPICS = (GENERATIONS, CATALOG, IDENTITY, ACCOUNTS, dead_letter_topic(GENERATIONS))

_ROOT = Path(__file__).resolve().parent.parent
_LOCK_TIMEOUT = "10s"
_ADVISORY_LOCK = 0x626F75727365  # "bourse": one migration at a time per database


def metadata(service: str) -> MetaData:
    """The tables that a service declares."""
    tables = importlib.import_module(f"services.{service}.tables")
    found: MetaData = tables.metadata
    return found


def config(service: str) -> Config:
    """Alembic's configuration for one service; no ini file."""
    made = Config()
    made.set_main_option("script_location", str(_ROOT / "bourse" / "alembic"))
    made.set_main_option("version_locations", str(_ROOT / "services" / service / "migrations"))
    made.set_main_option("path_separator", "os")
    made.attributes["service"] = service
    return made


async def upgrade(database: Database, service: str) -> None:
    """Apply what is missing, in one transaction, while no other process migrates."""

    def run(connection: Connection) -> None:
        made = config(service)
        made.attributes["connection"] = connection
        command.upgrade(made, "head")

    async with database.begin() as connection:
        if not database.is_sqlite:
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        await connection.run_sync(run)


async def create_topics(settings: Settings) -> None:
    event_log = open_event_log(settings.log_url())
    await event_log.start()
    try:
        await event_log.create_topics(
            TOPICS, settings.generations_partitions, settings.replication_factor
        )
    finally:
        await event_log.close()


def database_url(service: str, settings: Settings) -> str:
    """The URL that the service's own settings name."""
    module = importlib.import_module(f"services.{service}.settings")
    url: str = module.ServiceSettings().database_url
    return settings.database_url(service, url)


async def main(services: list[str]) -> None:
    settings = Settings()
    for service in services:
        database = Database(database_url(service, settings))
        try:
            await upgrade(database, service)
        finally:
            await database.close()
        print(f"{service}: migrated")
    await create_topics(settings)
    print("topics: created")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Migrate databases and create topics.")
    parser.add_argument("services", nargs="*", default=list(SERVICES), metavar="service")
    asyncio.run(main(parser.parse_args().services))
