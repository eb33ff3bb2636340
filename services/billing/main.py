"""Wires billing: database, consumer, outbox, lease sweep and the gRPC service."""

from bourse import migrate
from bourse.event_log import ACCOUNTS, GENERATIONS, dead_letter_topic
from bourse.event_log.consumer import Consumer
from bourse.event_log.outbox import Publisher
from bourse.process import Process
from bourse.settings import Settings
from bourse.v1 import billing_pb2_grpc
from services.billing import consumer
from services.billing.grpc_api import BillingApi
from services.billing.leases import Rule
from services.billing.settings import ServiceSettings
from services.billing.sweep import Sweep
from services.billing.tables import consumer_tables


async def start(process: Process, settings: Settings) -> None:
    own = ServiceSettings()
    database = process.database(settings.database_url("billing", own.database_url))
    log = await process.event_log()
    if database.is_sqlite:
        await migrate.upgrade(database, "billing")
        await log.create_topics([GENERATIONS, ACCOUNTS, dead_letter_topic(GENERATIONS)])

    publisher = Publisher(database, consumer_tables, log)
    reader = Consumer(
        log,
        GENERATIONS,
        consumer.GROUP,
        database,
        consumer_tables,
        consumer.handle,
        after=publisher.wake,
    )
    sweep = Sweep(
        database,
        lambda: log.lag(GENERATIONS, consumer.GROUP),
        own.sweep_interval_s,
        own.sweep_wait_s,
    )
    rule = Rule(
        cap_nano=own.lease_cap_nano,
        ttl_ms=own.lease_ttl_s * 1000,
        grace_ms=own.lease_grace_s * 1000,
        estimates_min=own.lease_estimates_min,
    )
    process.network.serve(
        billing_pb2_grpc.BillingStub, BillingApi(database, rule, wake=publisher.wake)
    )
    process.background("billing consumer", reader.run())
    process.background("billing outbox", publisher.run())
    process.background("billing leases", sweep.run())
    process.alive_when("billing consumer", reader.alive)
