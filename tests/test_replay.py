"""The replay upstream answers as it was told, and notices who leaves."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.recordings.reading import Record
from tests.replay import Replay

ROOT = Path(__file__).resolve().parents[1]
RECORD: Record = {
    "path": "/v1/chat/completions",
    "status": 200,
    "content_type": "text/event-stream",
    "headers": {"content-type": "text/event-stream", "transfer-encoding": "chunked", "x-own": "1"},
    "request": {"model": "m", "messages": []},
    "body_text": "data: one\n\ndata: two\n\n",
    "chunk_lens": [3, 10, 9],
}


async def test_a_scripted_answer_is_given_and_the_last_one_stays() -> None:
    async with Replay() as upstream, httpx.AsyncClient(base_url=upstream.url) as client:
        upstream.answer("/x", status=529, body={"error": 1}, headers={"retry-after": "3"})
        upstream.answer("/x", body="fine")
        busy = await client.post("/x", json={"a": 1})
        assert (busy.status_code, busy.json()) == (529, {"error": 1})
        assert busy.headers["retry-after"] == "3"
        for _ in range(2):
            assert (await client.post("/x")).text == "fine"
        assert upstream.requests[0].json == {"a": 1}
        assert (await client.get("/elsewhere")).status_code == 404


async def test_a_recorded_exchange_is_given_with_its_reads_for_its_request() -> None:
    async with Replay() as upstream, httpx.AsyncClient(base_url=upstream.url) as client:
        upstream.exchange(RECORD)
        upstream.exchange({**RECORD, "body_text": "data: again\n\n", "chunk_lens": []})
        async with client.stream("POST", RECORD["path"], json=RECORD["request"]) as response:
            reads = [data async for data in response.aiter_raw()]
        assert b"".join(reads) == b"data: one\n\ndata: two\n\n"
        assert response.headers["x-own"] == "1"
        again = await client.post(RECORD["path"], json=RECORD["request"])
        assert again.text == "data: again\n\n"
        other = await client.post(RECORD["path"], json={"model": "other"})
        assert other.status_code == 404


async def test_an_answer_that_is_cut_breaks_the_connection() -> None:
    async with Replay() as upstream, httpx.AsyncClient(base_url=upstream.url) as client:
        upstream.answer("/x", chunks=["data: one\n\n"], cut=True)
        with pytest.raises(httpx.TransportError):
            await client.post("/x")


async def test_a_client_that_leaves_is_noticed() -> None:
    async with Replay() as upstream, httpx.AsyncClient(base_url=upstream.url) as client:
        upstream.answer("/x", chunks=["data: one\n\n"], hold=True)
        async with client.stream("POST", "/x") as response:
            await anext(response.aiter_raw())
            (received,) = await upstream.received(1)
            assert not received.left.is_set()
        await asyncio.wait_for(received.left.wait(), 10)
        assert not received.served.is_set()
        assert received.sent_bytes == 11


async def test_it_runs_as_a_process(tmp_path: Path) -> None:
    config = tmp_path / "replay.json"
    config.write_text(json.dumps({"answers": [{"path": "/x", "status": 503, "body": "busy"}]}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.replay",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        url = line.decode().removeprefix("listening on ").strip()
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.post("/x", content=b"hello")).status_code == 503
            (seen,) = (await client.get("/replay/requests")).json()
        assert (seen["path"], seen["body"]) == ("/x", "hello")
    finally:
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
