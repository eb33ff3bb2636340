"""The bare ASGI function of the inference route: who asks, for what, how errors are answered."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bourse import telemetry
from services.edge import call
from services.edge.call import Call
from services.edge.completion import Edge, complete
from services.edge.errors import ApiError, server_error
from services.edge.identity import Identity
from services.edge.keys import Key
from services.edge.meters import Meters
from services.edge.reply import Receive, Reply, Send

log = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before its request was complete."""


@dataclass(frozen=True, slots=True)
class Inference:
    """Serves `POST /chat/completions`."""

    identity: Identity
    edge: Edge
    meters: Meters
    body_limit_bytes: int
    body_deadline_s: float
    trace_sample_ratio: float

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        began_at = time.monotonic()
        reply = Reply(receive, send, self.edge.bounds.timing)
        try:
            headers = dict(scope["headers"])
            key = self.identity.inference(headers)
            body = await self._body(headers, receive)
            asked = call.parse(body, headers)
            traceparent = telemetry.sample(asked.traceparent or None, self.trace_sample_ratio)
            if traceparent:
                await self._traced(asked, key, reply, traceparent)
            else:
                await complete(asked, key, self.edge, reply)
        except ApiError as error:
            await _refuse(reply, error)
        except ClientLeft:
            reply.left = True
        except Exception:
            log.exception("a completion failed by a fault of ours")
            await _refuse(reply, server_error())
        finally:
            reply.close()
            self.meters.answered(reply, time.monotonic() - began_at)

    async def _traced(self, asked: Call, key: Key, reply: Reply, traceparent: str) -> None:
        """Serve a sampled request within edge's one span."""
        attributes = {"bourse.account": key.account, "bourse.model": asked.models[0]}
        with telemetry.span("chat completions", traceparent, "server", attributes) as span:
            try:
                await complete(asked, key, self.edge, reply, span.traceparent)
            except ApiError as error:
                await _refuse(reply, error)
            span.set("http.response.status_code", reply.status)
            if reply.status >= 500:
                span.fail(str(reply.status))

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Read the body. Raises ApiError 413 or 408, or ClientLeft."""
        limit = self.body_limit_bytes
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise _too_long(limit)
        message = await receive()
        if not message.get("more_body") and message["type"] == "http.request":
            body: bytes = message.get("body", b"")
            if len(body) > limit:
                raise _too_long(limit)
            return body
        return await self._long_body(message, receive)

    async def _long_body(self, message: Any, receive: Receive) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.body_deadline_s):
                while True:
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.body_limit_bytes:
                        raise _too_long(self.body_limit_bytes)
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
                    message = await receive()
        except TimeoutError:
            raise ApiError(408, "The body did not come in time.", field="body") from None


async def _refuse(reply: Reply, error: ApiError) -> None:
    """Answer an error of a request that has been told nothing yet; else cut it off."""
    if reply.done or reply.left:
        return
    if reply.committed:
        # Mid-stream faults that anyone foresaw are told by the answer; this one was not.
        await reply.end()
        return
    reply.content_type = b"application/json"
    headers = error.headers()
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await reply.whole(error.status, error.body(), headers)


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"The body is longer than {limit} bytes.", field="body")
