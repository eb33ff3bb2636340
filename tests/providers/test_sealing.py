"""Credentials at rest."""

import stat
from pathlib import Path

import pytest

from services.providers import sealing
from services.providers.sealing import SealBroken, Sealer

ONE, TWO = b"1" * 32, b"2" * 32


def test_what_is_sealed_opens_again_and_is_never_the_same_twice() -> None:
    sealer = Sealer([ONE])
    first, second = sealer.seal("sk-secret", "acme"), sealer.seal("sk-secret", "acme")
    assert sealer.open(first, "acme") == sealer.open(second, "acme") == "sk-secret"
    assert first != second
    assert b"sk-secret" not in first


@pytest.mark.parametrize("at", [0, 1, 6, 20, -1])
def test_a_changed_byte_is_noticed(at: int) -> None:
    sealer = Sealer([ONE])
    sealed = bytearray(sealer.seal("sk-secret", "acme"))
    sealed[at] ^= 1
    with pytest.raises(SealBroken):
        sealer.open(bytes(sealed), "acme")


def test_it_opens_only_for_what_it_was_sealed_for() -> None:
    sealer = Sealer([ONE])
    with pytest.raises(SealBroken):
        sealer.open(sealer.seal("sk-secret", "acme"), "other")


def test_a_rotated_key_seals_anew_and_still_opens_the_old() -> None:
    old = Sealer([ONE]).seal("sk-secret", "acme")
    rotated = Sealer([TWO, ONE])
    assert rotated.open(old, "acme") == "sk-secret"
    with pytest.raises(SealBroken):
        Sealer([ONE]).open(rotated.seal("sk-secret", "acme"), "acme")


def test_the_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "var" / "sealing.key"
    sealed = sealing.load(path, create=True).seal("sk-secret", "acme")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["sealing.key"]
    assert sealing.load(path, create=True).open(sealed, "acme") == "sk-secret"


def test_a_missing_or_short_key_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="BOURSE_PROVIDERS_SEALING_KEY_FILE"):
        sealing.load(tmp_path / "nowhere", create=False)
    path = tmp_path / "short"
    path.write_text("c2hvcnQ=\n")
    with pytest.raises(ValueError, match="32 bytes"):
        sealing.load(path, create=False)


def test_a_mask_gives_nothing_away_of_short_secrets() -> None:
    assert sealing.mask("sk-1234567890abcdef") == "sk-…cdef"
    assert sealing.mask("short") == "…"
