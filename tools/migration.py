"""Write a migration from the difference between a service's tables and its history.

`make migration SERVICE=billing M="why"`: a fresh SQLite file is brought to the newest version and
compared with services/<service>/tables.py. Read the result before committing it.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from alembic import command
from sqlalchemy import Connection

from bourse import migrate
from bourse.database import Database


def write(connection: Connection, service: str, message: str) -> None:
    made = migrate.config(service)
    made.attributes["connection"] = connection
    number = len(list((Path("services") / service / "migrations").glob("[0-9]*.py"))) + 1
    command.revision(made, message=message, autogenerate=True, rev_id=f"{number:04}")


async def main(service: str, message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/{service}.sqlite")
        try:
            await migrate.upgrade(database, service)
            async with database.begin() as connection:
                await connection.run_sync(write, service, message)
        finally:
            await database.close()


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in migrate.SERVICES or not sys.argv[2]:
        names = ", ".join(migrate.SERVICES)
        raise SystemExit(f'make migration SERVICE=… M="why"; services with tables: {names}')
    asyncio.run(main(*sys.argv[1:]))
