"""Wire routing: two views over the event log, one RPC, no database."""

from bourse.process import Process
from bourse.settings import Settings
from bourse.v1.routing_pb2_grpc import RoutingStub
from services.routing.grpc_api import RoutingApi
from services.routing.settings import ServiceSettings
from services.routing.views import Views


async def start(process: Process, settings: Settings) -> None:
    """Start routing; it is ready once both topics have been read up to their ends."""
    own = ServiceSettings()
    views = Views(await process.event_log(), replay_ms=round(own.replay_s * 1_000))
    process.network.serve(RoutingStub, RoutingApi(views))
    process.background("routing: catalogue", views.follow_catalogue())
    process.background("routing: health", views.follow_health())
    process.ready_when("routing: caught up", lambda: views.caught_up)
