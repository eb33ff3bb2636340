"""The replay upstream: a real HTTP server that answers with recorded exchanges or scripted faults.

In a test:

    async with Replay() as upstream:
        upstream.answer("/v1/chat/completions", status=529, body={"error": {"message": "busy"}})
        upstream.exchange(record)                  # as recorded, with the recorded read boundaries
        ...                                        # call f"{upstream.url}/v1"
        assert upstream.requests[0].json["model"] == "m"

As a process: `python -m tests.replay --config replay.json`, where the file holds

    {"port": 0, "recordings": [{"kind": "openai.chat", "limit": 100, "any_request": true}],
     "answers": [{"path": "/v1/chat/completions", "status": 200, "chunks": ["data: …"],
                  "delays_s": [0.1], "cut": true}]}

It prints `listening on URL`; GET `/replay/requests` then lists what was asked.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.recordings.reading import Record, directory, recordings, wire

_HOP_BY_HOP = frozenset({"transfer-encoding", "content-length", "connection", "content-encoding"})
_HOLD_LIMIT_S = 600.0


@dataclass(frozen=True)
class Answer:
    """What to say to one request.

    `delays_s` are waited before the chunk of the same place; `first_byte_s` before the status line.
    `cut`: the connection breaks after the chunks. `hold`: nothing more comes, for as long as the
    client stays.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[bytes] = ()
    delays_s: Sequence[float] = ()
    first_byte_s: float = 0.0
    cut: bool = False
    hold: bool = False


@dataclass
class Received:
    """A request as it came. `left` is set when its client went away before the answer's end, and
    `served` when the answer was written to its end."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    left: asyncio.Event = field(default_factory=asyncio.Event)
    served: asyncio.Event = field(default_factory=asyncio.Event)
    sent_bytes: int = 0
    peer: object = None
    """The client's end of the connection: requests with equal ones shared it."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Replay:
    """One upstream. A path's answers are given in the order they were added; the last one stays."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[Received] = []
        self.url = ""
        self._host, self._port = host, port
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self._came = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> str:
        """Listen; return the URL."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/replay/requests", self._list)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self.url = f"http://{self._host}:{server.sockets[0].getsockname()[1]}"
        return self.url

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def answer(
        self,
        path: str,
        *,
        status: int = 200,
        body: object = b"",
        headers: Mapping[str, str] | None = None,
        chunks: Sequence[bytes | str] | None = None,
        delays_s: Sequence[float] = (),
        first_byte_s: float = 0.0,
        cut: bool = False,
        hold: bool = False,
    ) -> None:
        """Add a scripted answer: a body (bytes, text, or a value to send as JSON) or `chunks`."""
        made = dict(headers or {})
        if chunks is None:
            is_json = not isinstance(body, bytes | str)
            text = json.dumps(body) if is_json else body
            parts = [text.encode() if isinstance(text, str) else bytes(text)]  # type: ignore[call-overload]
            made.setdefault("content-type", "application/json")
        else:
            parts = [part.encode() if isinstance(part, str) else part for part in chunks]
            made.setdefault("content-type", "text/event-stream")
        self._add((path, ""), Answer(status, made, parts, tuple(delays_s), first_byte_s, cut, hold))

    def exchange(
        self, record: Record, *, path: str | None = None, any_request: bool = False
    ) -> None:
        """Add a recorded answer for the recorded request, or for any request to its path."""
        headers = {
            name: value
            for name, value in (record.get("headers") or {}).items()
            if name.lower() not in _HOP_BY_HOP
        }
        if record.get("content_type"):
            headers["content-type"] = record["content_type"]
        key = "" if any_request else request_hash(record.get("request"))
        self._add(
            (path or record["path"], key), Answer(record["status"] or 502, headers, wire(record))
        )

    async def received(self, count: int, timeout_s: float = 10.0) -> list[Received]:
        """Wait until `count` requests came; return them all."""
        async with asyncio.timeout(timeout_s), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    def _add(self, key: tuple[str, str], answer: Answer) -> None:
        self._answers.setdefault(key, []).append(answer)

    def _next(self, received: Received) -> Answer:
        try:
            hashed = request_hash(received.json)
        except ValueError:
            hashed = ""
        for key in ((received.path, hashed), (received.path, "")):
            answers = self._answers.get(key)
            if answers:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        text = json.dumps({"error": {"message": "nothing recorded for this request"}})
        return Answer(404, {"content-type": "application/json"}, [text.encode()])

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            request.method,
            request.path,
            dict(request.query),
            {name.lower(): value for name, value in request.headers.items()},
            await request.read(),
            peer=request.transport and request.transport.get_extra_info("peername"),
        )
        self.requests.append(received)
        async with self._came:
            self._came.notify_all()
        try:
            response = await self._serve(request, received, self._next(received))
        except (asyncio.CancelledError, ConnectionResetError):
            received.left.set()
            raise
        received.served.set()
        return response

    async def _serve(
        self, request: web.Request, received: Received, answer: Answer
    ) -> web.StreamResponse:
        if answer.first_byte_s:
            await asyncio.sleep(answer.first_byte_s)
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        await response.prepare(request)
        for at, chunk in enumerate(answer.chunks):
            if at < len(answer.delays_s):
                await asyncio.sleep(answer.delays_s[at])
            if chunk:
                await response.write(chunk)
                received.sent_bytes += len(chunk)
                await asyncio.sleep(0)  # so that each chunk is a read of its own at the client
        if answer.hold:
            await asyncio.sleep(_HOLD_LIMIT_S)
        if answer.cut:
            if request.transport is not None:
                request.transport.close()
        else:
            await response.write_eof()
        return response

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(
            [
                {
                    "method": received.method,
                    "path": received.path,
                    "body": received.body.decode("utf-8", "replace"),
                    "left": received.left.is_set(),
                    "served": received.served.is_set(),
                    "sent_bytes": received.sent_bytes,
                }
                for received in self.requests
            ]
        )


def request_hash(request: object) -> str:
    """Return the key of a request: its JSON in canonical form, hashed."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


async def serve(config: Mapping[str, Any]) -> None:
    """Run one upstream from a configuration until it is cancelled."""
    upstream = Replay(config.get("host", "127.0.0.1"), config.get("port", 0))
    for wanted in config.get("recordings", ()):
        for at, record in enumerate(recordings(wanted["kind"], directory())):
            if at >= wanted.get("limit", sys.maxsize):
                break
            upstream.exchange(record, any_request=wanted.get("any_request", False))
    for scripted in config.get("answers", ()):
        upstream.answer(**scripted)
    await upstream.start()
    print(f"listening on {upstream.url}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await upstream.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve recorded or scripted provider answers.")
    parser.add_argument("--config", type=Path, required=True, help="a JSON file")
    config = json.loads(parser.parse_args().config.read_text())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(config))


if __name__ == "__main__":
    main()
