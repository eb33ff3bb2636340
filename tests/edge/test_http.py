"""Edge behind its real HTTP server: clients that leave, clients that stop reading, the end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import orjson
import pytest

from bourse.multiplex import Attempt
from bourse.v1.generation_pb2 import CancelReason, Started
from services.edge.server import Server, listen, server
from tests.edge.world import (
    MODEL,
    World,
    answers,
    candidate,
    eventually,
    fails,
    fails_after,
    finished,
    hangs,
    quick,
    text,
    world,
)


@asynccontextmanager
async def served(edge: World) -> AsyncIterator[tuple[Server, int]]:
    listener = listen("127.0.0.1", 0)
    http = server(edge.app, 5)
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    await eventually(lambda: http.started)
    try:
        yield http, http.port
    finally:
        http.should_exit = True
        async with asyncio.timeout(10):
            await serving


def request(edge: World, **body: object) -> bytes:
    data = orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **body})
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer "
        + edge.key.encode()
        + b"\r\ncontent-length: %d\r\n\r\n" % len(data)
        + data
    )


async def test_f23_closing_the_connection_cancels_the_worker_at_once() -> None:
    async def talks(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("some"))
        await hangs(attempt)

    async with world() as edge, served(edge) as (_, port):
        for stream, script in ((True, talks), (False, talks), (True, hangs), (False, hangs)):
            edge.worker.scripts["a"] = script
            edge.worker.left.clear()
            edge.worker.attempts.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(edge, stream=stream))
            await eventually(lambda: edge.worker.attempts)
            if stream and script is talks:
                await reader.readuntil(b"some")
            writer.close()
            await eventually(lambda: edge.worker.left)
            assert edge.worker.left == [("a", CancelReason.CANCEL_REASON_CLIENT_LEFT)]
        await eventually(lambda: edge.leases.held_nano == 0)


async def test_f23_a_client_that_takes_nothing_has_left() -> None:
    async def floods(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        while True:
            await attempt.send(text("x" * 30_000))

    async with world(bounds=quick(write_stall_s=0.3)) as edge, served(edge) as (http, port):
        edge.worker.scripts["a"] = floods
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, request(edge, stream=True))
        await eventually(lambda: edge.worker.left)
        assert edge.worker.left == [("a", CancelReason.CANCEL_REASON_CLIENT_LEFT)]
        await eventually(lambda: edge.leases.held_nano == 0)
        await eventually(lambda: not http.server_state.tasks)
        client.close()


async def test_a_slow_reader_slows_its_own_answer_alone() -> None:
    sent = 0

    async def floods(attempt: Attempt) -> None:
        nonlocal sent
        await attempt.started(Started(first_token_ms=1))
        for _ in range(1_000):
            await attempt.send(text("x" * 30_000))
            sent += 30_000
        attempt.finish(finished(attempt))

    async with world() as edge, served(edge) as (_, port):
        edge.routing.candidates = [candidate("flood")]
        edge.worker.scripts["flood"] = floods
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        writer.write(request(edge, stream=True))
        await eventually(lambda: sent > 0)
        while True:  # until it stands still
            before = sent
            await asyncio.sleep(0.1)
            if sent == before:
                break
        assert sent < 20_000_000
        edge.routing.candidates = [candidate("b")]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            other = await client.post(
                "/v1/chat/completions",
                json={"model": "other", "messages": [{"role": "user", "content": "Hi"}]},
                headers={"authorization": f"Bearer {edge.key}"},
            )
        assert other.status_code == 200
        size = 0
        while part := await reader.read(1 << 16):
            size += len(part)
            if part.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                break
        assert size > 30_000_000
        writer.close()


async def test_the_end_waits_for_open_streams_and_takes_no_new_ones() -> None:
    gate = asyncio.Event()

    async def slow(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        await attempt.send(text("first"))
        await gate.wait()
        await attempt.send(text("last"))
        attempt.finish(finished(attempt))

    async with world() as edge, served(edge) as (http, port):
        edge.worker.scripts["a"] = slow
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(edge, stream=True))
        await reader.readuntil(b"first")
        http.should_exit = True

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) != 0

        await eventually(refused)
        gate.set()
        rest = await reader.read(1 << 20)
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await reader.read(1 << 20)
        assert b"last" in rest
        assert b"data: [DONE]" in rest
        writer.close()


async def test_the_official_client_reads_answers_streams_and_errors() -> None:
    async with world() as edge, served(edge) as (_, port):
        client: Any = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=edge.key, max_retries=0
        )
        messages = [{"role": "user", "content": "Hi"}]
        async with client:
            whole = await client.chat.completions.create(model=MODEL, messages=messages)
            assert whole.choices[0].message.content == "Hello world"
            assert whole.usage.total_tokens == 15
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, stream=True
            )
            pieces = [chunk async for chunk in stream]
            assert pieces[-1].usage.total_tokens == 15
            assert "".join(c.choices[0].delta.content for c in pieces[:-1]) == "Hello world"
            for status, kind in (
                (400, openai.BadRequestError),
                (429, openai.RateLimitError),
                (503, openai.InternalServerError),
            ):
                edge.edge.breakers.succeeded("a")
                edge.worker.scripts["a"] = fails(status, error_type="x")
                with pytest.raises(kind) as refused:
                    await client.chat.completions.create(model=MODEL, messages=messages)
                assert refused.value.status_code == status
            edge.edge.breakers.succeeded("a")
            edge.worker.scripts["a"] = fails_after("half")
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, stream=True
            )
            seen = ""

            async def read() -> None:
                nonlocal seen
                async for chunk in stream:
                    seen += chunk.choices[0].delta.content

            with pytest.raises(openai.APIError) as cut:
                await read()
            body: Any = cut.value.body
            assert body["code"] == 502
            assert seen == "half"


async def test_a_connection_serves_many_requests_also_after_errors() -> None:
    async with (
        world() as edge,
        served(edge) as (_, port),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"authorization": f"Bearer {edge.key}"},
            limits=httpx.Limits(max_connections=1),
        ) as client,
    ):
        for number in range(20):
            edge.worker.scripts["a"] = answers(f"answer {number}")
            body: dict[str, object] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": number % 2 == 0,
            }
            good = await client.post("/v1/chat/completions", json=body)
            assert f"answer {number}" in good.text
            bad = await client.post("/v1/chat/completions", json={**body, "n": -1})
            assert bad.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
async def test_an_http_1_0_client_gets_a_body_that_ends_with_the_connection(stream: bool) -> None:
    async with world() as edge, served(edge) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(edge, stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0"))
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"}\n\ndata: [DONE]\n\n")
    else:
        assert orjson.loads(body)["choices"][0]["message"]["content"] == "Hello world"


async def test_an_http_1_0_client_that_leaves_or_stalls_is_noticed_as_any_other() -> None:
    async def floods(attempt: Attempt) -> None:
        await attempt.started(Started(first_token_ms=1))
        while True:
            await attempt.send(text("x" * 30_000))

    async with world(bounds=quick(write_stall_s=0.3)) as edge, served(edge) as (http, port):
        edge.worker.scripts["a"] = floods
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        writer.write(request(edge, stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        await eventually(lambda: edge.worker.left)
        await eventually(lambda: edge.leases.held_nano == 0)
        await eventually(lambda: not http.server_state.tasks)
        writer.close()
