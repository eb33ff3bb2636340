"""The sandbox answers from nothing, and nobody can make it say more than a little."""

from typing import Any

import httpx
import orjson
import pytest

from services.providers.sandbox import SandboxTransport

LEAF = {"type": "integer"}


async def ask(schema: Any) -> httpx.Response:
    body = {
        "model": "echo",
        "messages": [{"role": "user", "content": "fill it"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    request = httpx.Request("POST", "sandbox://openai/chat/completions", content=orjson.dumps(body))
    response = await SandboxTransport().handle_async_request(request)
    await response.aread()
    return response


def nested(depth: int, items: int) -> dict[str, Any]:
    schema: dict[str, Any] = LEAF
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": items}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": LEAF, "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
        nested(12, 20),
        {"type": "array", "items": True, "minItems": 10**9},
        {
            "type": "object",
            "properties": {name: {"$ref": "#"} for name in "abcdefghij"},
            "required": list("abcdefghij"),
        },
    ],
    ids=["items", "length", "nested", "items of any kind", "recursive"],
)
async def test_a_schema_that_asks_for_too_much_is_a_400(schema: dict[str, Any]) -> None:
    response = await ask(schema)
    assert response.status_code == 400
    assert "too large" in response.json()["error"]["message"]


async def test_an_ordinary_schema_gets_the_least_document_that_fits() -> None:
    response = await ask(
        {
            "type": "object",
            "properties": {"tags": nested(2, 3), "name": {"type": "string", "minLength": 4}},
            "required": ["tags", "name"],
        }
    )
    content = response.json()["choices"][0]["message"]["content"]
    assert orjson.loads(content) == {"tags": [[0, 0, 0]] * 3, "name": "aaaa"}
