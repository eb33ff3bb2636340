"""Send a dialect's request to where it goes: a provider's server, or the sandbox in this process.

What carries it is an httpx transport, called directly; errors become AttemptFailed here.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import cast

import httpx

from services.providers import refusals
from services.providers.call import AttemptFailed
from services.providers.decoding import unreadable
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
        except AttemptFailed:
            raise
        except Exception as error:
            raise unreadable(error) from error

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()


class Reads:
    """A response's body as it comes, of at most so many bytes."""

    def __init__(self, response: httpx.Response, most_bytes: int) -> None:
        self._response = response
        self._stream: AsyncIterator[bytes] = aiter(cast(httpx.AsyncByteStream, response.stream))
        self._most_bytes = self._left_bytes = most_bytes

    async def next(self) -> bytes | None:
        """Return the next bytes; at the end close the response and return None.

        Raises AttemptFailed; its reason is `cut` where the body broke off.
        """
        try:
            data = await anext(self._stream)
        except StopAsyncIteration:
            await self._response.aclose()
            return None
        except httpx.ReadTimeout as error:
            raise refusals.timed_out(str(error)) from None
        except (httpx.HTTPError, OSError):
            raise refusals.cut() from None
        except Exception as error:
            raise unreadable(error) from error
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise refusals.malformed(f"a body of more than {self._most_bytes} bytes")
        return data


def content_type(response: httpx.Response) -> str:
    """Return what a response says it is, empty if it does not."""
    for name, value in response.headers.raw:
        if name.lower() == b"content-type":
            return value.decode("latin-1")
    return ""


async def error_body(response: httpx.Response) -> bytes:
    """Return the beginning of an error's body; what cannot be read is left out."""
    body = b""
    try:
        reads = Reads(response, ERROR_BODY_BYTES)
        while (data := await reads.next()) is not None:
            body += data
    except AttemptFailed:
        pass
    await response.aclose()
    return body


async def release(response: httpx.Response) -> None:
    """Let go of a response that is done, reading what may follow its end mark so that the
    connection can be used again."""
    if isinstance(response.stream, Body) and response.stream.finish():
        return
    try:
        async with asyncio.timeout(RELEASE_S):
            reads = Reads(response, RELEASE_BYTES)
            while await reads.next() is not None:
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
