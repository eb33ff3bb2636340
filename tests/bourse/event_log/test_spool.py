"""The spool: what was settled is there after any end, whole, in order, once."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bourse.event_log import segments
from bourse.event_log.spool import OpenIntent, Spool, SpoolFull, SpoolInUse

Step = tuple[str, str, bytes]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    opened.open()
    yield opened
    opened.close()


def reopened(directory: Path, to: Path, **options: int) -> Spool:
    """A spool as the next process finds it, whatever the last one still holds open."""
    shutil.copytree(directory, to, dirs_exist_ok=True)
    found = Spool(to, **options)
    found.open()
    return found


def names(spool: Spool) -> list[str]:
    return [each.id for each in spool.unshipped()]


def apply(spool: Spool, steps: list[Step]) -> None:
    for kind, name, data in steps:
        if kind == "intent":
            spool.intent(name, data)
        elif kind == "checkpoint":
            spool.checkpoint(name, data)
        else:
            spool.settle(name, b"key of " + name.encode(), data)


def expected(steps: list[Step]) -> tuple[list[OpenIntent], list[tuple[str, bytes]]]:
    """What a model of a few lines says is open and unshipped."""
    opened: dict[str, OpenIntent] = {}
    settled = []
    for kind, name, data in steps:
        if kind == "intent":
            opened[name] = OpenIntent(name, data, None)
        elif kind == "checkpoint" and name in opened:
            opened[name] = OpenIntent(name, opened[name].intent, data)
        elif kind == "settle":
            opened.pop(name, None)
            settled.append((name, data))
    return list(opened.values()), settled


def found(spool: Spool) -> tuple[list[OpenIntent], list[tuple[str, bytes]]]:
    return spool.open_intents(), [(each.id, each.value) for each in spool.unshipped()]


def newest(directory: Path) -> Path:
    return max(
        path for path in directory.iterdir() if path.name.isdigit() and os.path.getsize(path)
    )


def test_what_was_settled_is_unshipped_until_it_is_marked(spool: Spool) -> None:
    spool.settle("a", b"key", b"value")
    spool.settle("b", b"", b"")
    first, second = spool.unshipped()
    assert (first.id, first.key, first.value) == ("a", b"key", b"value")
    assert spool.depth == 2
    assert spool.bytes > 0
    assert spool.oldest_age_s >= 0

    spool.mark_shipped([first])
    assert names(spool) == ["b"]
    spool.mark_shipped([second])
    assert (names(spool), spool.depth, spool.bytes, spool.oldest_age_s) == ([], 0, 0, 0)


def test_unshipped_gives_the_oldest_first_over_many_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", segment_bytes=200)
    spool.open()
    for number in range(50):
        spool.intent(f"{number}", b"i" * 20)
        spool.settle(f"{number}", b"key", b"v" * 30)
    taken = []
    while batch := spool.unshipped(7):
        taken += [each.id for each in batch]
        spool.mark_shipped(batch)
    assert taken == [f"{number}" for number in range(50)]
    spool.close()


def test_the_next_process_finds_what_was_open_and_what_was_not_shipped(
    spool: Spool, tmp_path: Path
) -> None:
    spool.intent("a", b"begun a")
    spool.intent("b", b"begun b")
    spool.checkpoint("b", b"half")
    spool.checkpoint("b", b"more")
    spool.intent("c", b"begun c")
    spool.settle("c", b"key", b"done")
    spool.settle("d", b"key", b"never begun")
    spool.mark_shipped(spool.unshipped(1))

    after = reopened(tmp_path / "spool", tmp_path / "after")

    assert after.open_intents() == [
        OpenIntent("a", b"begun a", None),
        OpenIntent("b", b"begun b", b"more"),
    ]
    assert names(after) == ["d"]
    assert after.depth == 1
    after.settle("a", b"key", b"lost")
    assert [each.id for each in after.open_intents()] == ["b"]
    assert names(after) == ["d", "a"]
    after.close()


def test_a_torn_tail_costs_no_whole_record_at_any_byte(tmp_path: Path) -> None:
    """The last write is cut at every byte it can be cut at."""
    steps = [
        ("intent", "one", b"begun"),
        ("settle", "one", b"first"),
        ("intent", "two", b"begun"),
        ("checkpoint", "two", b"half way"),
        ("settle", "two", b"second"),
    ]
    spool = Spool(tmp_path / "spool")
    spool.open()
    ends = [0]
    for step in steps:
        apply(spool, [step])
        ends.append(spool.disk_bytes)
    spool.close()
    data = newest(tmp_path / "spool").read_bytes()
    assert len(data) == ends[-1], "a closed segment has no unused room"

    for cut in range(len(data) + 1):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        (directory / f"{1:020d}").write_bytes(data[:cut])
        after = Spool(directory)
        after.open()
        whole = max(number for number, end in enumerate(ends) if end <= cut)
        assert found(after) == expected(steps[:whole]), f"cut at byte {cut}"
        after.settle("next", b"key", b"after the tear")
        assert names(after)[-1] == "next"
        after.close()


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["intent", "checkpoint", "settle"]),
            st.sampled_from(["a", "b", "c", "é"]),
            st.binary(max_size=40),
        ),
        max_size=30,
    ),
    cut=st.integers(min_value=0, max_value=200),
    flip=st.booleans(),
    shipped=st.integers(min_value=0, max_value=5),
    segment_bytes=st.sampled_from([60, 150, 10_000]),
)
def test_recovery_is_the_longest_whole_prefix(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[Step],
    cut: int,
    flip: bool,
    shipped: int,
    segment_bytes: int,
) -> None:
    """Cut or damage the newest segment: what stood before is there, what came after is not."""
    directory = tmp_path_factory.mktemp("spool")
    spool = Spool(directory, segment_bytes=segment_bytes)
    spool.open()
    sizes = []
    for step in steps:
        before = spool.disk_bytes
        apply(spool, [step])
        sizes.append(spool.disk_bytes - before)
    ship = spool.unshipped(shipped)
    if ship:
        spool.mark_shipped(ship)
    spool.close()

    whole = len(steps)
    if steps:
        path = newest(directory)
        data = path.read_bytes()
        keep = max(0, len(data) - cut)
        if flip and keep < len(data):
            data = data[:keep] + bytes([data[keep] ^ 0x55]) + data[keep + 1 :]
            path.write_bytes(data)
        else:
            os.truncate(path, keep)
        left = len(data)
        while whole and left > keep:
            whole -= 1
            left -= sizes[whole]
            if left <= 0:
                break

    after = Spool(directory, segment_bytes=segment_bytes)
    after.open()
    opened, settled = expected(steps[:whole])
    assert after.open_intents() == opened
    assert [(each.id, each.value) for each in after.unshipped()] == settled[len(ship) :]
    after.close()


def test_damage_in_an_old_segment_costs_only_what_follows_in_it(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    spool = Spool(directory, segment_bytes=300)
    spool.open()
    for number in range(30):
        spool.settle(f"{number}", b"key", b"v" * 40)
    spool.close()
    first = min(path for path in directory.iterdir() if path.name.isdigit())
    in_first = [entry.id for entry in segments.scan(first)]
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    first.write_bytes(damaged)

    after = Spool(directory)
    after.open()
    lost = {f"{number}" for number in range(30)} - set(names(after))
    assert lost
    assert lost < set(in_first), "only of the damaged segment, and not all of it"
    assert list(directory.glob("*.damaged"))
    after.close()


def test_a_lost_or_damaged_mark_only_ships_again(spool: Spool, tmp_path: Path) -> None:
    for name in "abc":
        spool.settle(name, b"key", b"value")
    spool.mark_shipped(spool.unshipped(2))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "spool", copy)
    for content in (b"", b"\x01\x02", os.urandom(20)):
        (copy / "shipped").write_bytes(content)
        after = Spool(copy)
        after.open()
        assert names(after) == ["a", "b", "c"]
        after.close()


def test_segments_go_when_shipped_and_old_enough_and_nothing_in_them_is_open(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "spool"
    spool = Spool(directory, segment_bytes=100)
    spool.open()
    spool.settle("first", b"key", b"v" * 100)
    spool.intent("long", b"i" * 100)
    for number in range(5):
        spool.settle(f"{number}", b"key", b"v" * 100)

    def files() -> int:
        return sum(path.name.isdigit() for path in directory.iterdir())

    spool.delete_shipped(0)
    assert files() == 8, "nothing is shipped"
    spool.mark_shipped(spool.unshipped())
    spool.delete_shipped(3600)
    assert files() == 8, "the retention has not passed"
    spool.delete_shipped(0)
    assert files() == 7, "the one that the open intent stands in stays"

    spool.close()
    again = Spool(directory, segment_bytes=100)
    again.open()
    assert [each.id for each in again.open_intents()] == ["long"]
    again.settle("long", b"key", b"v")
    again.mark_shipped(again.unshipped())
    again.delete_shipped(0)
    assert files() == 1
    assert again.depth == 0
    again.close()


def test_retention_is_measured_from_the_last_write(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    spool = Spool(directory, segment_bytes=100)
    spool.open()
    for name in "ab":  # the second needs another segment
        spool.settle(name, b"key", b"v" * 50)
    spool.mark_shipped(spool.unshipped())
    old = min(path for path in directory.iterdir() if path.name.isdigit())
    past = time.time() - 7200
    os.utime(old, (past, past))
    spool.delete_shipped(3600)
    assert not old.exists()
    spool.close()


def test_P3_above_the_cap_nothing_new_begins_and_what_began_still_settles(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", segment_bytes=200, max_bytes=1000)
    spool.open()
    begun = 0
    while not spool.full:
        spool.intent(f"{begun}", b"i" * 50)
        begun += 1
    with pytest.raises(SpoolFull):
        spool.intent("one too many", b"")
    for each in range(begun):
        spool.settle(f"{each}", b"key", b"v" * 50)
    assert spool.depth == begun

    spool.mark_shipped(spool.unshipped())
    spool.intent("again", b"")
    assert spool.disk_bytes < 1000
    spool.close()


def test_a_spool_has_one_owner(spool: Spool, tmp_path: Path) -> None:
    other = Spool(tmp_path / "spool")
    with pytest.raises(SpoolInUse):
        other.open()


def test_a_killed_process_leaves_room_that_is_taken_back_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    spool.open()
    spool.settle("a", b"key", b"ends in zeros\0\0\0")
    after = reopened(tmp_path / "spool", tmp_path / "after")
    assert [each.value for each in after.unshipped()] == [b"ends in zeros\0\0\0"]
    assert not caplog.records
    after.close()
    spool.close()


def test_sequence_numbers_have_no_gap(spool: Spool) -> None:
    assert [spool.next_seq() for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool", segment_bytes=100)
    spool.open()
    spool.settle("a", b"key", b"v" * 50)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="space"):
            spool.settle("b", b"key", b"v" * 50)  # needs another segment
    assert names(spool) == ["a"]
    assert spool.depth == 1
    spool.settle("c", b"key", b"v" * 50)

    assert names(spool) == ["a", "c"]
    after = reopened(tmp_path / "spool", tmp_path / "after")
    assert names(after) == ["a", "c"]
    after.close()
    spool.close()
