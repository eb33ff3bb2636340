"""Commands of edge: `python -m services.edge create-account --name … --credit-usd …`."""

import argparse
import asyncio
import json
import sys
from decimal import Decimal, InvalidOperation

from bourse import migrate
from bourse.database import Database
from bourse.event_log import IDENTITY, open_event_log
from bourse.event_log.outbox import Publisher
from bourse.rating import NANO_PER_USD
from bourse.rpc import Network, RpcError
from bourse.settings import LOCAL, Settings
from bourse.v1.billing_pb2_grpc import BillingStub
from services.edge import accounts, tables
from services.edge.accounts import CreatedAccount
from services.edge.settings import ServiceSettings

SHIP_TIMEOUT_S = 10.0


def usd(text: str) -> int:
    """Read USD as nano-USD."""
    try:
        nano = Decimal(text) * NANO_PER_USD
    except InvalidOperation:
        raise argparse.ArgumentTypeError("not a number") from None
    if not nano.is_finite() or nano < 0 or nano != int(nano):
        raise argparse.ArgumentTypeError("0 or more, with at most nine decimals")
    return int(nano)


async def create(name: str, credit_nano: int) -> CreatedAccount:
    """Create an account and tell every edge of its keys."""
    settings, own = Settings(), ServiceSettings()
    network = Network()
    database = Database(settings.database_url("edge", own.database_url))
    log = open_event_log(settings.log_url())
    await log.start()
    try:
        if database.is_sqlite:
            await migrate.upgrade(database, "edge")
            await log.create_topics([IDENTITY])
        billing = network.connect(settings.billing_url, BillingStub)
        created = await accounts.create_account(
            database, billing, name=name, credit_nano=credit_nano
        )
        publisher = Publisher(database, tables.log, log)
        async with asyncio.timeout(SHIP_TIMEOUT_S):
            while await publisher.ship():
                pass
        return created
    finally:
        await log.close()
        await database.close()
        await network.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.edge", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("create-account", help="make an account with two keys")
    command.add_argument("--name", required=True)
    command.add_argument("--credit-usd", type=usd, default=0, metavar="USD")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.credit_usd and Settings().billing_url == LOCAL:
        parser.error("credit is billing's: set BOURSE_BILLING_URL to where billing listens")
    try:
        created = asyncio.run(create(arguments.name, arguments.credit_usd))
    except RpcError as error:
        print(f"billing: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(
            json.dumps(
                {
                    "account": created.account,
                    "inference_key": created.inference_key,
                    "management_key": created.management_key,
                }
            )
        )
    else:
        print(f"account         {created.account}")
        print(f"inference key   {created.inference_key}")
        print(f"management key  {created.management_key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
