"""Call a service by URL: in this process directly, elsewhere through gRPC, with one interface.

    network = Network(ready=lambda: True)
    network.serve(billing_pb2_grpc.BillingStub, BillingApi(...))
    port = await network.listen("127.0.0.1:0")
    billing = network.connect("local:", billing_pb2_grpc.BillingStub)   # or grpc://…, dns:///…
    response = await billing.Lease(request, timeout=1.0)                # or raises RpcError

A servicer is any object with one coroutine method per RPC, `async def Lease(self, request,
context: Context) -> LeaseResponse`; a server-streaming RPC is an async generator with the same
arguments. It fails by raising RpcError. A direct call shares the message objects, so nobody
changes a message after handing it over.

A bidirectional RPC is `async def Generate(self, stream: Stream, context: Context) -> None`: a pipe
of serialised messages, whose one user, `bourse.multiplex`, brings its own direct link.
"""

from grpc import StatusCode

from bourse.rpc.call import DEFAULT_TIMEOUT_S, MAX_MESSAGE_BYTES, Context, RpcError, Stream
from bourse.rpc.client import ClientStream, target
from bourse.rpc.network import LOCAL, Network

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "LOCAL",
    "MAX_MESSAGE_BYTES",
    "ClientStream",
    "Context",
    "Network",
    "RpcError",
    "StatusCode",
    "Stream",
    "target",
]
