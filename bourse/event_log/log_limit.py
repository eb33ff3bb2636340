"""Hold back a library that logs the same line hundreds of times a second in an outage."""

import logging
import time


class RateLimit(logging.Filter):
    """Lets a few records of each message pass per period, and then says how many it held back."""

    EACH = 3
    PERIOD_S = 10.0

    def __init__(self) -> None:
        super().__init__()
        self._periods: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        name = (record.name, str(record.msg)[:80])
        now = time.monotonic()
        since, count = self._periods.get(name, (now, 0))
        if now - since >= self.PERIOD_S:
            if count > self.EACH:
                record.msg = f"{record.msg} (and {count - self.EACH} like it)"
            since, count = now, 0
        if len(self._periods) > 1000:
            self._periods.clear()
        self._periods[name] = (since, count + 1)
        return count < self.EACH


_limit = RateLimit()


def limit_logs(package: str) -> None:
    """Limit a package's loggers. Call it again when it may have made new ones.

    A filter works only on the logger that it is on, not on those below, so each one gets it.
    """
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] == package:
            logging.getLogger(name).addFilter(_limit)  # adding it twice adds it once
