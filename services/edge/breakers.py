"""What edge itself has just seen of endpoints: breakers and cool-downs, in memory.

A *breaker* opens on failures that count against the provider: 5 in a row, or half of at least 10
within 2 s; for 2 s, doubling to 60 s, then one probe. A *cool-down* is what an endpoint asked for
(429) or earned (401, 402); it has one absolute end and ends early on a success. Neither leaves a
model without candidates. A client that leaves, and our own faults, never count.
"""

import time
from collections import deque
from collections.abc import Callable

from bourse.v1.events_pb2 import Outcome
from bourse.v1.generation_pb2 import Failed

FAILURES_IN_A_ROW = 5
WINDOW_S = 2.0
WINDOW_ATTEMPTS_MIN = 10
OPEN_S = (2.0, 60.0)
RATE_LIMITED_S = (10.0, 60.0)
REFUSED_S = (60.0, 900.0)
RETRY_AFTER_MAX_S = 300.0

NOT_COUNTED = frozenset({400, 403, 413, 422, 429})
_WINDOW_MAX = 512


class _Endpoint:
    __slots__ = (
        "cool_for_s", "cool_until", "in_a_row", "open_for_s", "open_until", "probing", "results",
    )  # fmt: skip

    def __init__(self) -> None:
        self.in_a_row = 0
        self.results: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_MAX)
        self.open_for_s = 0.0
        self.open_until = 0.0
        self.probing = False
        self.cool_for_s = 0.0
        self.cool_until = 0.0


class Breakers:
    """The endpoints that edge has met a failure of lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._endpoints: dict[str, _Endpoint] = {}

    def usable(self, endpoint: str) -> bool:
        """Whether a request may go there now; an open breaker lets one probe pass at its end."""
        state = self._endpoints.get(endpoint)
        if state is None:
            return True
        now = self._clock()
        if now < state.cool_until or now < state.open_until:
            return False
        return not (state.open_for_s and state.probing)

    def began(self, endpoint: str) -> None:
        """An attempt goes out: after an open time it is the probe."""
        state = self._endpoints.get(endpoint)
        if state is not None and state.open_for_s:
            state.probing = True

    def succeeded(self, endpoint: str) -> None:
        """The first content came: everything held against the endpoint is forgotten."""
        state = self._endpoints.get(endpoint)
        if state is None:
            return
        state.in_a_row = 0
        state.open_for_s = state.cool_for_s = 0.0
        state.open_until = state.cool_until = 0.0
        state.probing = False
        state.results.append((self._clock(), True))

    def ended(self, endpoint: str) -> None:
        """An attempt ended without a verdict: a client left, or the fault was ours."""
        state = self._endpoints.get(endpoint)
        if state is not None:
            state.probing = False

    def failed(self, endpoint: str, failed: Failed) -> None:
        """Take note of how an attempt failed."""
        status = failed.upstream_status or failed.status
        if failed.outcome != Outcome.OUTCOME_FAILED:
            self.ended(endpoint)
            return
        state = self._endpoints.setdefault(endpoint, _Endpoint())
        state.probing = False
        if status == 429:
            self._cool(state, RATE_LIMITED_S, failed.retry_after_ms / 1_000)
        elif status in (401, 402):
            self._cool(state, REFUSED_S, 0.0)
        if status not in NOT_COUNTED:
            self._count(state)

    def cools_for_s(self, endpoint: str) -> float:
        """How long the endpoint stays passed over; 0: it is not."""
        state = self._endpoints.get(endpoint)
        if state is None:
            return 0.0
        return max(state.cool_until - self._clock(), state.open_until - self._clock(), 0.0)

    def _cool(self, state: _Endpoint, bounds: tuple[float, float], asked_s: float) -> None:
        if asked_s > 0:
            seconds = min(asked_s, RETRY_AFTER_MAX_S)
        else:
            seconds = min(max(2 * state.cool_for_s, bounds[0]), bounds[1])
            state.cool_for_s = seconds
        state.cool_until = self._clock() + seconds

    def _count(self, state: _Endpoint) -> None:
        now = self._clock()
        state.in_a_row += 1
        state.results.append((now, False))
        while state.results and state.results[0][0] < now - WINDOW_S:
            state.results.popleft()
        attempts = len(state.results)
        failures = sum(not ok for _, ok in state.results)
        many = attempts >= WINDOW_ATTEMPTS_MIN and 2 * failures >= attempts
        if now >= state.open_until and (
            state.in_a_row >= FAILURES_IN_A_ROW or many or state.open_for_s
        ):
            state.open_for_s = min(max(2 * state.open_for_s, OPEN_S[0]), OPEN_S[1])
            state.open_until = now + state.open_for_s
