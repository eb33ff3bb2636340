"""Operator's commands: `python -m services.billing verify` proves the books."""

import argparse
import asyncio

from bourse.database import Database
from bourse.settings import Settings
from services.billing.settings import ServiceSettings
from services.billing.verify import verify


async def prove() -> int:
    """Print every check; return 0 if all hold, 1 if not."""
    database = Database(Settings().database_url("billing", ServiceSettings().database_url))
    try:
        async with database.read() as connection:
            checks = await verify(connection)
    finally:
        await database.close()
    for check in checks:
        print(check)
    return 0 if all(check.holds for check in checks) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.billing", description=__doc__)
    parser.add_argument("command", choices=["verify"])
    parser.parse_args()
    return asyncio.run(prove())


if __name__ == "__main__":
    raise SystemExit(main())
