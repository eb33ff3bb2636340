"""Turn the bytes of one answer into chunks: its framing, then its dialect."""

import logging
from collections.abc import Iterator

from services.providers import refusals
from services.providers.call import AttemptFailed, Chunk, Reading
from services.providers.framing import Framing

log = logging.getLogger(__name__)


class Decoder:
    """One answer, fed with reads of any size. What it returns must be taken before it is fed again.

    `done`: all is said, and nothing more is to be read. Both methods raise AttemptFailed and
    nothing else: bytes that trip the reading over are a malformed answer, the provider's to bear.
    """

    def __init__(self, content_type: str, reading: Reading) -> None:
        self.done = False
        self._framing = Framing(content_type)
        self._reading = reading

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yield what this read adds."""
        reading = self._reading
        try:
            for event in self._framing.feed(data):
                yield from reading.read(event)
                if reading.done:
                    self.done = True
                    yield from reading.end()
                    return
        except AttemptFailed:
            raise
        except Exception as error:
            raise unreadable(error) from error

    def end(self, cut: AttemptFailed | None = None) -> Iterator[Chunk]:
        """Yield what the end of the body adds, or its breaking off before that."""
        reading = self._reading
        self.done = True
        try:
            if cut is None:
                for event in self._framing.end():
                    yield from reading.read(event)
                    if reading.done:
                        break
            yield from reading.end(cut)
        except AttemptFailed:
            raise
        except Exception as error:
            raise unreadable(error) from error


def unreadable(error: Exception) -> AttemptFailed:
    """Judge an error that an upstream's bytes caused here. Its text may hold some of them: no log
    gets it, only where it was raised."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code.co_qualname if at is not None else ""
    log.warning("an answer cannot be read: %s in %s", type(error).__name__, code)
    return refusals.malformed(type(error).__name__)
