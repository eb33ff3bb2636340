"""Generation ids: ULIDs, which sort by the time they were made."""

import os
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_RANDOM_BITS = 80
_STEP_BITS = 32
_RANDOM_BYTES = 4096


class Ulids:
    """Makes ids that only grow, also within one millisecond and when the clock steps back."""

    def __init__(self) -> None:
        self._last = 0
        self._random = b""
        self._used = 0

    def new(self) -> str:
        """Return 26 characters of Crockford's base 32."""
        value = (time.time_ns() // 1_000_000) << _RANDOM_BITS
        if value >> _RANDOM_BITS > self._last >> _RANDOM_BITS:
            value |= self._draw(_RANDOM_BITS // 8)
        else:  # a random step keeps the next id as hard to guess as any
            value = self._last + 1 + self._draw(_STEP_BITS // 8)
        self._last = value
        pairs = _PAIRS
        return "".join([pairs[(value >> shift) & 1023] for shift in _SHIFTS])

    def _draw(self, count: int) -> int:
        """Return a random number of `count` bytes; the system is asked for many at a time."""
        if self._used + count > len(self._random):
            self._random, self._used = os.urandom(_RANDOM_BYTES), 0
        start, self._used = self._used, self._used + count
        return int.from_bytes(self._random[start : self._used])


_SHIFTS = tuple(range(120, -1, -10))
