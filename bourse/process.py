"""One operating-system process: what it runs, when it is ready, how it ends.

A service's `main.py` has one function, `async def start(process, settings)`, which builds the
service from its settings and registers it here. Nothing is built anywhere else.
"""

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, TypeVar

from bourse import rpc, telemetry
from bourse.database import Database
from bourse.event_log import EventLog, open_event_log
from bourse.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOP_STALL_S = 30.0
TICK_S = 1.0
COLLECT_ALL_S = 600.0
"""How often the old objects are searched for garbage too; the young ones are at every tick."""


class Process:
    """The parts that the services of one process share, and their life.

    `ready` is true while every check registered with `ready_when` holds and the process is not
    draining; `alive` while the event loop ticks and every `alive_when` check holds.
    """

    def __init__(self, settings: Settings, *, instance: str = "") -> None:
        self.settings = settings
        self.instance = instance or os.environ.get("HOSTNAME") or socket.gethostname()
        self.boot = secrets.token_hex(8)
        self.network = rpc.Network(ready=lambda: self.ready, alive=lambda: self.alive)
        self.draining = asyncio.Event()
        self._resources = AsyncExitStack()
        self._ready: dict[str, Callable[[], bool]] = {}
        self._alive: dict[str, Callable[[], bool]] = {}
        self._drains: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._log: EventLog | None = None
        self._ticked_at = time.monotonic()

    async def enter(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Open a resource; it is closed at the end, in reverse order."""
        return await self._resources.enter_async_context(resource)

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Close something at the end, in reverse order of registration."""
        self._resources.push_async_callback(close)

    def on_drain(self, drain: Callable[[], Awaitable[None]]) -> None:
        """Call `drain` when the process is told to stop: take nothing new, finish what runs.

        Drains run in order of registration, all within the settings' drain timeout.
        """
        self._drains.append(drain)

    def background(self, name: str, task: Coroutine[Any, Any, None]) -> None:
        """Run a task for as long as the process lives. If it ends before, the process stops."""
        running = asyncio.create_task(task, name=name)
        self._tasks.add(running)
        running.add_done_callback(self._ended)

    def ready_when(self, name: str, check: Callable[[], bool]) -> None:
        self._ready[name] = check

    def alive_when(self, name: str, check: Callable[[], bool]) -> None:
        self._alive[name] = check

    def unready(self) -> list[str]:
        """The names of what keeps this process from being ready."""
        names = [name for name, check in self._ready.items() if not check()]
        return ["draining", *names] if self.draining.is_set() else names

    @property
    def ready(self) -> bool:
        return not self.unready()

    @property
    def alive(self) -> bool:
        ticking = time.monotonic() - self._ticked_at < LOOP_STALL_S
        return ticking and all(check() for check in self._alive.values())

    def database(self, url: str) -> Database:
        database = Database(url)
        self.on_close(database.close)
        return database

    async def event_log(self) -> EventLog:
        """The process's one connection to the event log, opened when first asked for."""
        if self._log is None:
            self._log = open_event_log(self.settings.log_url())
            await self._log.start()
            self.on_close(self._log.close)
        return self._log

    def stop(self) -> None:
        """Begin the end, as SIGTERM does."""
        self._stop.set()

    async def run(self, started: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serve until told to stop, then drain and close. Raises what a background task raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # What lives as long as the process need not be looked at again and again.
        gc.collect()
        gc.freeze()
        gc.disable()
        ticker = asyncio.create_task(self._tick())
        try:
            if self.settings.grpc_listen:
                await self.network.listen(self.settings.grpc_listen)
            if started is not None:
                await started()
            await self._stop.wait()
            await self._drain()
        finally:
            ticker.cancel()
            gc.enable()
            await self.close()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop the tasks and close the resources, without draining."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.network.close()
        await self._resources.aclose()
        telemetry.shutdown()

    async def _drain(self) -> None:
        self.draining.set()
        log.info("draining")
        try:
            async with asyncio.timeout(self.settings.drain_timeout_s):
                for drain in self._drains:
                    await drain()
        except TimeoutError:
            log.warning("drain bound of %s s reached", self.settings.drain_timeout_s)

    async def _tick(self) -> None:
        """Show that the loop turns, and collect garbage by the clock instead of by allocations.

        By allocations the collector would look through the whole heap again and again under load,
        for a request path that makes no cycle.
        """
        collected_at = time.monotonic()
        with suppress(asyncio.CancelledError):
            while True:
                self._ticked_at = time.monotonic()
                if self._ticked_at - collected_at > COLLECT_ALL_S:
                    collected_at = self._ticked_at
                    gc.collect()
                else:
                    gc.collect(1)
                await asyncio.sleep(TICK_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._stop.is_set():
            return
        failure = task.exception() or RuntimeError(f"task {task.get_name()} ended")
        log.error("task %s failed: stopping", task.get_name(), exc_info=failure)
        self._failure = failure
        self._stop.set()
