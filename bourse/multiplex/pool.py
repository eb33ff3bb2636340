"""The workers that an edge can reach."""

import asyncio
import logging
import random
import socket
from contextlib import suppress

from bourse.multiplex.direct import DirectLink
from bourse.multiplex.edge import StreamLink
from bourse.multiplex.exchange import NoWorker, WorkerLink
from bourse.multiplex.frames import MAX_MESSAGE_BYTES
from bourse.multiplex.worker import GenerationServicer
from bourse.rpc import LOCAL, ClientStream, Network, RpcError, target
from bourse.v1.generation_pb2_grpc import GenerationStub

log = logging.getLogger(__name__)

RESOLVE_EVERY_S = 5.0
CONNECT_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 3.0
PATH = "/bourse.v1.Generation/Generate"


class WorkerPool:
    """One stream per worker, each dialled again when it breaks.

    `urls`, comma-separated: `local:` for the worker in this process, `grpc://host:port` for one
    worker each, `dns:///name:port` for every address of a name, resolved again every 5 seconds. A
    worker that leaves the name gets nothing new and keeps its stream until that is empty.
    """

    def __init__(self, network: Network, urls: str) -> None:
        self._network = network
        self._urls = [url.strip() for url in urls.split(",") if url.strip()]
        if not self._urls:
            raise ValueError("no worker URL")
        for url in self._urls:
            if url != LOCAL:
                target(url)
        self._direct: DirectLink | None = None
        self._alone: DirectLink | None = None
        """The worker in this process where it is the only one."""
        self._dialers: dict[str, _Dialer] = {}
        self._leaving: dict[_Dialer, asyncio.Task[None]] = {}
        self._resolvers: list[asyncio.Task[None]] = []
        self._wanted: dict[str, set[str]] = {}  # URL -> addresses
        self._draining = False

    async def start(self) -> None:
        """Begin to dial; a worker can be chosen when its stream stands."""
        for url in self._urls:
            if url.startswith("dns:///"):
                self._resolvers.append(asyncio.create_task(self._resolve(url)))
            elif url != LOCAL:
                self._want(url, {target(url)})

    @property
    def links(self) -> list[WorkerLink]:
        """Every link that can be chosen now."""
        found: list[WorkerLink] = [
            dialer.link
            for dialer in self._dialers.values()
            if dialer.link is not None and dialer.link.usable
        ]
        if LOCAL in self._urls and (direct := self._local()) is not None and direct.usable:
            found.append(direct)
        return [] if self._draining else found

    @property
    def usable(self) -> bool:
        """True while some worker can be chosen."""
        return bool(self.links)

    def choose(self) -> WorkerLink:
        """Return the link with fewer in flight of two drawn at random. Raises NoWorker."""
        if self._alone is not None and self._alone.usable and not self._draining:
            return self._alone
        links = self.links
        if not links:
            raise NoWorker("no worker can be reached")
        if len(links) == 1:
            return links[0]
        one, other = random.sample(links, 2)
        return one if one.in_flight <= other.in_flight else other

    async def drain(self) -> None:
        """Choose nothing more; return when nothing is in flight. The caller bounds it."""
        self._draining = True
        links: list[WorkerLink] = [
            dialer.link
            for dialer in (*self._dialers.values(), *self._leaving)
            if dialer.link is not None
        ]
        if self._direct is not None:
            links.append(self._direct)
        await asyncio.gather(*(link.drain() for link in links))

    async def close(self) -> None:
        """Let go of everything within seconds; what is in flight is Broken. `drain` before."""
        self._draining = True
        for task in (*self._resolvers, *self._leaving.values()):
            task.cancel()
        dialers = [*self._dialers.values(), *self._leaving]
        await asyncio.gather(*(dialer.close() for dialer in dialers))
        if self._direct is not None:
            await self._direct.close()

    def _local(self) -> DirectLink | None:
        if self._direct is None:
            servicer = self._network.servicer(GenerationStub)
            if isinstance(servicer, GenerationServicer):
                self._direct = DirectLink(servicer)
                if self._urls == [LOCAL]:
                    self._alone = self._direct
        return self._direct

    async def _resolve(self, url: str) -> None:
        host, _, port = url.removeprefix("dns:///").rpartition(":")
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(RESOLVE_EVERY_S):
                    found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except (OSError, TimeoutError) as error:
                log.warning("cannot resolve %s, keeping the workers known: %s", host, error)
            else:
                self._want(url, {_address(entry[4]) for entry in found})
            await asyncio.sleep(RESOLVE_EVERY_S)

    def _want(self, url: str, addresses: set[str]) -> None:
        self._wanted[url] = addresses
        wanted = set().union(*self._wanted.values())
        for address in wanted - self._dialers.keys():
            self._dialers[address] = _Dialer(address)
        for address in self._dialers.keys() - wanted:
            dialer = self._dialers.pop(address)
            self._leaving[dialer] = asyncio.create_task(self._leave(dialer))

    async def _leave(self, dialer: "_Dialer") -> None:
        await dialer.leave()
        del self._leaving[dialer]


class _Dialer:
    """Keeps one stream to one address."""

    def __init__(self, address: str) -> None:
        self.link: StreamLink | None = None
        self._address = address
        self._streams = 0
        self._leaving = False
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """Let the stream end when it is empty, and dial no more."""
        self._leaving = True
        if self.link is not None:
            await self.link.drain()
        await self.close()

    async def close(self) -> None:
        self._leaving = True
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._leaving:
            if await self._once():
                backoff_s = BACKOFF_FIRST_S
            await asyncio.sleep(random.uniform(backoff_s / 2, backoff_s))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    async def _once(self) -> bool:
        """Dial, and carry exchanges until the stream ends. Return whether it stood."""
        self._streams += 1
        stood = False
        distinct = f"{id(self)}/{self._streams}"
        stream = ClientStream(
            self._address, PATH, distinct=distinct, max_message_bytes=MAX_MESSAGE_BYTES
        )
        try:
            await stream.connected(CONNECT_TIMEOUT_S)
            stood = True
            self.link = StreamLink(stream, self._address)
            reason = await self.link.run()
            log.info("stream to worker %s: %s", self._address, reason)
        except RpcError as error:
            log.debug("cannot reach worker %s: %s", self._address, error)
        except Exception:
            log.exception("stream to worker %s failed", self._address)
        finally:
            self.link = None
            await stream.close()
        return stood


def _address(sockaddr: tuple[object, ...]) -> str:
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
