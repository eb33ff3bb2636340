"""The registry's contract: `Registry` on gRPC and for direct calls. It translates."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from sqlalchemy import Row

from bourse.rpc import Context, RpcError
from bourse.v1 import registry_pb2 as pb
from services.providers import catalogue, registration, store
from services.providers.registration import Invalid
from services.providers.registry import NameTaken, NotFound, Registry, SlugTaken, profile_values
from services.providers.sealing import SealBroken, Sealer, mask

SNAPSHOT_PAGE = 200


class RegistryApi:
    """Every method raises RpcError: INVALID_ARGUMENT with a JSON pointer in `field`, NOT_FOUND for
    what is not this account's, ALREADY_EXISTS for a slug that is taken."""

    def __init__(
        self,
        registry: Registry,
        sealer: Sealer,
        *,
        poll_s: float = 1.0,
    ) -> None:
        self._registry = registry
        self._sealer = sealer
        self._poll_s = poll_s

    async def CreateProvider(
        self, request: pb.CreateProviderRequest, _context: Context
    ) -> pb.CreateProviderResponse:
        with _translated():
            if not request.account:
                raise Invalid("/account", "must not be empty")
            made = await self._registry.create_provider(
                request.account, request.profile, request.contact, house=request.house
            )
        return pb.CreateProviderResponse(provider=made)

    async def UpdateProvider(
        self, request: pb.UpdateProviderRequest, _context: Context
    ) -> pb.UpdateProviderResponse:
        fields = tuple(request.fields)

        def decide(row: Row[Any]) -> dict[str, Any]:
            for index, field in enumerate(fields):
                if field not in registration.PROFILE_FIELDS:
                    raise Invalid(f"/fields/{index}", "not a field that can be changed")
            merged = catalogue.profile(row)
            for field in fields:
                if field == "datacenters":
                    del merged.datacenters[:]
                    merged.datacenters.extend(request.profile.datacenters)
                else:
                    setattr(merged, field, getattr(request.profile, field))
            registration.check_profile(merged, house=row.house)
            return profile_values(merged, fields)

        changed = await self._change(request.account, request.slug, "provider.update", decide)
        return pb.UpdateProviderResponse(provider=changed)

    async def SetPolicies(
        self, request: pb.SetPoliciesRequest, _context: Context
    ) -> pb.SetPoliciesResponse:
        asked = request.policies

        def decide(_row: Row[Any]) -> dict[str, Any]:
            registration.check_policies(asked)
            return {
                "trains": asked.trains,
                "retention_days": asked.retention_days,
                "can_publish": asked.can_publish,
                "moderated": asked.moderated,
                "requires_user_id": asked.requires_user_id,
            }

        changed = await self._change(request.account, request.slug, "policies.set", decide)
        return pb.SetPoliciesResponse(provider=changed)

    async def SetConnection(
        self, request: pb.SetConnectionRequest, _context: Context
    ) -> pb.SetConnectionResponse:
        asked = request.connection

        def decide(row: Row[Any]) -> dict[str, Any]:
            known = self._registry.rules.known
            registration.check_connection(asked, known, house=row.house)
            return {
                "base_url": asked.base_url.rstrip("/"),
                "dialect": asked.dialect,
                "models_url": asked.models_url,
                "preset": asked.preset,
                "first_byte_timeout_ms": asked.first_byte_timeout_ms,
            }

        changed = await self._change(request.account, request.slug, "connection.set", decide)
        return pb.SetConnectionResponse(provider=changed)

    async def SetCredential(
        self, request: pb.SetCredentialRequest, _context: Context
    ) -> pb.SetCredentialResponse:
        def decide(row: Row[Any]) -> dict[str, Any]:
            registration.check_credential(request.kind, request.header, request.secret)
            if self._holds(row, request):
                return {}
            sealed = self._sealer.seal(request.secret, row.slug) if request.secret else b""
            return {
                "credential_kind": request.kind,
                "credential_header": request.header,
                "credential_label": mask(request.secret) if request.secret else "",
                "sealed_credential": sealed,
            }

        changed = await self._change(request.account, request.slug, "credential.set", decide)
        return pb.SetCredentialResponse(provider=changed)

    async def PutModel(self, request: pb.PutModelRequest, _context: Context) -> pb.PutModelResponse:
        with _translated():
            listing = await self._registry.put_model(request)
        return pb.PutModelResponse(listing=listing)

    async def AddPrice(self, request: pb.AddPriceRequest, _context: Context) -> pb.AddPriceResponse:
        with _translated():
            listing = await self._registry.add_price(
                request.account,
                request.slug,
                request.endpoint,
                request.price,
                confirm=request.confirm,
            )
        return pb.AddPriceResponse(listing=listing)

    async def GetProvider(
        self, request: pb.GetProviderRequest, _context: Context
    ) -> pb.GetProviderResponse:
        with _translated():
            async with self._registry.database.read() as connection:
                row = await self._registry.provider(connection, request.account, request.slug)
        return pb.GetProviderResponse(provider=catalogue.provider(row))

    async def ListProviders(
        self, request: pb.ListProvidersRequest, _context: Context
    ) -> pb.ListProvidersResponse:
        async with self._registry.database.read() as connection:
            rows = await store.providers(connection, request.account)
        return pb.ListProvidersResponse(providers=[catalogue.provider(row) for row in rows])

    async def ListEndpoints(
        self, request: pb.ListEndpointsRequest, _context: Context
    ) -> pb.ListEndpointsResponse:
        with _translated():
            async with self._registry.database.read() as connection:
                await self._registry.provider(connection, request.account, request.slug)
                offers = await store.offers_of(connection, request.slug)
        now_ms = self._registry.clock_ms()
        return pb.ListEndpointsResponse(
            listings=[catalogue.listing(offer, now_ms) for offer in offers]
        )

    async def Watch(
        self, _request: pb.WatchRequest, _context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        """A snapshot in pages, `synced`, then what changes, here or in another process."""
        seen, synced = 0, False
        while True:
            changed = self._registry.changed
            async with self._registry.database.read() as connection:
                current = await store.current_revision(connection)
                offers = await store.offers_since(connection, seen) if current > seen else []
            seen = current
            gone = [o.endpoint.id for o in offers if o.endpoint.state in catalogue.GONE]
            kept = [o for o in offers if o.endpoint.state not in catalogue.GONE]
            for start in range(0, len(kept), SNAPSHOT_PAGE):
                page = kept[start : start + SNAPSHOT_PAGE]
                yield pb.WatchResponse(endpoints=[catalogue.worker_endpoint(o) for o in page])
            if gone:
                yield pb.WatchResponse(removed=gone)
            if not synced:
                synced = True
                yield pb.WatchResponse(synced=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._poll_s)

    async def _change(
        self, account: str, slug: str, action: str, decide: Callable[[Row[Any]], dict[str, Any]]
    ) -> pb.Provider:
        with _translated():
            return await self._registry.change_provider(account, slug, action, decide)

    def _holds(self, row: Row[Any], request: pb.SetCredentialRequest) -> bool:
        """Whether this very credential is stored already: sealed again it would look like news."""
        if (row.credential_kind, row.credential_header) != (request.kind, request.header):
            return False
        if not row.sealed_credential:
            return not request.secret
        try:
            return self._sealer.open(row.sealed_credential, row.slug) == request.secret
        except SealBroken:
            return False


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Invalid as error:
        raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, error.message, field=error.field) from None
    except NotFound as error:
        raise RpcError(grpc.StatusCode.NOT_FOUND, error.message, field=error.field) from None
    except NameTaken:
        raise RpcError(
            grpc.StatusCode.ALREADY_EXISTS, "another provider has this name", field="/name"
        ) from None
    except SlugTaken:
        raise RpcError(
            grpc.StatusCode.ALREADY_EXISTS, "this slug is taken", field="/slug"
        ) from None
