"""Accounts as ranking keeps them: a keyed hash, made at ingest."""

import hashlib
import os
import secrets
from pathlib import Path

KEY_BYTES_MIN = 16
HASH_BYTES = 16
RECENT_MAX = 10_000


class AccountHash:
    """Hashes account ids under one secret key; equal accounts have equal hashes."""

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES_MIN:
            raise ValueError(f"account_key needs at least {KEY_BYTES_MIN} characters")
        self._key = hashlib.sha256(key).digest()
        self._recent: dict[str, str] = {}

    def __call__(self, account: str) -> str:
        known = self._recent.get(account)
        if known is None:
            if len(self._recent) >= RECENT_MAX:
                self._recent.clear()
            known = self._recent[account] = self._hash(account)
        return known

    def _hash(self, account: str) -> str:
        digest = hashlib.blake2b(account.encode(), key=self._key, digest_size=HASH_BYTES)
        return digest.hexdigest()


def key_from_file(path: Path) -> bytes:
    """Return the key kept in a file, made now if there is none, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes().strip()
    with os.fdopen(made, "wb") as file:
        file.write(secrets.token_hex(32).encode())
    return path.read_bytes().strip()
