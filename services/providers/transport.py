"""Send a dialect's request to where it goes: a provider's server, or the sandbox in this process.

What carries it is an httpx transport, called directly; errors become AttemptFailed here.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable

import httpx

from services.providers import refusals
from services.providers.call import AttemptFailed
from services.providers.egress import EgressRefused, Guard
from services.providers.http1 import Body, Http1Transport, Limits

ERROR_BODY_BYTES = 64 * 1024
RELEASE_BYTES = 64 * 1024
RELEASE_S = 1.0


class Upstream:
    """The way to every upstream. `transports` maps a URL's scheme to what carries it."""

    def __init__(self, transports: dict[str, httpx.AsyncBaseTransport]) -> None:
        self._transports = transports

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Return the response once its headers are here. Raises AttemptFailed."""
        transport = self._transports.get(request.url.scheme)
        if transport is None:
            raise refusals.unreachable(f"no way to {request.url.scheme} URLs")
        try:
            return await transport.handle_async_request(request)
        except httpx.PoolTimeout:
            raise _no_connection() from None
        except httpx.ReadTimeout as error:
            raise refusals.timed_out(str(error)) from None
        except (httpx.HTTPError, OSError) as error:
            raise refusals.unreachable(f"{type(error).__name__}: {error}") from None

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


async def reads(
    response: httpx.Response, most_bytes: int, heard: Callable[[], object]
) -> AsyncIterator[bytes]:
    """Yield the body as it comes, calling `heard` for each read, and close it at its end.

    Raises AttemptFailed.
    """
    total = 0
    stream: AsyncIterator[bytes] = response.stream.__aiter__()  # type: ignore[union-attr]
    while True:
        try:
            data = await stream.__anext__()
        except StopAsyncIteration:
            await response.aclose()
            return
        except httpx.ReadTimeout as error:
            raise refusals.timed_out(str(error)) from None
        except (httpx.HTTPError, OSError):
            raise refusals.cut() from None
        heard()
        total += len(data)
        if total > most_bytes:
            raise refusals.malformed(f"a body of more than {most_bytes} bytes")
        yield data


async def error_body(response: httpx.Response) -> bytes:
    """Return the beginning of an error's body; what cannot be read is left out."""
    body = b""
    try:
        async for data in reads(response, ERROR_BODY_BYTES, lambda: None):
            body += data
    except AttemptFailed:
        pass
    await response.aclose()
    return body


async def release(response: httpx.Response) -> None:
    """Let go of a response that is done, reading what may follow its end mark so that the
    connection can be used again."""
    if isinstance(response.stream, Body) and await response.stream.finish():
        return
    try:
        async with asyncio.timeout(RELEASE_S):
            async for _ in reads(response, RELEASE_BYTES, lambda: None):
                pass
    except (AttemptFailed, TimeoutError):
        pass
    finally:
        await response.aclose()


def guarded_http(guard: Guard, limits: Limits, tls: ssl.SSLContext | None = None) -> Http1Transport:
    """Return the transport for http and https, which dials only what the guard permits."""

    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        try:
            return await guard.resolve(host, port)
        except EgressRefused as refusal:
            raise httpx.ConnectError(f"not called: {refusal}") from None
        except OSError as error:
            raise httpx.ConnectError(f"{host} is not known: {error}") from None

    return Http1Transport(resolve, limits, tls)


def _no_connection() -> AttemptFailed:
    """All connections of the endpoint's pool are in use: a bound of ours, no fault of theirs."""
    return AttemptFailed(
        status=503,
        error_type="server",
        message="Too many requests to this provider are open here.",
        counts_against_uptime=False,
        reason="refused",
    )
