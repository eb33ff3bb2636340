"""Wire ranking: one database, one consumer of `generations`, one RPC."""

import asyncio
import logging
import time

from sqlalchemy.exc import SQLAlchemyError

from bourse import migrate
from bourse.database import Database
from bourse.event_log import GENERATIONS
from bourse.event_log.consumer import Consumer
from bourse.event_log.outbox import Publisher
from bourse.process import Process
from bourse.settings import Settings
from bourse.v1.ranking_pb2_grpc import RankingStub
from services.ranking import store
from services.ranking.accounts import AccountHash, key_from_file
from services.ranking.boards import Publication
from services.ranking.consumer import Counter
from services.ranking.grpc_api import RankingApi
from services.ranking.settings import ServiceSettings
from services.ranking.tables import consumer_tables

log = logging.getLogger(__name__)

GROUP = "ranking"
FORGET_EVERY_S = 3_600.0
DAY_S = 86_400


async def start(process: Process, settings: Settings) -> None:
    """Start ranking. It answers from what it has counted, so it is ready at once."""
    own = ServiceSettings()
    database = process.database(settings.database_url("ranking", own.database_url))
    if database.is_sqlite:
        await migrate.upgrade(database, "ranking")
    event_log = await process.event_log()
    key = own.account_key.encode() or key_from_file(settings.var / "ranking_account.key")
    counter = Counter(AccountHash(key))
    consumer = Consumer(event_log, GENERATIONS, GROUP, database, consumer_tables, counter.handle)
    dead_letters = Publisher(database, consumer_tables, event_log)
    api = RankingApi(
        database,
        Publication(own.min_accounts, own.max_account_share),
        running_windows=own.running_windows,
        cache_ms=round(own.board_cache_s * 1_000),
    )
    process.network.serve(RankingStub, api)
    process.background("ranking: consumer", consumer.run())
    process.background("ranking: outbox", dead_letters.run())
    process.background("ranking: forget accounts", forget(database, own.account_days))
    process.alive_when("ranking: consumer", consumer.alive)


async def forget(database: Database, account_days: int) -> None:
    """Delete what tells accounts apart once it is `account_days` old, every hour, for ever."""
    while True:
        try:
            async with database.begin() as connection:
                await store.forget_accounts(connection, int(time.time()) // DAY_S - account_days)
        except (SQLAlchemyError, OSError) as error:
            log.warning("old accounts are forgotten later: %s", error)
        await asyncio.sleep(FORGET_EVERY_S)
