"""The windows in which spending is counted: cut at UTC midnight, weeks from Monday."""

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

_EPOCH = date(1970, 1, 1)


class WindowStarts(NamedTuple):
    """First days of the windows that are running, as days since 1970-01-01."""

    daily: int
    weekly: int
    monthly: int


def window_starts(now_ms: int) -> WindowStarts:
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    monday = today - timedelta(days=today.weekday())
    return WindowStarts(*((day - _EPOCH).days for day in (today, monday, today.replace(day=1))))
