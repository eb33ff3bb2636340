"""Fail when a service's migrations do not lead to its tables, on SQLite or on PostgreSQL.

Each history is applied to an empty database and the result compared with the tables that the
service declares. PostgreSQL is the tests' own: Debian's or the one that pip installs.
"""

import asyncio
import io
import os
import sys
import tempfile

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection

from bourse import migrate
from bourse.database import Database
from tests import postgres


def compare(connection: Connection, service: str) -> None:
    made = migrate.config(service)
    made.attributes["connection"] = connection
    made.stdout = io.StringIO()
    command.check(made)


async def fault(url: str, service: str) -> str:
    """Return "" when the migrations lead to the tables, else what is missing."""
    database = Database(url)
    try:
        await migrate.upgrade(database, service)
        async with database.begin() as connection:
            await connection.run_sync(compare, service)
    except CommandError as error:
        return str(error)
    finally:
        await database.close()
    return ""


def faults(name: str, urls: dict[str, str]) -> list[str]:
    found = {service: asyncio.run(fault(url, service)) for service, url in urls.items()}
    return [f"{name}, {service}: {wrong}" for service, wrong in found.items() if wrong]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        urls = {service: f"sqlite:///{folder}/{service}.sqlite" for service in migrate.SERVICES}
        found = faults("SQLite", urls)
    server = postgres.find()
    if isinstance(server, str):
        print(f"note: checked on SQLite alone: {server}")
        found += ["PostgreSQL is required here"] if os.environ.get("BOURSE_REQUIRE_REAL") else []
    else:
        try:
            urls = {name: asyncio.run(server.create(name)) for name in migrate.SERVICES}
            found += faults("PostgreSQL", urls)
        finally:
            server.stop()
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
