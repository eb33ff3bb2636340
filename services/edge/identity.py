"""Who asks: every key in memory, as the `identity` topic tells them.

A change is visible on every edge as soon as the topic brings it. Versions only grow, so an old
state that arrives late changes nothing.
"""

import hashlib
import time
from collections.abc import Callable, Mapping

from bourse.event_log import IDENTITY, EventLog, Record
from bourse.event_log.envelope import NotAnEnvelope, read_envelope
from bourse.v1.events_pb2 import KeyState
from services.edge.errors import ApiError
from services.edge.keys import Key, of_state
from services.edge.views import follow

_BEARER = b"bearer "


class Identity:
    """The keys this edge knows."""

    def __init__(self, wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._keys: dict[str, Key] = {}
        self._gone: dict[str, int] = {}
        self._wall_ms = wall_ms
        self.caught_up = False

    def inference(self, headers: Mapping[bytes, bytes]) -> Key:
        """Return the caller's key, which may ask models. Raises ApiError 401 or 403."""
        key = self.caller(headers, also_x_api_key=True)
        if key.is_management:
            raise ApiError(403, "A management key cannot do inference.")
        return key

    def management(self, headers: Mapping[bytes, bytes]) -> Key:
        """Return the caller's key, which may manage its account. Raises ApiError 401 or 403."""
        key = self.caller(headers)
        if not key.is_management:
            raise ApiError(403, "This needs a management key.")
        return key

    def caller(self, headers: Mapping[bytes, bytes], also_x_api_key: bool = False) -> Key:
        """Return the key that the headers (lower-case names) carry. Raises ApiError 401."""
        authorization = headers.get(b"authorization")
        secret: bytes | None = None
        if authorization is not None:
            if authorization[:7].lower() == _BEARER:
                secret = authorization[7:].strip()
        elif also_x_api_key:
            secret = headers.get(b"x-api-key")
        if not secret:
            raise ApiError(401, "No API key: send `Authorization: Bearer <key>`.")
        key = self._keys.get(hashlib.sha256(secret).hexdigest())
        if key is None:
            raise ApiError(401, "This API key is not known.")
        if key.disabled:
            raise ApiError(401, "This API key is disabled.")
        if key.expires_at_ms and key.expires_at_ms <= self._wall_ms():
            raise ApiError(401, "This API key has expired.")
        return key

    def apply(self, key: Key) -> None:
        """Take a key's state, unless a newer one is known."""
        known = self._keys.get(key.hash)
        version = self._gone.get(key.hash, 0) if known is None else known.version
        if version < key.version:
            self._keys[key.hash] = key

    def remove(self, key_hash: str) -> None:
        """Forget a deleted key for good; the highest version stays known."""
        known = self._keys.pop(key_hash, None)
        if known is not None:
            self._gone[key_hash] = known.version

    async def run(self, log: EventLog) -> None:
        """Follow the topic. Never ends."""
        await follow(log, IDENTITY, self._read, self._reached_end)

    def _reached_end(self) -> None:
        self.caught_up = True

    def _read(self, record: Record) -> None:
        if record.value is None:
            self.remove(record.key.decode())
            return
        event = read_envelope(record)
        if event.type != "KeyState":
            raise NotAnEnvelope(f"a {event.type} on the identity topic")
        self.apply(of_state(KeyState.FromString(event.data)))
