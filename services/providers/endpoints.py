"""What the worker knows of endpoints: a view in memory, fed by the registry's Watch.

It holds the opened credentials and everything about an endpoint that is the same for each call.
While the registry is away the view stays as it is and serving goes on.
"""

import asyncio
import importlib
import logging
import pkgutil
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, cast

from bourse.rpc import RpcError
from bourse.v1.registry_pb2 import WatchRequest, WatchResponse, WorkerEndpoint
from services.providers import dialects
from services.providers.call import Credential, Dialect, Endpoint
from services.providers.egress import EgressRefused, Guard
from services.providers.presets import PLAIN, PRESETS
from services.providers.sealing import SealBroken, Sealer

log = logging.getLogger(__name__)

RATIO_UNKNOWN = 0.25
"""Tokens per byte until an endpoint's own ratio is learned."""
BACK_OFF_S = (0.1, 5.0)
SANDBOX_SCHEME = "sandbox://"


class Watching(Protocol):
    """The one RPC of Registry that the worker calls."""

    def Watch(self, request: WatchRequest) -> AsyncIterator[WatchResponse]: ...


@dataclass(frozen=True, slots=True)
class Served:
    """An endpoint, ready to be called."""

    endpoint: Endpoint
    credential: Credential
    dialect: Dialect
    provider: str
    provider_name: str
    house: bool
    first_byte_timeout_s: float
    """0: the worker's default."""
    prompt_tokens_per_byte: float
    completion_tokens_per_byte: float
    extensions: dict[str, object]
    """Of every request to it: whose connections it uses."""


class Endpoints:
    """The endpoints that this worker can call, by id."""

    def __init__(self, registry: Watching, sealer: Sealer, guard: Guard, worker: str) -> None:
        self.synced = False
        """Whether a snapshot was ever complete."""
        self._registry = registry
        self._sealer = sealer
        self._guard = guard
        self._worker = worker
        self._served: dict[str, Served] = {}
        self._changed = asyncio.Event()

    def get(self, id: str) -> Served | None:
        return self._served.get(id)

    async def find(self, id: str, timeout_s: float) -> Served | None:
        """Return the endpoint; wait for it a little, since routing may have heard of it first."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while id not in self._served:
                    await self._changed.wait()
        return self._served.get(id)

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        pause_s, longest_s = BACK_OFF_S
        while True:
            try:
                async for response in self._snapshot_then_changes():
                    self._apply(response)
                    if response.synced:
                        pause_s = BACK_OFF_S[0]
            except RpcError as error:
                log.warning("registry not watched, again in %.1f s: %s", pause_s, error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, longest_s)

    async def _snapshot_then_changes(self) -> AsyncIterator[WatchResponse]:
        seen: set[str] = set()
        synced = False
        async for response in self._registry.Watch(WatchRequest(worker=self._worker)):
            if not synced:
                seen.update(each.endpoint for each in response.endpoints)
            if response.synced:
                synced = True
                for id_ in self._served.keys() - seen:
                    del self._served[id_]
            yield response

    def _apply(self, response: WatchResponse) -> None:
        for told in response.endpoints:
            try:
                self._served[told.endpoint] = self._ready(told)
            except (SealBroken, EgressRefused, LookupError) as error:
                # Never the old view of it: its owner has changed something that we cannot follow.
                self._served.pop(told.endpoint, None)
                log.error("endpoint %s cannot be served: %s", told.endpoint, error)
        for id_ in response.removed:
            self._served.pop(id_, None)
        self.synced = self.synced or response.synced
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _ready(self, told: WorkerEndpoint) -> Served:
        if not told.base_url.startswith(SANDBOX_SCHEME):
            self._guard.check_url(told.base_url)
        secret = ""
        if told.sealed_credential:
            secret = self._sealer.open(told.sealed_credential, told.provider)
        preset = PRESETS.get(told.preset) or PLAIN[told.dialect]
        return Served(
            endpoint=Endpoint(
                id=told.endpoint,
                base_url=told.base_url,
                dialect=told.dialect,
                preset=preset,
                upstream_model=told.upstream_model,
                supported_parameters=frozenset(told.supported_parameters),
                max_completion_tokens=told.max_completion_tokens,
                context_length=told.context_length,
            ),
            credential=Credential(told.credential_kind, told.credential_header, secret),
            dialect=dialect_named(told.dialect),
            provider=told.provider,
            provider_name=told.provider_name,
            house=told.house,
            first_byte_timeout_s=told.first_byte_timeout_ms / 1000,
            prompt_tokens_per_byte=told.prompt_tokens_per_byte or RATIO_UNKNOWN,
            completion_tokens_per_byte=told.completion_tokens_per_byte or RATIO_UNKNOWN,
            extensions={"pool": told.endpoint},
        )


def dialect_names() -> frozenset[str]:
    """The dialects there are: the files of the folder, so there is no list to edit."""
    return frozenset(module.name for module in pkgutil.iter_modules(dialects.__path__))


def dialect_named(name: str) -> Dialect:
    """Raises LookupError."""
    if name not in dialect_names():
        raise LookupError(f"no dialect {name!r}")
    return cast(Dialect, importlib.import_module(f"{dialects.__name__}.{name}"))
