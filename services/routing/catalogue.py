"""Every listing, in memory: the compacted topic `catalog`, last state per key."""

import logging
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from bourse.event_log import Record
from bourse.v1.events_pb2 import Envelope, Listing
from services.routing.endpoint import Endpoint, from_listing

log = logging.getLogger(__name__)

LISTING = "Listing"


class Catalogue:
    """Endpoints by model. Records are whole states, so a record met twice changes nothing."""

    def __init__(self) -> None:
        self.version = 0
        """Grows with every record: the topic's next offset, the same on every replica."""
        self._by_key: dict[bytes, Endpoint] = {}
        self._by_model: dict[str, tuple[Endpoint, ...]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of_model(self, model: str) -> Sequence[Endpoint]:
        """The endpoints whose listing has exactly this model name, variants included."""
        return self._by_model.get(model, ())

    def apply(self, records: Iterable[Record]) -> None:
        """Take records in order. One that cannot be read is logged and leaves its key as it was."""
        changed: set[str] = set()
        for record in records:
            self.version = max(self.version, record.offset + 1)
            try:
                endpoint = _read(record)
            except (DecodeError, ValueError) as error:
                log.error("catalog record %s is unreadable: %s", record.offset, error)
                continue
            before = self._by_key.pop(record.key, None)
            if before is not None:
                changed.add(before.model)
            if endpoint is not None:
                self._by_key[record.key] = endpoint
                changed.add(endpoint.model)
        if changed:
            self._index(changed)

    def _index(self, models: set[str]) -> None:
        found: dict[str, list[Endpoint]] = {model: [] for model in models}
        for endpoint in self._by_key.values():
            if endpoint.model in found:
                found[endpoint.model].append(endpoint)
        for model, endpoints in found.items():
            if endpoints:
                endpoints.sort(key=lambda endpoint: endpoint.id)
                self._by_model[model] = tuple(endpoints)
            else:
                self._by_model.pop(model, None)


def _read(record: Record) -> Endpoint | None:
    if record.value is None:
        return None
    envelope = Envelope.FromString(record.value)
    if envelope.type != LISTING:
        raise ValueError(f"not a listing but {envelope.type!r}")
    return from_listing(Listing.FromString(envelope.data))
