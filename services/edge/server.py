"""The HTTP server within the process's own event loop."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Send


class Server(uvicorn.Server):
    """uvicorn without its signal handling: the process decides when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        for server in self.servers:
            for listener in server.sockets:
                name = listener.getsockname()
                return int(name[1])
        return 0


class Unchunked:
    """A response to HTTP/1.0, which knows no chunks: its body ends with the connection."""

    def __init__(self, send: Send) -> None:
        self._send = send
        # uvicorn frames every body of unknown length in chunks; its cycle is behind `send`.
        self._cycle: Any = getattr(send, "__self__", None)
        if not hasattr(self._cycle, "chunked_encoding"):
            self._cycle = None
        self._unsized = False
        self.transport = getattr(self._cycle, "transport", None)

    async def send(self, message: Message) -> None:
        cycle = self._cycle
        if cycle is not None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                self._unsized = b"content-length" not in names
                if self._unsized:
                    cycle.chunked_encoding = False
            elif self._unsized:
                cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that a port in use is an error at the start."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def server(app: ASGIApp, keep_alive_s: int) -> Server:
    return Server(
        uvicorn.Config(
            app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=keep_alive_s,
        )
    )
