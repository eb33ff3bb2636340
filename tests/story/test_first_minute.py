"""The README's first minute: one command, then its curl; and nothing is forgotten at the end."""

import json
import re
import signal
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import world as worlds
from tests.story.ledger import trial_balance_nano
from tests.world import World

HELLO = [{"role": "user", "content": "Say hello to the exchange"}]
MODELS = ["sandbox/echo", "sandbox/echo-anthropic", "sandbox/echo-gemini"]


def curl(world: World) -> tuple[str, dict[str, Any]]:
    """Run the curl that the start printed; return the streamed text and its usage chunk."""
    printed = world.output("all")
    found = re.findall(r"curl -N .*?\}'", printed, re.DOTALL)
    command = found[-1]
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True
    )
    lines = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    usage = chunks.pop()
    assert usage["choices"] == []
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    return text, usage


def ask(world: World, model: str) -> dict[str, Any]:
    with world.client() as client:
        reply = client.post("/api/v1/chat/completions", json={"model": model, "messages": HELLO})
    answer: dict[str, Any] = reply.raise_for_status().json()
    return answer


def record_of(world: World, generation: str) -> dict[str, Any]:
    def read() -> Any:
        with world.client() as client:
            reply = client.get("/api/v1/generation", params={"id": generation})
        return reply.json()["data"] if reply.is_success else None

    found: dict[str, Any] = worlds.wait_until(f"record of {generation}", read, 10)
    return found


def used_usd(world: World) -> Decimal:
    with world.client(world.management_key) as client:
        return Decimal(str(client.get("/api/v1/credits").json()["data"]["total_usage"]))


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_one_command_serves_and_a_second_start_keeps_everything(
    var: Path, ending: signal.Signals
) -> None:
    world = worlds.one_process(var)
    try:
        text, usage_chunk = curl(world)
        assert text == HELLO[0]["content"]
        costs = {usage_chunk["id"]: usage_chunk["usage"]["cost"]}
        for model in MODELS:
            answer = ask(world, model)
            assert answer["choices"][0]["message"]["content"] == text
            costs[answer["id"]] = answer["usage"]["cost"]
        assert all(cost > 0 for cost in costs.values())
        for generation, cost in costs.items():
            found = record_of(world, generation)
            assert Decimal(str(found["total_cost"])) == Decimal(str(cost))
        spent = sum(Decimal(str(cost)) for cost in costs.values())
        assert used_usd(world) == spent
        assert await trial_balance_nano(world) == 0

        keys = world.key, world.management_key
        world.kill("all", ending)
        again = worlds.one_process(var)
        world.processes.update(again.processes)
        assert (again.key, again.management_key) == keys
        assert used_usd(again) == spent
        for generation, cost in costs.items():
            assert Decimal(str(record_of(again, generation)["total_cost"])) == Decimal(str(cost))
        assert curl(again)[0] == text
        assert await trial_balance_nano(again) == 0
    finally:
        world.close()
