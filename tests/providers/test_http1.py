"""The upstream client against a real server that misbehaves byte by byte."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx
import pytest

from services.providers.http1 import Http1Transport, Limits
from services.providers.http1_connection import BUFFER_BYTES

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


class Server:
    """Serves each accepted connection with `handler`; counts connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.closed_by_client = asyncio.Event()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_by_client.set()
        finally:
            writer.close()


async def loopback(host: str, port: int) -> Sequence[tuple[str, int]]:
    return [("127.0.0.1", port)]


@pytest.fixture
async def transport() -> AsyncIterator[Http1Transport]:
    made = Http1Transport(loopback, Limits(read_timeout_s=5, connect_timeout_s=5))
    yield made
    await made.aclose()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def post(server: Server, body: bytes = b"{}", **extensions: object) -> httpx.Request:
    return httpx.Request(
        "POST",
        f"http://vendor.example:{server.port}/v1/chat?x=1",
        content=body,
        headers={"authorization": "Bearer s", "content-type": "application/json"},
        extensions=extensions,
    )


async def body_of(response: httpx.Response) -> bytes:
    return b"".join([piece async for piece in response.aiter_raw()])


def answering(*writes: bytes, close: bool = False) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for data in writes:
                writer.write(data)
                await writer.drain()
            if close:
                return

    return handle


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 11\r\n\r\nhello world",
        CHUNKED,
        b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n" + CHUNKED,
    ],
)
@pytest.mark.parametrize("step", [1, 7, 100_000])
async def test_f19_the_body_is_the_same_however_it_is_cut(
    transport: Http1Transport, answer: bytes, step: int
) -> None:
    pieces = [answer[at : at + step] for at in range(0, len(answer), step)]
    async with Server(answering(*pieces)) as server:
        for _ in range(2):
            response = await transport.handle_async_request(post(server))
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/plain"
            assert await body_of(response) == b"hello world"
        assert server.connections == 1  # kept alive


async def test_a_body_may_end_with_its_connection(transport: Http1Transport) -> None:
    async with Server(answering(OK + b"\r\n", b"hello ", b"world", close=True)) as server:
        response = await transport.handle_async_request(post(server))
        assert await body_of(response) == b"hello world"


async def test_the_request_arrives_whole_and_names_the_host(transport: Http1Transport) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(OK + b"content-length: 0\r\n\r\n")

    async with Server(handle) as server:
        await body_of(await transport.handle_async_request(post(server, b"x" * 300_000)))
        head, body = seen[0]
        assert head.startswith(b"POST /v1/chat?x=1 HTTP/1.1\r\n")
        assert f"host: vendor.example:{server.port}\r\n".encode() in head
        assert head.count(b"authorization: Bearer s\r\n") == 1
        assert body == b"x" * 300_000


async def test_f16_P5_a_stale_connection_is_retried_once_on_a_new_one(
    transport: Http1Transport,
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        if server.connections == 1:
            await reader.readuntil(b"\r\n\r\n")  # the second request arrives, and is never answered
            return
        await read_request(reader)

    server = Server(handle)
    async with server:
        for _ in range(2):
            assert await body_of(await transport.handle_async_request(post(server))) == b"ok"
        assert server.connections == 2


async def test_a_new_connection_that_dies_is_not_retried(transport: Http1Transport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with Server(handle) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.handle_async_request(post(server))
        assert server.connections == 1


async def test_f05_a_body_cut_short_is_an_error_after_what_came(transport: Http1Transport) -> None:
    async with Server(answering(OK + b"content-length: 11\r\n\r\nhello", close=True)) as server:
        response = await transport.handle_async_request(post(server))
        body = response.aiter_raw()
        assert await anext(body) == b"hello"
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(body)


async def test_f02_a_shorter_patience_than_the_request_before_had_counts(
    transport: Http1Transport,
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0)  # the client waits, and its timer is set
        writer.write(OK + b"content-length: 2\r\n\r\nhi")
        await read_request(reader)
        await reader.read()

    async with Server(handle) as server:
        first = await transport.handle_async_request(post(server, read_timeout_s=600.0))
        assert await body_of(first) == b"hi"
        with pytest.raises(httpx.ReadTimeout):
            async with asyncio.timeout(5):
                await transport.handle_async_request(post(server, read_timeout_s=0.05))
        assert server.connections == 1


async def test_f02_f06_silence_is_a_read_timeout(transport: Http1Transport) -> None:
    async with Server(answering()) as server:
        with pytest.raises(httpx.ReadTimeout):
            await transport.handle_async_request(post(server, read_timeout_s=0.05))
    async with Server(answering(OK + b"content-length: 11\r\n\r\nhello")) as server:
        response = await transport.handle_async_request(post(server, read_timeout_s=0.05))
        with pytest.raises(httpx.ReadTimeout):
            await body_of(response)


async def test_closing_early_closes_the_connection(transport: Http1Transport) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.readexactly(1)

    async with Server(handle) as server:
        response = await transport.handle_async_request(post(server))
        await response.aclose()
        async with asyncio.timeout(5):
            await server.closed_by_client.wait()


async def test_a_caller_cancelled_while_waiting_leaves_no_connection_behind(
    transport: Http1Transport,
) -> None:
    arrived = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await reader.readexactly(1)

    async with Server(handle) as server:
        asking = asyncio.create_task(transport.handle_async_request(post(server)))
        async with asyncio.timeout(5):
            await arrived.wait()
            asking.cancel()
            await server.closed_by_client.wait()


async def test_P2_a_reader_that_does_not_read_stops_the_server(transport: Http1Transport) -> None:
    sent = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(OK + b"content-length: 100000000\r\n\r\n")
        while True:
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with Server(handle) as server:
        response = await transport.handle_async_request(post(server))
        before = -1
        while sent != before:  # until the socket's own buffers are full
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 100_000_000 / 2
        read = 0
        async for piece in response.aiter_raw():
            assert len(piece) < 40 * BUFFER_BYTES
            read += len(piece)
            if read > sent + 1_000_000:
                break
        await response.aclose()


async def test_f20_compression_nobody_asked_for_is_undone_within_bounds(
    transport: Http1Transport,
) -> None:
    def compressed(data: bytes, wbits: int) -> bytes:
        packer = zlib.compressobj(wbits=wbits)
        return packer.compress(data) + packer.flush()

    def handler(encoding: bytes, body: bytes) -> Handler:
        head = OK + b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (encoding, len(body))
        return answering(head, body)

    for encoding, wbits in ((b"gzip", 31), (b"deflate", 15)):
        async with Server(handler(encoding, compressed(b"hello world", wbits))) as server:
            response = await transport.handle_async_request(post(server))
            assert await body_of(response) == b"hello world"
    bomb = compressed(b"\0" * 300_000_000, 31)
    async with Server(handler(b"gzip", bomb)) as server:
        response = await transport.handle_async_request(post(server))
        with pytest.raises(httpx.RemoteProtocolError):
            await body_of(response)
    async with Server(handler(b"br", b"x")) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.handle_async_request(post(server))


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_f20_what_is_not_http_is_an_error(transport: Http1Transport, answer: bytes) -> None:
    async with Server(answering(answer)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await body_of(await transport.handle_async_request(post(server)))


async def test_S4_endpoints_do_not_share_connections_and_a_pool_is_bounded() -> None:
    transport = Http1Transport(loopback, Limits(connections_per_pool=2, acquire_timeout_s=0.05))
    async with Server(answering(OK + b"content-length: 11\r\n\r\n")) as server:
        held = [await transport.handle_async_request(post(server, pool="a")) for _ in range(2)]
        with pytest.raises(httpx.PoolTimeout):
            await transport.handle_async_request(post(server, pool="a"))
        held.append(await transport.handle_async_request(post(server, pool="b")))
        for response in held:
            await response.aclose()
        await (await transport.handle_async_request(post(server, pool="a"))).aclose()
    await transport.aclose()


async def test_f01_a_refused_connection_is_a_connect_error(transport: Http1Transport) -> None:
    async with Server(answering()) as server:
        pass
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(post(server))
