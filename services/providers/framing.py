"""Cut the bytes of a response into events: SSE, a whole JSON document, or a JSON array stream.

Everything is bounded and nothing depends on how the bytes were cut into reads.
"""

import re
from collections.abc import Iterator

from services.providers.call import AttemptFailed, Event
from services.providers.refusals import malformed

LINE_LIMIT_BYTES = 1024 * 1024
BODY_LIMIT_BYTES = 32 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_SSE_STARTS = (b"data", b"event", b"id", b"retry", b":")


class Framing:
    """Cuts a response by its content type, corrected by how the body begins.

    A body that begins like JSON is read as JSON (one event for an object; one per element, as each
    completes, for an array) and one that begins like SSE as SSE, whatever the header claims:
    upstreams send error objects under `text/event-stream` and streams under `application/json`.
    Anything else (an HTML page) and what is too big raise AttemptFailed (malformed).
    """

    def __init__(
        self,
        content_type: str,
        *,
        line_limit: int = LINE_LIMIT_BYTES,
        body_limit: int = BODY_LIMIT_BYTES,
    ) -> None:
        self._says_sse = "event-stream" in content_type
        self._line_limit = line_limit
        self._body_limit = body_limit
        self._decoder: SseDecoder | JsonDecoder | None = None
        self._seen = b""  # what came while too little was here to tell

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that this read completes."""
        if self._decoder is None:
            data = self._seen = self._seen + data
            # A mark of three bytes and enough of the first field to know it.
            if len(data) < 16 and len(_start(data)) < 1 + len(b"event"):
                return []
            self._decoder = self._choose(data)
        return self._decoder.feed(data)

    def end(self) -> list[Event]:
        """Return what the end of the body completes."""
        events: list[Event] = []
        if self._decoder is None:
            if not _start(self._seen) and not self._says_sse:
                return events
            self._decoder = self._choose(self._seen)
            events = self._decoder.feed(self._seen)
        return events + self._decoder.end()

    def _choose(self, data: bytes) -> "SseDecoder | JsonDecoder":
        start = _start(data)
        if start.startswith((b"{", b"[")):
            return JsonDecoder(self._body_limit)
        if self._says_sse or start.startswith(_SSE_STARTS):
            return SseDecoder(self._line_limit)
        raise malformed("neither JSON nor an event stream", data)


def _start(data: bytes) -> bytes:
    return data.removeprefix(_BOM).lstrip(_SPACE)


class SseDecoder:
    """Server-sent events, fed with reads of any size.

    Lines end with LF, CRLF or CR. Besides what the standard says: two `data` lines that are each a
    JSON object are two events even without the empty line between, and an event that the end of
    the body leaves unterminated counts if it is complete by its looks.
    """

    def __init__(self, line_limit: int = LINE_LIMIT_BYTES) -> None:
        self._limit = line_limit
        self._pending: list[bytes] = []  # pieces of a line whose end has not come
        self._pending_bytes = 0
        self._name = ""
        self._data: bytes | None = None
        self._started = False
        self._after_cr = False  # a CR ended the last line: an LF now belongs to it

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that this read completes."""
        if not data:
            return []
        if (
            self._started
            and self._data is None
            and not self._pending
            and not self._after_cr
            and not self._name
            and data[:6] == b"data: "
            and data[-2:] == b"\n\n"
            and len(data) <= self._limit
            and data.find(b"\n", 6) == len(data) - 2
            and b"\r" not in data
        ):
            return [Event("", data[6:-2])]  # by far the most reads are exactly one such event
        if not self._started:
            data = self._skip_bom(data)
        if self._after_cr:
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1] == 13
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in data:
            self._keep(data)
            return []
        if self._pending:
            self._pending.append(data)
            data = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
        lines = data.split(b"\n")
        last = lines.pop()
        events: list[Event] = []
        for line in lines:
            if not line:
                if self._data is not None:
                    events.append(Event(self._name, self._data))
                    self._data = None
                self._name = ""
            elif self._data is None and line[:6] == b"data: " and len(line) <= self._limit:
                self._data = line[6:]
            else:
                self._line(line, events)
        if last:
            self._keep(last)
        return events

    def end(self) -> list[Event]:
        """Return what the end of the body completes."""
        events: list[Event] = []
        if self._pending:
            line = b"".join(self._pending)
            self._pending.clear()
            if line.rstrip().endswith((b"}", b"]")):
                self._line(line, events)
        if self._data is not None and self._data.rstrip().endswith((b"}", b"]")):
            events.append(Event(self._name, self._data))
        self._data = None
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if len(line) > self._limit:
            raise _too_long(self._limit)
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            if self._data is None:
                self._data = value
            elif _is_object(self._data) and (_is_object(value) or value == b"[DONE]"):
                events.append(Event(self._name, self._data))
                self._data = value
            elif len(self._data) + len(value) > self._limit:
                raise _too_long(self._limit)
            else:
                self._data = self._data + b"\n" + value
        elif line.startswith(b"event:"):
            self._name = line[6:].strip().decode("utf-8", "replace")
        elif line == b"data" and self._data is None:
            self._data = b""

    def _keep(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        if self._pending_bytes > self._limit:
            raise _too_long(self._limit)
        if data:
            self._pending.append(data)

    def _skip_bom(self, data: bytes) -> bytes:
        if self._pending:
            data = b"".join(self._pending) + data
            self._pending.clear()
            self._pending_bytes = 0
        if data.startswith(_BOM):
            self._started = True
            return data[3:]
        # The mark itself may be cut: until it is decided, keep what came.
        self._started = not _BOM.startswith(data)
        return data


_MARKS = re.compile(rb'["\\{}\[\]]')
_STRING_MARKS = re.compile(rb'["\\]')


class JsonDecoder:
    """A JSON object, or the elements of a JSON array, fed with reads of any size."""

    def __init__(self, limit: int = BODY_LIMIT_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._kind = 0  # the first byte that is not space: 123 or 91; 0 until it came
        self._scanned = 0
        self._depth = 0
        self._start = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[Event]:
        """Return the elements that this read completes (none while the document is an object)."""
        self._buffer += data
        if len(self._buffer) > self._limit:
            raise malformed(f"a body of more than {self._limit} bytes")
        if not self._kind:
            self._begin()
        return list(self._elements()) if self._kind == 91 else []

    def end(self) -> list[Event]:
        """Return the document, if it is not an array that was given out already."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        if self._kind == 91:
            return []  # whether an array without its end is a cut answer is the dialect's to say
        return [Event("json", rest)] if self._kind else []

    def _begin(self) -> None:
        text = bytes(self._buffer)
        if _BOM.startswith(text):
            return
        text = text.removeprefix(_BOM).lstrip(_SPACE)
        self._buffer[:] = text
        if text:
            self._kind = text[0]

    def _elements(self) -> Iterator[Event]:
        buffer = self._buffer
        position = self._scanned
        while True:
            marks = _STRING_MARKS if self._in_string else _MARKS
            found = marks.search(buffer, position)
            if found is None:
                position = len(buffer)
                break
            at = found.start()
            byte = buffer[at]
            position = at + 1
            if byte == 92:  # a backslash: it and the byte after it are one
                if position >= len(buffer):
                    position = at
                    break
                position += 1
            elif byte == 34:
                self._in_string = not self._in_string
            elif byte in (123, 91):
                self._depth += 1
                if self._depth == 2:
                    self._start = at
            else:
                self._depth -= 1
                if self._depth == 1:
                    yield Event("item", bytes(buffer[self._start : position]))
        # Elements given out are dropped, so that only an unfinished one is kept.
        done = self._start if self._depth > 1 else position
        del buffer[:done]
        self._scanned = position - done
        self._start = 0


def _is_object(data: bytes) -> bool:
    return data[:1] == b"{" and data.rstrip()[-1:] == b"}"


def _too_long(limit: int) -> AttemptFailed:
    return malformed(f"a line of more than {limit} bytes")
