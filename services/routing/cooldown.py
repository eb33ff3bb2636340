"""How long an endpoint that refused us is passed over: one absolute end, doubling per refusal."""


class CoolDown:
    """A refusal starts it; refusals of attempts begun before its end belong to it and add nothing.

    A success of an attempt begun after the refusal ends it and forgets the doubling. One that was
    under way already proves nothing and changes nothing.
    """

    __slots__ = ("_asked_max_ms", "_began_ms", "_first_ms", "_longest_ms", "_strikes", "end_ms")

    def __init__(self, first_ms: int, longest_ms: int, asked_max_ms: int = 0) -> None:
        self._first_ms = first_ms
        self._longest_ms = longest_ms
        self._asked_max_ms = asked_max_ms
        self._began_ms = 0
        self._strikes = 0
        self.end_ms = 0
        """The endpoint is passed over before this moment."""

    def refused(self, started_ms: int, finished_ms: int, asked_ms: int = 0) -> None:
        """Count a refusal; `asked_ms` is the upstream's own Retry-After, 0 where it gave none."""
        if started_ms < self.end_ms:
            return
        length_ms = min(self._first_ms << min(self._strikes, 16), self._longest_ms)
        if asked_ms > 0:
            length_ms = min(asked_ms, self._asked_max_ms or self._longest_ms)
        self._strikes += 1
        self._began_ms = finished_ms
        self.end_ms = finished_ms + length_ms

    def succeeded(self, started_ms: int) -> None:
        if self._strikes and started_ms >= self._began_ms:
            self._strikes = 0
            self.end_ms = 0
