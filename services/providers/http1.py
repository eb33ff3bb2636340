"""The upstream client: HTTP/1.1 behind httpx's transport seam.

Dialects build `httpx.Request` and read `httpx.Response`; what carries them is this one class. It is
ours because the request path is: it costs about half of what the cheapest general client costs here
(`python -m benchmarks.upstream_client`), and three of Bourse's rules live at the socket: the
address that the egress guard has checked is the address that is dialled; a kept-alive connection
that dies before a byte is retried once, for free; and a caller that stops reading stops the
upstream. It follows no redirect, uses no proxy and speaks no HTTP/2.
"""

import asyncio
import ssl
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import httpx

from services.providers.http1_connection import Connection

Address = tuple[str, int]
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Host and port -> the addresses that may be dialled, checked; raises httpx.ConnectError."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the client. The read timeout of one request may be given in its extensions."""

    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    idle_s: float = 15.0
    """A connection unused for longer is not used again: most servers close theirs later."""
    connections_per_pool: int = 1024
    acquire_timeout_s: float = 5.0


PoolKey = tuple[str, str, int, str]
"""Scheme, host, port, and whose pool: endpoints do not share connections (failures.md S4)."""


@dataclass(slots=True)
class _Pool:
    idle: list[Connection] = field(default_factory=list)
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1024))


class Http1Transport(httpx.AsyncBaseTransport):
    """An httpx transport. Extensions of a request: `pool` (str), `read_timeout_s` (float)."""

    def __init__(
        self, resolve: Resolve, limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._resolve = resolve
        self._limits = limits or Limits()
        self._tls = tls
        self._pools: dict[PoolKey, _Pool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return once the answer's headers are here, its body unread.

        Raises httpx.ConnectError, ConnectTimeout, PoolTimeout, ReadTimeout, RemoteProtocolError.
        """
        url = request.url
        key = (
            url.scheme,
            url.host,
            url.port or _PORTS[url.scheme],
            request.extensions.get("pool", ""),
        )
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(
                free=asyncio.Semaphore(self._limits.connections_per_pool)
            )
        timeout_s = request.extensions.get("read_timeout_s", self._limits.read_timeout_s)
        data = _encode(request)
        if pool.free.locked():
            try:
                async with asyncio.timeout(self._limits.acquire_timeout_s):
                    await pool.free.acquire()
            except TimeoutError:
                raise httpx.PoolTimeout("no free connection", request=request) from None
        else:
            await pool.free.acquire()
        connection: Connection | None = None
        try:
            connection = await self._headed(pool, key, data, timeout_s)
            body = Body(connection, pool, timeout_s, _decoder(connection.headers))
        except BaseException:
            if connection is not None:
                connection.close()
            pool.free.release()
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=body)

    async def aclose(self) -> None:
        for pool in self._pools.values():
            for connection in pool.idle:
                connection.close()
            pool.idle.clear()

    async def _headed(self, pool: _Pool, key: PoolKey, data: bytes, timeout_s: float) -> Connection:
        """Send `data` on some connection and wait for the headers."""
        connection = self._from_pool(pool)
        while True:
            reused = connection is not None
            if connection is None:
                connection = await self._connect(key)
            deadline = connection.deadline(timeout_s)
            try:
                connection.send(data)
                while not connection.headed:
                    await connection.wait(deadline)
                return connection
            except BaseException as error:
                connection.close()
                stale = reused and not connection.touched
                if not (stale and isinstance(error, httpx.RemoteProtocolError)):
                    raise
            connection = None  # the server had closed it meanwhile: once more, on a new one

    def _from_pool(self, pool: _Pool) -> Connection | None:
        oldest = time.monotonic() - self._limits.idle_s
        while pool.idle:
            connection = pool.idle.pop()
            if connection.closed:
                continue
            if connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, key: PoolKey) -> Connection:
        scheme, host, port, _ = key
        tls = self._context() if scheme == "https" else None
        failure: Exception = httpx.ConnectError(f"no address for {host}")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                for address, number in await self._resolve(host, port):
                    try:
                        _, connection = await loop.create_connection(
                            Connection,
                            address,
                            number,
                            ssl=tls,
                            server_hostname=host if tls else None,
                        )
                        return connection
                    except (OSError, ssl.SSLError) as error:
                        failure = httpx.ConnectError(f"{type(error).__name__} at {host}:{port}")
        except TimeoutError:
            raise httpx.ConnectTimeout(f"not connected to {host}:{port} in time") from None
        raise failure

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


class Body(httpx.AsyncByteStream):
    """An answer's body as it comes. Closing it early closes the connection: upstream stops."""

    def __init__(
        self,
        connection: Connection,
        pool: _Pool,
        timeout_s: float,
        decoder: "_Decoder | None",
    ) -> None:
        self._connection = connection
        self._pool = pool
        self._timeout_s = timeout_s
        self._decoder = decoder
        self._decoded: deque[bytes] = deque()
        self._released = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        while not self._decoded:
            data = connection.take()
            if data is None:
                if connection.complete:
                    self._release()
                    raise StopAsyncIteration
                await connection.wait(connection.deadline(self._timeout_s))
            elif self._decoder is None:
                return data
            else:
                self._decoded.extend(self._decoder(data))
        return self._decoded.popleft()

    def finish(self) -> bool:
        """Close without waiting, dropping what is unread, if all of it has come; else False."""
        connection = self._connection
        if not connection.complete:
            return False
        connection.take()
        self._release()
        return True

    async def aclose(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        connection = self._connection
        if connection.reusable:
            connection.idle_since = time.monotonic()
            self._pool.idle.append(connection)
        else:
            connection.close()
        self._pool.free.release()


_Decoder = Callable[[bytes], list[bytes]]
_INFLATED_PIECE = 64 * 1024
_INFLATED_PIECES_MAX = 256  # out of one read


def _decoder(headers: list[tuple[bytes, bytes]]) -> _Decoder | None:
    """We ask for no compression; a server that compresses anyway may use gzip or deflate."""
    encoding = b""
    for name, value in headers:
        if name.lower() == b"content-encoding":
            encoding = value.strip().lower()
    if encoding in (b"", b"identity"):
        return None
    if encoding not in (b"gzip", b"deflate"):
        raise httpx.RemoteProtocolError(
            f"content-encoding {encoding.decode('latin-1')} not asked for"
        )
    inflater = zlib.decompressobj(wbits=47 if encoding == b"gzip" else zlib.MAX_WBITS)

    def inflate(data: bytes) -> list[bytes]:
        pieces = []
        try:
            while data:  # in bounded pieces: a few bytes may hold gigabytes
                pieces.append(inflater.decompress(data, _INFLATED_PIECE))
                data = inflater.unconsumed_tail
                if len(pieces) > _INFLATED_PIECES_MAX:
                    raise httpx.RemoteProtocolError("compressed answer inflates beyond bounds")
        except zlib.error as error:
            raise httpx.RemoteProtocolError(f"malformed {encoding.decode()}: {error}") from None
        return [piece for piece in pieces if piece]

    return inflate


_PORTS = {"http": 80, "https": 443}
_OURS = frozenset(
    {b"host", b"content-length", b"connection", b"accept-encoding", b"transfer-encoding"}
)


def _encode(request: httpx.Request) -> bytes:
    """The request as bytes. Its body must have been read."""
    body = request.content
    url = request.url
    head = _head(request.method, url.raw_path, url.netloc, tuple(request.headers.raw))
    return b"%s%d\r\n\r\n%s" % (head, len(body), body)


@lru_cache(maxsize=1024)
def _head(method: str, path: bytes, host: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """A request up to its length: the same for every call of an endpoint."""
    lines = [b"%s %s HTTP/1.1\r\nhost: %s" % (method.encode(), path, host)]
    lines += [b"%s: %s" % header for header in headers if header[0].lower() not in _OURS]
    return b"\r\n".join([*lines, b"accept-encoding: identity", b"content-length: "])
