"""Many attempts at once over one long-lived stream per pair of edge and worker.

It knows frames and windows, nothing of models or money. The edge's end:

    pool = WorkerPool(network, "grpc://worker-0:50051,grpc://worker-1:50051")    # or local:, dns:///
    await pool.start()
    exchange = pool.choose().open(facts, body, remaining_ms)     # raises NoWorker or Broken
    async for frame in exchange: ...                             # raises Broken
    exchange.cancel(CANCEL_REASON_CLIENT_LEFT)                   # then iterate on to the end

The worker's end:

    network.serve(GenerationStub, GenerationServicer(handler))   # async def handler(attempt)

The rules are in README.md beside this file. A worker in the same process is reached directly, by
the same calls with the same windows.
"""

from bourse.multiplex.attempt import Attempt, Left
from bourse.multiplex.attempts import Handler
from bourse.multiplex.direct import DirectLink
from bourse.multiplex.edge import StreamLink
from bourse.multiplex.exchange import Broken, Exchange, NoWorker, WorkerLink
from bourse.multiplex.pool import WorkerPool
from bourse.multiplex.worker import GenerationServicer

__all__ = [
    "Attempt",
    "Broken",
    "DirectLink",
    "Exchange",
    "GenerationServicer",
    "Handler",
    "Left",
    "NoWorker",
    "StreamLink",
    "WorkerLink",
    "WorkerPool",
]
