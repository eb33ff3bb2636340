"""Wires edge: identity, the request path, the ordinary routes, and the HTTP server."""

import asyncio

from bourse import migrate
from bourse.event_log import ACCOUNTS, CATALOG, IDENTITY
from bourse.event_log.outbox import Publisher
from bourse.multiplex import WorkerPool
from bourse.process import Process
from bourse.settings import Settings
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.ranking_pb2_grpc import RankingStub
from bourse.v1.registry_pb2_grpc import RegistryStub
from bourse.v1.routing_pb2_grpc import RoutingStub
from services.edge import (
    app,
    boards_api,
    catalogue,
    keys_api,
    providers_api,
    records,
    server,
    tables,
)
from services.edge.breakers import Breakers
from services.edge.completion import Bounds, Edge
from services.edge.credit_news import CreditNews
from services.edge.identity import Identity
from services.edge.inference import Inference
from services.edge.leases import LeasePool
from services.edge.listings import Listings
from services.edge.meters import Meters
from services.edge.plans import PlanCache
from services.edge.reply import Timing
from services.edge.settings import ServiceSettings
from services.edge.ulid import Ulids


async def start(process: Process, settings: Settings) -> None:
    """Start edge; it is ready once it knows every key and listens."""
    own = ServiceSettings()
    database = process.database(settings.database_url("edge", own.database_url))
    log = await process.event_log()
    if database.is_sqlite:
        await migrate.upgrade(database, "edge")
        await log.create_topics([IDENTITY, CATALOG, ACCOUNTS])
    publisher = Publisher(database, tables.log, log)
    identity = Identity()
    listings = Listings()

    network = process.network
    billing = network.connect(settings.billing_url, BillingStub)
    workers = WorkerPool(network, settings.worker_urls)
    await workers.start()
    process.on_close(workers.close)
    plans = PlanCache(
        network.connect(settings.routing_url, RoutingStub),
        fresh_s=own.plan_fresh_ms / 1_000,
        stale_s=own.plan_stale_ms / 1_000,
        deadline_s=own.plan_deadline_s,
        plans_max=own.plans_max,
    )
    process.on_close(plans.close)
    leases = LeasePool(
        billing,
        f"{process.instance}.{process.boot}",
        lease_deadline_s=own.lease_deadline_s,
        refusal_remembered_s=own.refusal_remembered_s,
    )
    inference = Inference(
        identity=identity,
        edge=Edge(plans, leases, workers, Breakers(), Ulids(), bounds(own)),
        meters=Meters(),
        body_limit_bytes=own.body_limit_bytes,
        body_deadline_s=own.body_deadline_s,
        trace_sample_ratio=settings.trace_sample_ratio,
    )
    deadline_s = own.records_deadline_s
    routers = [
        catalogue.routes(listings, own.public_url),
        records.routes(
            identity,
            billing,
            deadline_s=deadline_s,
            first_token_deadline_s=own.first_token_deadline_s,
        ),
        keys_api.routes(
            identity, database, billing, published=publisher.wake, deadline_s=deadline_s
        ),
        providers_api.routes(
            identity, network.connect(settings.registry_url, RegistryStub), listings, deadline_s
        ),
        boards_api.routes(network.connect(settings.ranking_url, RankingStub), deadline_s),
    ]
    pages = app.pages(inference, routers, process)
    http = server.server(app.App(inference, pages), own.header_keep_alive_s)
    listener = server.listen(own.host, own.port)

    served = asyncio.Event()

    async def serve() -> None:
        try:
            await http.serve(sockets=[listener])
        finally:
            served.set()

    async def drain() -> None:
        """Readiness is off by now: serve on until balancers know, then finish what is open."""
        await asyncio.sleep(own.endpoint_removal_s)
        http.should_exit = True
        await served.wait()
        await leases.shutdown()

    process.background("edge keys", identity.run(log))
    process.background("edge catalogue", listings.run(log))
    process.background("edge credit news", CreditNews(leases).run(log))
    process.background("edge outbox", publisher.run())
    process.background("edge leases", leases.run())
    process.background("edge http", serve())
    process.ready_when("edge keys", lambda: identity.caught_up)
    process.ready_when("edge http", lambda: http.started)
    process.on_drain(drain)


def bounds(own: ServiceSettings) -> Bounds:
    return Bounds(
        timing=Timing(own.hold_back_s, own.keep_alive_s, own.write_stall_s),
        first_token_deadline_s=own.first_token_deadline_s,
        answer_deadline_s=own.answer_deadline_s,
        attempts_per_model=own.attempts_per_model,
        expected_output_tokens=own.expected_output_tokens,
        quantum_tokens=own.quantum_tokens,
    )
