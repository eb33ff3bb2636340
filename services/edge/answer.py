"""What a client gets for a completion: a stream of chunks, or one whole reply. Same story for both.

serves(attempt)   an attempt's first content is here: its model and provider are shown
chunk(choices, …) content, as the worker sent it; may wait for another chunk that is here already
finish(finished)  the proper end, with usage
fail(error, …)    every other end; before a status is sent it is a plain error
"""

from typing import Any

import orjson

from bourse.v1.events_pb2 import PriceVersion
from bourse.v1.generation_pb2 import Finished
from services.edge.errors import ApiError
from services.edge.merge import Choices
from services.edge.plans import Attempt
from services.edge.reply import COMMENT, WHITESPACE, Reply
from services.edge.usage import usage_json

DONE = b"data: [DONE]\n\n"
JOINED_MAX_BYTES = 16 * 1024
"""Chunks that came together are sent together up to here."""

_NO_PRICE = PriceVersion()
_NOTHING = Finished()


class Facts:
    """What every body of one generation repeats."""

    __slots__ = ("created", "id", "metadata", "model", "price", "provider")

    def __init__(self, generation: str, created: int, model: str) -> None:
        self.id = f"gen-{generation}"
        self.created = created
        self.model = model
        self.provider = ""
        self.price = _NO_PRICE
        self.metadata: dict[str, Any] | None = None
        """`openrouter_metadata`, where the client asked for it."""

    def serves(self, attempt: Attempt) -> None:
        self.model = attempt.model
        self.provider = attempt.provider_name
        self.price = attempt.price

    def usage(self, finished: Finished) -> bytes:
        return usage_json(
            finished.usage,
            finished.cost_lines,
            self.price,
            finished.list_nano,
            finished.charge_nano,
        )


class StreamedAnswer:
    """Server-sent events."""

    def __init__(self, facts: Facts, reply: Reply, hold_back_s: float, keep_alive_s: float) -> None:
        self._facts = facts
        self._reply = reply
        self._prefix = b""
        self._held = b""
        reply.content_type = b"text/event-stream"
        reply.headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        reply.keep_alive(COMMENT, hold_back_s)

    def serves(self, attempt: Attempt) -> None:
        self._facts.serves(attempt)
        self._prefix = b"data: " + self._head() + b',"choices":'

    async def chunk(self, choices: bytes, another_waits: bool = False) -> None:
        """Send a chunk; what has come together goes out together."""
        data = self._held + self._prefix + choices + b"}\n\n"
        if another_waits and len(data) < JOINED_MAX_BYTES:
            self._held = data
        else:
            self._held = b""
            await self._reply.write(data)

    async def finish(self, finished: Finished) -> None:
        """Usage once, in the last chunk, with no choices; then the end mark."""
        tail = b""
        if finished.service_tier:
            tail += b',"service_tier":' + orjson.dumps(finished.service_tier)
        if finished.system_fingerprint:
            tail += b',"system_fingerprint":' + orjson.dumps(finished.system_fingerprint)
        last = self._held + self._prefix + b"[]" + tail + b',"usage":' + self._facts.usage(finished)
        if self._facts.metadata is not None:
            last += b',"openrouter_metadata":' + orjson.dumps(self._facts.metadata)
        await self._reply.end(last + b"}\n\n" + DONE)

    async def fail(self, error: ApiError, spent: Finished | None = None) -> None:
        if not self._reply.committed:
            self._reply.content_type = b"application/json"
            await self._reply.whole(error.status, error.body(), error.headers())
            return
        chunk = (
            self._held
            + b"data: "
            + self._head()
            + b',"error":'
            + orjson.dumps(error.error())
            + b',"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}],"usage":'
            + self._facts.usage(spent or _NOTHING)
            + b"}\n\n"
        )
        await self._reply.end(chunk + DONE)

    def _head(self) -> bytes:
        facts = self._facts
        return orjson.dumps(
            {
                "id": facts.id,
                "object": "chat.completion.chunk",
                "created": facts.created,
                "model": facts.model,
                "provider": facts.provider,
            }
        )[:-1]


class WholeAnswer:
    """One JSON body. Whitespace may come before it, but never before the first content."""

    def __init__(self, facts: Facts, reply: Reply, hold_back_s: float, keep_alive_s: float) -> None:
        self._facts = facts
        self._reply = reply
        self._keep_alive_s = keep_alive_s
        self._choices = Choices()

    def serves(self, attempt: Attempt) -> None:
        self._facts.serves(attempt)
        self._reply.keep_alive(WHITESPACE, self._keep_alive_s)

    async def chunk(self, choices: bytes, another_waits: bool = False) -> None:
        self._choices.add(orjson.loads(choices))

    async def finish(self, finished: Finished) -> None:
        body: dict[str, Any] = {
            **self._head(),
            "choices": self._choices.whole(finished.finish_reason, finished.native_finish_reason),
            "system_fingerprint": finished.system_fingerprint or None,
        }
        if finished.service_tier:
            body["service_tier"] = finished.service_tier
        body["usage"] = orjson.Fragment(self._facts.usage(finished))
        if self._facts.metadata is not None:
            body["openrouter_metadata"] = self._facts.metadata
        await self._send(200, orjson.dumps(body), [])

    async def fail(self, error: ApiError, spent: Finished | None = None) -> None:
        if spent is not None and self._choices:  # credit ran out midway: what is paid for is given
            error.extra = {
                **self._head(),
                "choices": self._choices.whole("error", ""),
                "system_fingerprint": None,
                "usage": orjson.Fragment(self._facts.usage(spent)),
            }
        elif self._reply.committed:
            error.extra = {
                **self._head(),
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": ""},
                        "finish_reason": "error",
                    }
                ],
                "system_fingerprint": None,
                "usage": orjson.Fragment(self._facts.usage(_NOTHING)),
            }
        await self._send(error.status, error.body(), error.headers())

    async def _send(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        if self._reply.committed:  # whitespace has gone out, and with it the status 200
            await self._reply.end(body)
        else:
            await self._reply.whole(status, body, headers)

    def _head(self) -> dict[str, Any]:
        facts = self._facts
        return {
            "id": facts.id,
            "object": "chat.completion",
            "created": facts.created,
            "model": facts.model,
            "provider": facts.provider,
        }


Answer = StreamedAnswer | WholeAnswer
