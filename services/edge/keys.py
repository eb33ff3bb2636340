"""API keys: random, shown once, known afterwards by their SHA-256 alone."""

import hashlib
import secrets
from dataclasses import dataclass, replace

from bourse.v1.events_pb2 import KeyKind, KeyState

PREFIX = "sk-bourse-v1-"
_SECRET_BYTES = 32
INFERENCE = "inference"
MANAGEMENT = "management"
_KINDS = {INFERENCE: KeyKind.KEY_KIND_INFERENCE, MANAGEMENT: KeyKind.KEY_KIND_MANAGEMENT}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of an account. `hash` is its public name; `expires_at_ms` 0: never."""

    hash: str
    account: str
    kind: str
    name: str
    label: str
    disabled: bool = False
    expires_at_ms: int = 0
    created_at_ms: int = 0
    updated_at_ms: int = 0
    version: int = 1

    @property
    def is_management(self) -> bool:
        return self.kind == MANAGEMENT

    def changed(
        self, now_ms: int, *, name: str | None = None, disabled: bool | None = None
    ) -> "Key":
        """Return the next version of the key. Versions only grow."""
        return replace(
            self,
            name=self.name if name is None else name,
            disabled=self.disabled if disabled is None else disabled,
            updated_at_ms=now_ms,
            version=self.version + 1,
        )

    def state(self) -> KeyState:
        return KeyState(
            hash=self.hash,
            account=self.account,
            kind=_KINDS[self.kind],
            name=self.name,
            label=self.label,
            disabled=self.disabled,
            expires_at_ms=self.expires_at_ms,
            created_at_ms=self.created_at_ms,
            version=self.version,
        )


def of_state(state: KeyState) -> Key:
    return Key(
        hash=state.hash,
        account=state.account,
        kind=_NAMES.get(state.kind, INFERENCE),
        name=state.name,
        label=state.label,
        disabled=state.disabled,
        expires_at_ms=state.expires_at_ms,
        created_at_ms=state.created_at_ms,
        version=state.version,
    )


def mint(
    account: str, kind: str, name: str, now_ms: int, expires_at_ms: int = 0
) -> tuple[Key, str]:
    """Return a new key and its text, which is not kept anywhere."""
    secret = PREFIX + secrets.token_hex(_SECRET_BYTES)
    key = Key(
        hash=hash_of(secret),
        account=account,
        kind=kind,
        name=name,
        label=f"{secret[: len(PREFIX) + 3]}...{secret[-3:]}",
        expires_at_ms=expires_at_ms,
        created_at_ms=now_ms,
    )
    return key, secret


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
