"""Whatever a client sends, it gets a typed 4xx that names what is wrong; never a 500."""

import http.client
import json
import socket
from typing import Any

import pytest

from tests.world import World

PATH = "/api/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(**changes: Any) -> dict[str, Any]:
    return {"model": "story/chat", "messages": HELLO, **changes}


MALFORMED: list[tuple[str, bytes | dict[str, Any] | list[Any], str]] = [
    ("not JSON", b"{", ""),
    (
        "bad UTF-8",
        b'{"model": "story/chat", "messages": [{"role": "user", "content": "\xff"}]}',
        "",
    ),
    ("an array", [], ""),
    ("a lone surrogate", b'{"model": "story/chat", "messages": "\\ud800"}', ""),
    ("nested beyond reason", b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    ("no messages", {"model": "story/chat"}, "messages"),
    ("messages a string", call(messages="hello"), "messages"),
    ("no message in messages", call(messages=[]), "messages"),
    ("a message that is a string", call(messages=["hello"]), "messages[0]"),
    ("an unknown role", call(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    ("no role", call(messages=[{"content": "x"}]), "messages[0].role"),
    ("content a number", call(messages=[{"role": "user", "content": 7}]), "messages[0].content"),
    ("model a number", call(model=7), "model"),
    ("no such model", call(model="nobody/nothing"), "model"),
    ("models a string", call(models="story/chat"), "models"),
    ("max_tokens negative", call(max_tokens=-1), "max_tokens"),
    ("max_tokens a string", call(max_tokens="many"), "max_tokens"),
    ("max_tokens a fraction", call(max_tokens=1.5), "max_tokens"),
    ("temperature a string", call(temperature="warm"), "temperature"),
    ("temperature out of range", call(temperature=9), "temperature"),
    ("top_p out of range", call(top_p=-0.5), "top_p"),
    ("stream a string", call(stream="yes"), "stream"),
    ("n is zero", call(n=0), "n"),
    ("stop a number", call(stop=3), "stop"),
    ("stop of numbers", call(stop=[3]), "stop[0]"),
    ("seed a string", call(seed="x"), "seed"),
    ("tools an object", call(tools=TOOL), "tools"),
    ("a tool without a function", call(tools=[{"type": "function"}]), "tools[0].function"),
    ("tool_choice a number", call(tools=[TOOL], tool_choice=1), "tool_choice"),
    ("response_format a string", call(response_format="json"), "response_format"),
    ("provider an array", call(provider=[]), "provider"),
    ("provider.order a string", call(provider={"order": "acme"}), "provider.order"),
    ("provider.sort unknown", call(provider={"sort": "fame"}), "provider.sort"),
    ("metadata an array", call(metadata=[1]), "metadata"),
    ("reasoning a string", call(reasoning="much"), "reasoning"),
    (
        "two efforts that differ",
        call(reasoning={"effort": "low"}, reasoning_effort="high"),
        "reasoning_effort",
    ),
    ("session_id too long", call(session_id="s" * 257), "session_id"),
    (
        "a plugin that is not offered",
        call(plugins=[{"id": "web"}]),
        "plugins[0].id",
    ),
]


@pytest.mark.parametrize(
    ("body", "field"), [m[1:] for m in MALFORMED], ids=[m[0] for m in MALFORMED]
)
def test_a_malformed_request_is_a_typed_4xx_that_names_the_field(
    world: World, body: bytes | dict[str, Any] | list[Any], field: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with world.client() as client:
        reply = client.post(PATH, content=content, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert 400 <= reply.status_code < 500, error
    assert error["code"] == reply.status_code
    assert error["metadata"]["error_type"]
    assert error["message"]
    if field:
        assert error["metadata"]["field"] == field


def test_a_body_above_the_limit_is_413_before_it_is_sent(world: World) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 10000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", world.ports["edge"]), 10) as connection:
        connection.sendall(head.encode())
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        error = json.loads(reply.read())["error"]
    assert reply.status == error["code"] == 413
    assert error["metadata"]["error_type"] == "payload_too_large"


@pytest.mark.parametrize("key", ["", "nonsense", "sk-bourse-v1-" + "0" * 64])
def test_a_missing_or_unknown_key_is_401(world: World, key: str) -> None:
    with world.client(key) as client:
        if not key:
            del client.headers["authorization"]
        reply = client.post(PATH, json=call())
    assert reply.status_code == 401
    assert reply.json()["error"]["metadata"]["error_type"] == "authentication"


def test_each_kind_of_key_does_its_own_work_only(world: World) -> None:
    with world.client(world.management_key) as client:
        assert client.post(PATH, json=call()).status_code == 403
    with world.client() as client:
        assert client.get("/api/v1/credits").status_code == 403
