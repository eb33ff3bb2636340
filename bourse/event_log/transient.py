"""What passes by itself, and how long to wait for it."""

import asyncio
import logging

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bourse.event_log.protocol import LogUnavailable

log = logging.getLogger(__name__)

# PostgreSQL's errors that pass: connection, rollback, resources, locks, operator, system.
_TRANSIENT_STATES = ("08", "40", "53", "55", "57", "58")


class Transient(Exception):
    """A handler's way to say: not now. The batch is tried again, nothing is skipped."""


def is_transient(error: BaseException) -> bool:
    """True if the same call may succeed later without anyone changing code or data."""
    if isinstance(error, Transient | LogUnavailable | OSError | TimeoutError | PoolTimeout):
        return True
    if isinstance(error, OperationalError | InterfaceError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # While it connects, the driver's own errors come as they are.
    driver_error = error.orig if isinstance(error, DBAPIError) else error
    state = str(getattr(driver_error, "sqlstate", None) or "")
    return state.startswith(_TRANSIENT_STATES)


class BackOff:
    """Waits between tries, twice as long each time, up to a bound."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 5.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self._first_s

    async def wait(self, what: str, error: BaseException) -> None:
        """Log what failed and sleep."""
        log.warning("%s failed, again in %.1f s: %r", what, self._next_s, error)
        await asyncio.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
