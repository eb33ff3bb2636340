"""Counts over a sliding window, in buckets of fixed width: bounded memory, any rate of events."""


class Windows:
    """Two counters, `counted` and `failed`, per slot of `width_ms`, for the last `slots` slots.

    A window of n slots at a moment is the slot that contains the moment and the n - 1 before it.
    Events may come late, as long as their slot is still kept.
    """

    __slots__ = ("_counted", "_failed", "_slot_of", "_slots", "_width_ms")

    def __init__(self, width_ms: int, slots: int) -> None:
        self._width_ms = width_ms
        self._slots = slots
        self._slot_of = [-1] * slots
        self._counted = [0] * slots
        self._failed = [0] * slots

    def add(self, at_ms: int, failed: bool) -> None:
        slot = at_ms // self._width_ms
        place = slot % self._slots
        kept = self._slot_of[place]
        if kept > slot:
            return  # older than everything kept
        if kept < slot:
            self._slot_of[place] = slot
            self._counted[place] = self._failed[place] = 0
        self._counted[place] += 1
        self._failed[place] += failed

    def total(self, now_ms: int, slots: int) -> tuple[int, int]:
        """Return (counted, failed) over the last `slots` slots."""
        newest = now_ms // self._width_ms
        oldest = newest - slots
        counted = failed = 0
        for place, slot in enumerate(self._slot_of):
            if oldest < slot <= newest:
                counted += self._counted[place]
                failed += self._failed[place]
        return counted, failed
