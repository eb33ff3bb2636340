"""Send dead letters again, once what made them fail is mended.

    python -m bourse.event_log.replay SERVICE [ID ...]

Without ids it lists them. With `all`, or with ids, each goes back to the end of the topic it came
from, through the service's outbox: every group meets it again, and those that had it know it.
"""

import argparse
import asyncio
import importlib
from collections.abc import Sequence

from sqlalchemy import delete, select

from bourse import migrate
from bourse.database import Database
from bourse.event_log import Topic
from bourse.event_log.outbox import enqueue
from bourse.event_log.tables import ConsumerTables
from bourse.settings import Settings

ALL = "all"


async def replay(
    database: Database, tables: ConsumerTables, ids: Sequence[int] | None = None
) -> int:
    """Move dead letters (None: all) to the outbox; return how many. A publisher ships them."""
    letters = tables.dead_letter
    query = select(letters).order_by(letters.c.id)
    if ids is not None:
        query = query.where(letters.c.id.in_(ids))
    async with database.begin() as connection:
        found = (await connection.execute(query)).all()
        for each in found:
            await enqueue(connection, tables, Topic(each.topic), each.key, each.value)
        gone = [each.id for each in found]
        await connection.execute(delete(letters).where(letters.c.id.in_(gone)))
    return len(found)


async def main(service: str, ids: list[str]) -> None:
    found: ConsumerTables = importlib.import_module(f"services.{service}.tables").consumer_tables
    database = Database(migrate.database_url(service, Settings()))
    try:
        if ids:
            chosen = None if ids == [ALL] else [int(each) for each in ids]
            print(f"{await replay(database, found, chosen)} sent again")
            return
        letters = found.dead_letter
        async with database.read() as connection:
            for each in await connection.execute(select(letters).order_by(letters.c.id)):
                source = f"{each.topic}/{each.partition}/{each.record_offset}"
                print(each.id, source, each.event_id, each.error_class, each.reason, sep="\t")
    finally:
        await database.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="List dead letters, or send them again.")
    parser.add_argument("service")
    parser.add_argument("ids", nargs="*", metavar="id")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.service, arguments.ids))
