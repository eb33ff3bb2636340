"""Read what an upstream answered, as the worker does, into a list of chunks."""

from collections.abc import Iterable

from services.providers.call import Chunk, Dialect, Event
from services.providers.decoding import Decoder
from services.providers.presets import Preset


def of_events(dialect: Dialect, events: Iterable[Event], preset: Preset) -> list[Chunk]:
    """Read events, up to the answer's own end mark."""
    reading = dialect.reading(preset)
    chunks: list[Chunk] = []
    for event in events:
        chunks.extend(reading.read(event))
        if reading.done:
            break
    chunks.extend(reading.end())
    return chunks


def of_reads(
    dialect: Dialect, content_type: str, reads: Iterable[bytes], preset: Preset
) -> list[Chunk]:
    """Read the bytes of a body."""
    decoder = Decoder(content_type, dialect.reading(preset))
    chunks: list[Chunk] = []
    for data in reads:
        chunks.extend(decoder.feed(data))
        if decoder.done:
            return chunks
    chunks.extend(decoder.end())
    return chunks
