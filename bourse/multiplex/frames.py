"""Frames on the wire: how they are packed into messages, and in which order they are written.

A message is a list of frames. Joining protobuf messages end to end merges their repeated fields, so
each frame is packed once, when it is made, as the list of itself; a message is their concatenation.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from google.protobuf.message import Message

MAX_FRAME_BYTES = 32 << 10
"""Content and bodies travel in pieces of at most this."""
MAX_JOINED_BYTES = 64 << 10
"""Waiting frames are joined up to this."""
MAX_MESSAGE_BYTES = 1 << 20
"""gRPC's limit at both ends. No frame may be larger than half of it."""
WINDOW_BYTES = 256 << 10
"""What one request may have unread in one direction."""
CREDIT_STEP_BYTES = 64 << 10
"""Credit is given back in steps of at least this."""
OVERHEAD_BYTES = 64
"""Added to a piece's bytes wherever windows are counted, so that empty pieces are bounded too."""
MAX_PIECE_BYTES = MAX_FRAME_BYTES - 1024
MAX_CONTENT_BYTES = 64 << 20
"""The largest body, and the largest single chunk."""

_TAG = 0x0A  # field 1, length-delimited: `frames`
_MORE = 0x80


class GrammarError(Exception):
    """The other end broke the stream's rules: the stream ends, and this says why."""


def pack(frame: Message) -> bytes:
    """Return the frame as a message of one; ValueError if it is too large for any message."""
    return wrap(frame.SerializeToString())


def wrap(body: bytes) -> bytes:
    """Return a serialised frame as a message of one, as `pack` does."""
    size = len(body)
    if size < 1 << 7:
        return bytes((_TAG, size)) + body
    if size < 1 << 14:
        return bytes((_TAG, size & 0x7F | _MORE, size >> 7)) + body
    if size > MAX_MESSAGE_BYTES // 2:
        raise ValueError(f"a frame of {size} bytes: the limit is {MAX_MESSAGE_BYTES // 2}")
    return bytes((_TAG, size & 0x7F | _MORE, size >> 7 & 0x7F | _MORE, size >> 14)) + body


def unpack(message: bytes) -> Iterator[bytes]:
    """Yield the serialised frames of a message.

    They are cut out here, not parsed as a whole, because a frame that waits for its reader would
    keep all of its message in memory.
    """
    at, end = 0, len(message)
    while at < end:
        if message[at] != _TAG:
            raise GrammarError("not a list of frames")
        at += 1
        size = shift = 0
        while True:
            if at >= end or shift > 21:
                raise GrammarError("a frame's length is broken")
            byte = message[at]
            at += 1
            size |= (byte & 0x7F) << shift
            if byte < _MORE:
                break
            shift += 7
        if at + size > end:
            raise GrammarError("a frame is cut off")
        yield message[at : at + size]
        at += size


Lane = deque[bytes]
"""The packed frames of one request that wait, in order."""


class Outbox:
    """The frames that wait to be written in one direction.

    Control frames go first. Content waits in its request's lane, and the writer goes round the
    lanes, one frame of each. A lane is in the ring while it is not empty.
    """

    def __init__(self) -> None:
        self._control: deque[bytes] = deque()
        self._ring: deque[Lane] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._finished = False

    def control(self, packed: bytes) -> None:
        """Write before all content."""
        self._control.append(packed)
        self._wake()

    def after(self, lane: Lane, packed: bytes) -> None:
        """Write before other requests' content, but not before this request's own."""
        if lane:
            lane.append(packed)
        else:
            self._control.append(packed)
        self._wake()

    def content(self, lane: Lane, packed: bytes) -> None:
        """Write in turn."""
        if not lane:
            self._ring.append(lane)
        lane.append(packed)
        self._wake()

    def drop(self, lane: Lane) -> None:
        """Forget what a lane still holds. It takes no content after that."""
        lane.clear()

    def finish(self) -> None:
        """Let `write_all` return when everything is written."""
        self._finished = True
        self._wake()

    async def write_all(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Be the one writer: while a write is pending, what comes in is joined for the next."""
        while True:
            if message := self.take():
                await write(message)
            elif self._finished:
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def take(self) -> bytes:
        """Return the next message: what waits, up to MAX_JOINED_BYTES, but at least one frame.

        Empty when nothing waits.
        """
        parts: list[bytes] = []
        size = 0
        control, ring = self._control, self._ring
        while control:
            size += len(control[0])
            if size > MAX_JOINED_BYTES and parts:
                return b"".join(parts)
            parts.append(control.popleft())
        while ring:
            lane = ring[0]
            if not lane:  # dropped
                ring.popleft()
                continue
            size += len(lane[0])
            if size > MAX_JOINED_BYTES and parts:
                break
            parts.append(lane.popleft())
            ring.popleft()
            if lane:
                ring.append(lane)
        return b"".join(parts)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
