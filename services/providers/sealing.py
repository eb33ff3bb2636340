"""Seal providers' credentials with AES-GCM; the key never leaves its file and this process.

A sealed value is `version (1) | key id (4) | nonce (12) | ciphertext and tag`. It is bound to what
it was sealed for (the provider's slug), so a row copied to another provider does not open.
"""

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_VERSION = b"\x01"
_KEY_BYTES = 32
_NONCE_BYTES = 12


class SealBroken(Exception):
    """A sealed credential does not open: another key, another provider, or damage."""


class Sealer:
    """Seals with the first of its keys and opens with any: rotation is a new first line."""

    def __init__(self, keys: list[bytes]) -> None:
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise ValueError("a sealing key has 32 bytes, in base64, one a line")
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._first = _key_id(keys[0])

    def seal(self, secret: str, bound_to: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._first].encrypt(nonce, secret.encode(), bound_to.encode())
        return _VERSION + self._first + nonce + sealed

    def open(self, sealed: bytes, bound_to: str) -> str:
        """Raises SealBroken."""
        cipher = self._ciphers.get(sealed[1:5])
        if sealed[:1] != _VERSION or cipher is None:
            raise SealBroken("sealed with a key that this process does not have")
        nonce, text = sealed[5 : 5 + _NONCE_BYTES], sealed[5 + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, text, bound_to.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise SealBroken("sealed for another provider, or damaged") from error


def load(path: Path, *, create: bool) -> Sealer:
    """Read the keys in `path`; with `create`, make the file (mode 0600) where there is none."""
    if create and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(path)
    try:
        lines = path.read_text(encoding="ascii").split()
        return Sealer([base64.b64decode(line, validate=True) for line in lines])
    except FileNotFoundError:
        raise ValueError(
            f"no sealing key at {path}: set BOURSE_PROVIDERS_SEALING_KEY_FILE"
        ) from None


def mask(secret: str) -> str:
    """What may be shown of a secret: its ends, if it is long enough to keep the rest."""
    return f"{secret[:3]}…{secret[-4:]}" if len(secret) >= 16 else "…"


def _create(path: Path) -> None:
    # Written beside and linked into place: of two processes that start at once, one file wins,
    # and nobody reads half of it.
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n")
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"bourse sealing key" + key).digest()[:4]
