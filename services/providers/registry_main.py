"""Start the registry: who sells which model, where and at what price."""

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from bourse import migrate
from bourse.event_log.outbox import Publisher
from bourse.process import Process
from bourse.settings import Settings
from bourse.v1.registry_pb2_grpc import RegistryStub
from services.providers.endpoints import dialect_names
from services.providers.grpc_api import RegistryApi
from services.providers.presets import PRESETS
from services.providers.registration import Known
from services.providers.registry import Registry, Rules
from services.providers.settings import ServiceSettings
from services.providers.tables import consumer_tables

log = logging.getLogger(__name__)


async def start(process: Process, settings: Settings) -> None:
    """Build the registry and serve `Registry`."""
    own = ServiceSettings()
    database = process.database(settings.database_url("providers", own.database_url))
    if database.is_sqlite:
        await migrate.upgrade(database, "providers")
    publisher = Publisher(database, consumer_tables, await process.event_log())
    rules = Rules(
        known=Known(own.guard(settings), dialect_names(), frozenset(PRESETS)),
        commission_bps=own.commission_bps,
        increase_notice_ms=own.increase_notice_s * 1000,
    )
    registry = Registry(database, publisher, rules)
    api = RegistryApi(registry, own.sealer(settings), poll_s=own.registry_poll_s)
    process.network.serve(RegistryStub, api)
    process.background("registry outbox", publisher.run())
    process.background("registry prices", _turn_prices(registry, own.prices_poll_s))


async def _turn_prices(registry: Registry, poll_s: float) -> None:
    while True:
        try:
            await registry.publish_due()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("prices not turned, again in %.0f s: %s", poll_s, error)
        await asyncio.sleep(poll_s)
