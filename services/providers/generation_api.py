"""The worker's contract: `Generation`. It translates."""

import asyncio
import secrets
import time
from typing import Any

import orjson

from bourse.multiplex import Attempt, Broken, DirectLink, GenerationServicer
from bourse.rpc import Context
from bourse.v1.generation_pb2 import AttemptFacts, Failed, ProbeRequest, ProbeResponse
from services.providers import measures
from services.providers.generation import Generator
from services.providers.measures import Measures

PROBE_TIMEOUT_MS = 60_000


class GenerationApi(GenerationServicer):
    """Serves attempts, and probes: attempts that the registry asks for, which nobody pays and no
    event tells of."""

    def __init__(self, generator: Generator, measures: Measures) -> None:
        super().__init__(self._serve)
        self._generator = generator
        self._measures = measures
        self._unrecorded = generator.unrecorded()
        self._probes = DirectLink(GenerationServicer(self._probe), "probes")

    async def Probe(self, request: ProbeRequest, _context: Context) -> ProbeResponse:
        """Call an endpoint with a canonical body, exactly as an attempt would."""
        began = time.monotonic()
        facts = AttemptFacts(
            generation=f"probe-{secrets.token_hex(8)}",
            attempt=1,
            endpoint=request.endpoint,
            last=True,
        )
        response = ProbeResponse(status=200)
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        try:
            timeout_ms = request.timeout_ms or PROBE_TIMEOUT_MS
            exchange = self._probes.open(facts, request.body, timeout_ms)
            async for frame in exchange:
                if frame.HasField("started"):
                    response.first_token_ms = frame.started.first_token_ms
                elif frame.HasField("chunk"):
                    _join(message, orjson.loads(frame.chunk.choices))
                elif frame.HasField("failed"):
                    _say(response, frame.failed)
        except Broken as broken:
            response.status, response.error_type = 503, "server"
            response.message = str(broken)
        response.duration_ms = round((time.monotonic() - began) * 1000)
        response.message_json = orjson.dumps(message)
        return response

    async def close(self) -> None:
        """End what still runs; each attempt settles as lost before this returns."""
        running = tuple(self.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _serve(self, attempt: Attempt) -> None:
        if attempt.facts.traceparent:
            with measures.span(attempt.facts) as span:
                event = await self._generator.serve(attempt, span.traceparent)
                if event is not None:
                    measures.describe(span, event)
        else:
            event = await self._generator.serve(attempt)
        if event is not None:
            self._measures.count(event)

    async def _probe(self, attempt: Attempt) -> None:
        await self._unrecorded.serve(attempt)


def _say(response: ProbeResponse, failed: Failed) -> None:
    response.status = failed.upstream_status or failed.status
    response.error_type = failed.error_type
    response.message = failed.message


def _join(message: dict[str, Any], choices: list[dict[str, Any]]) -> None:
    """Add the deltas of the first choice to a message."""
    for choice in choices:
        if choice["index"]:
            continue
        for key, value in choice["delta"].items():
            if key == "tool_calls":
                _join_calls(message.setdefault(key, []), value)
            elif isinstance(value, str) and key in ("content", "reasoning", "refusal"):
                message[key] = message.get(key, "") + value
            elif isinstance(value, list):
                message[key] = [*message.get(key, []), *value]
            elif key != "role":
                message[key] = value
        if choice.get("finish_reason"):
            message["finish_reason"] = choice["finish_reason"]


def _join_calls(calls: list[dict[str, Any]], fragments: list[dict[str, Any]]) -> None:
    for fragment in fragments:
        index = fragment["index"]
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        if fragment.get("id"):
            call["id"] = fragment["id"]
        function = fragment.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
