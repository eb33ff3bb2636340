"""Start the worker: the data plane, which calls providers and records every attempt."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from bourse import rating
from bourse.event_log import GENERATIONS
from bourse.event_log.forwarder import Forwarder
from bourse.event_log.spool import Spool
from bourse.process import Process
from bourse.rpc import RpcError
from bourse.settings import Settings
from bourse.v1.billing_pb2 import ConfirmLeasesRequest
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.generation_pb2_grpc import GenerationStub
from bourse.v1.registry_pb2_grpc import RegistryStub
from services.providers.egress import Guard
from services.providers.endpoints import Endpoints, Watching
from services.providers.generation import Bounds, Generator
from services.providers.generation_api import GenerationApi
from services.providers.http1 import Limits
from services.providers.measures import Measures
from services.providers.records import Records
from services.providers.sandbox import SandboxTransport
from services.providers.settings import ServiceSettings
from services.providers.transport import Upstream, guarded_http
from services.providers.watchdog import Patience

if TYPE_CHECKING:
    from bourse.v1.billing_pb2_grpc import BillingAsyncStub

log = logging.getLogger(__name__)

DRAIN_SPOOL_S = 20.0
CONFIRM_TIMEOUT_S = 5.0


async def start(process: Process, settings: Settings) -> None:
    """Build the worker and serve `Generation`."""
    own = ServiceSettings()
    guard = own.guard(settings)
    spool = Spool(own.spool_directory or settings.var / "spool", max_bytes=own.spool_max_bytes)
    spool.open()
    process.on_close(partial(_close, spool))
    max_unshipped_nano = round(own.max_unshipped_usd * rating.NANO_PER_USD)
    records = Records(spool, process.instance, process.boot, max_unshipped_nano)
    records.recover()
    forwarder = Forwarder(
        spool, await process.event_log(), GENERATIONS, retention_s=own.spool_retention_s
    )
    registry = cast(Watching, process.network.connect(settings.registry_url, RegistryStub))
    endpoints = Endpoints(registry, own.sealer(settings), guard, process.instance)
    upstream = _upstream(own, guard)
    process.on_close(upstream.aclose)
    generator = Generator(endpoints, records, upstream, _bounds(own))
    api = GenerationApi(generator, Measures(spool, records))
    process.network.serve(GenerationStub, api)
    process.on_close(api.close)

    billing = cast("BillingAsyncStub", process.network.connect(settings.billing_url, BillingStub))
    process.background("worker endpoints", endpoints.run())
    process.background("worker forwarder", forwarder.run())
    process.background("worker leases", _confirm(billing, records, process, own.confirm_leases_s))
    process.ready_when("endpoints", lambda: endpoints.synced)
    process.on_drain(api.drain)
    process.on_drain(partial(_ship, forwarder))


def _upstream(own: ServiceSettings, guard: Guard) -> Upstream:
    limits = Limits(
        connect_timeout_s=own.connect_timeout_s,
        read_timeout_s=own.total_timeout_s,  # the watchdog's patience is shorter, and knows why
        idle_s=own.keepalive_s,
        connections_per_pool=own.connections_per_endpoint,
    )
    http = guarded_http(guard, limits)
    return Upstream({"http": http, "https": http, "sandbox": SandboxTransport()})


def _bounds(own: ServiceSettings) -> Bounds:
    return Bounds(
        patience=Patience(
            first_byte_s=own.first_byte_timeout_s,
            idle_s=own.idle_timeout_s,
            content_s=own.content_timeout_s,
            total_s=own.total_timeout_s,
        ),
        answer_max_bytes=own.answer_max_bytes,
        quantum_tokens=own.quantum_tokens,
        checkpoint_tokens=own.checkpoint_tokens,
        checkpoint_s=own.checkpoint_s,
    )


async def _ship(forwarder: Forwarder) -> None:
    """Ship what is settled; what cannot be shipped in time stays for the next start."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SPOOL_S):
            await forwarder.drain()


async def _close(spool: Spool) -> None:
    spool.close()


async def _confirm(
    billing: "BillingAsyncStub", records: Records, process: Process, every_s: float
) -> None:
    """Tell billing, at boot and ever after, which leases may still be spent from here."""
    while True:
        request = ConfirmLeasesRequest(
            worker=process.instance, boot=process.boot, leases=sorted(records.leases())
        )
        try:
            await billing.ConfirmLeases(request, timeout=CONFIRM_TIMEOUT_S)
        except RpcError as error:
            log.warning("leases not confirmed: %s", error)
        await asyncio.sleep(every_s)
