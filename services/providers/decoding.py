"""Turn the bytes of one answer into chunks: its framing, then its dialect."""

from collections.abc import Iterator

from services.providers.call import AttemptFailed, Chunk, Reading
from services.providers.framing import Framing


class Decoder:
    """One answer, fed with reads of any size. What it returns must be taken before it is fed again.

    `done`: all is said, and nothing more is to be read. Both methods raise AttemptFailed.
    """

    def __init__(self, content_type: str, reading: Reading) -> None:
        self.done = False
        self._framing = Framing(content_type)
        self._reading = reading

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Yield what this read adds."""
        reading = self._reading
        for event in self._framing.feed(data):
            yield from reading.read(event)
            if reading.done:
                self.done = True
                yield from reading.end()
                return

    def end(self, cut: AttemptFailed | None = None) -> Iterator[Chunk]:
        """Yield what the end of the body adds, or its breaking off before that."""
        reading = self._reading
        self.done = True
        if cut is None:
            for event in self._framing.end():
                yield from reading.read(event)
                if reading.done:
                    break
        yield from reading.end(cut)
