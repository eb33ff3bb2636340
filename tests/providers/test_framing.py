"""Bytes into events: the rules of SSE, what senders make of them, and the bounds."""

import random
from collections.abc import Iterable

import pytest

from services.providers.call import AttemptFailed, Event
from services.providers.framing import Framing, JsonDecoder, SseDecoder


def _sse(*pieces: bytes) -> list[Event]:
    decoder = SseDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.end()


async def _frames(content_type: str, *pieces: bytes, **limits: int) -> list[Event]:
    framing = Framing(content_type, **limits)
    events = [event for piece in pieces for event in framing.feed(piece)]
    return events + framing.end()


def _feed(decoder: SseDecoder, data: bytes, times: int) -> None:
    for _ in range(times):
        decoder.feed(data)


def _cuts(body: bytes) -> Iterable[list[bytes]]:
    draw = random.Random(5)
    yield [body[at : at + 1] for at in range(len(body))]
    for at in range(len(body) + 1):
        yield [body[:at], body[at:]]
    for _ in range(30):
        cuts = sorted(draw.sample(range(len(body)), 4))
        yield [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]


BODY = (
    b": a comment\n"
    b"data: one\n\n"
    b"event: named\nid: 7\nretry: 10\ndata: two\ndata:  lines\n\n"
    b"\n\n"
    b"data:\n\n"
    b"data:no space \xc3\xa9\xf0\x9f\x8f\x94\n\n"
    b"event: forgotten\n\n"
    b"data: last\n\n"
)
EVENTS = [
    Event("", b"one"),
    Event("named", b"two\n lines"),
    Event("", b""),
    Event("", "no space é🏔".encode()),
    Event("", b"last"),
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_f19_events_are_the_same_with_every_line_end_at_every_cut(end: bytes, mark: bytes) -> None:
    body = mark + BODY.replace(b"\n", end)
    assert _sse(body) == EVENTS
    for pieces in _cuts(body):
        assert _sse(*pieces) == EVENTS


def test_f19_many_events_in_one_read_and_one_event_in_a_read_are_alike() -> None:
    events = [b'data: {"n": %d}\n\n' % n for n in range(50)]
    assert _sse(*events) == _sse(b"".join(events))
    assert len(_sse(*events)) == 50


def test_objects_without_an_empty_line_between_are_events_of_their_own() -> None:
    body = b'data: {"a": 1}\ndata: {"b": 2}\ndata: [DONE]\n\n'
    assert [event.data for event in _sse(body)] == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]
    pretty = b'data: {\ndata: "a": 1\ndata: }\n\n'
    assert [event.data for event in _sse(pretty)] == [b'{\n"a": 1\n}']


def test_the_end_of_the_body_completes_an_event_that_looks_complete() -> None:
    assert _sse(b'data: {"a": 1}') == [Event("", b'{"a": 1}')]
    assert _sse(b"data: [DONE]\n") == [Event("", b"[DONE]")]
    assert _sse(b'data: {"a": 1}\n\ndata: {"b": ') == [Event("", b'{"a": 1}')]


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_f20_a_line_that_is_too_long_is_malformed_however_it_comes(size: int) -> None:
    decoder = SseDecoder(line_limit=200_000)
    decoder.feed(b"data: ")
    for _ in range(200_000 // size - 10):
        decoder.feed(b"x" * size)
    with pytest.raises(AttemptFailed) as failed:
        _feed(decoder, b"x" * size, 16)
    assert failed.value.reason == "malformed"


def test_f20_an_event_of_too_many_lines_is_malformed() -> None:
    decoder = SseDecoder(line_limit=10_000)
    with pytest.raises(AttemptFailed):
        _feed(decoder, b"data: " + b"x" * 100 + b"\n", 1000)


def test_a_line_at_the_limit_passes() -> None:
    line = b"data: " + b"x" * 994
    decoder = SseDecoder(line_limit=1000)
    assert decoder.feed(line + b"\n\n") == [Event("", b"x" * 994)]
    with pytest.raises(AttemptFailed):
        decoder.feed(line + b"x\n\n")


@pytest.mark.parametrize("space", [b"", b" \r\n", b"\xef\xbb\xbf"])
def test_a_whole_document_is_one_event(space: bytes) -> None:
    for pieces in _cuts(space + b'{"a": [1, {"b": "]"}]}'):
        decoder = JsonDecoder()
        events = [event for piece in pieces for event in decoder.feed(piece)]
        assert events + decoder.end() == [Event("json", b'{"a": [1, {"b": "]"}]}')]


def test_elements_of_an_array_are_events() -> None:
    elements = [b'{"a": "x\\"}]\\\\"}', b"[1, [2]]", b"{}"]
    for pieces in _cuts(b" [" + b" ,\n".join(elements) + b"] "):
        decoder = JsonDecoder()
        events = [event for piece in pieces for event in decoder.feed(piece)]
        assert events + decoder.end() == [Event("item", element) for element in elements]


def test_an_array_is_bounded_by_its_largest_element_and_not_by_its_length() -> None:
    decoder = JsonDecoder(limit=1000)
    count = len(decoder.feed(b"["))
    for _ in range(100):
        count += len(decoder.feed(b'{"a": "' + b"x" * 500 + b'"},'))
    assert count == 100
    with pytest.raises(AttemptFailed):
        decoder.feed(b'{"a": "' + b"x" * 2000)


@pytest.mark.parametrize(
    ("content_type", "body", "events"),
    [
        ("text/event-stream", b'data: {"a": 1}\n\n', [Event("", b'{"a": 1}')]),
        ("text/event-stream; charset=utf-8", b": hi\n\n", []),
        ("text/event-stream", b'{"error": 1}', [Event("json", b'{"error": 1}')]),
        ("application/json", b'{"a": 1}', [Event("json", b'{"a": 1}')]),
        ("application/json", b"data: [DONE]\n\n", [Event("", b"[DONE]")]),
        ("", b"event: x\ndata: y\n\n", [Event("x", b"y")]),
        ("text/plain", b'\n\n{"a": 1}', [Event("json", b'{"a": 1}')]),
        ("application/json", b"", []),
        ("text/event-stream", b"", []),
        ("text/event-stream", b"\n\n\n: hi\n\ndata: x\n\n", [Event("", b"x")]),
    ],
)
async def test_f20_a_wrong_content_type_does_not_matter(
    content_type: str, body: bytes, events: list[Event]
) -> None:
    assert await _frames(content_type, body) == events
    assert await _frames(content_type, *[body[at : at + 1] for at in range(len(body))]) == events


@pytest.mark.parametrize("body", [b"<!doctype html>", b"upstream connect error", b"\x1f\x8b\x08\0"])
async def test_f20_what_is_neither_is_malformed(body: bytes) -> None:
    with pytest.raises(AttemptFailed) as failed:
        await _frames("application/json", body)
    assert failed.value.reason == "malformed"


async def test_f20_a_body_that_is_too_big_is_malformed() -> None:
    with pytest.raises(AttemptFailed):
        await _frames("application/json", b'{"a": "', b"x" * 5000, body_limit=1000)


async def test_the_first_event_does_not_wait_for_the_second_read() -> None:
    framing = Framing("text/event-stream")
    assert framing.feed(b'data: {"a": 1}\n\n') == [Event("", b'{"a": 1}')]
