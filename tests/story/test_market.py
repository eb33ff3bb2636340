"""One request walks through the whole exchange, on real parts."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from tests import world as worlds
from tests.otlp import OtlpSink
from tests.story.ledger import balance_nano, trial_balance_nano
from tests.story.shop import Shop, open_shop, posted, recorded
from tests.world import World

HELLO: Any = [{"role": "user", "content": "hello"}]
USD = 1_000_000_000
NOT_PLAIN = {"tools", "structured", "reasoning", "error"}

DIALECTS = [
    ("openai_chat", "openai.chat", "openai"),
    ("anthropic_messages", "anthropic.messages", "anthropic"),
    ("gemini", "gemini.streamGenerateContent", "google"),
]


@pytest.mark.parametrize(("dialect", "kind", "provider"), DIALECTS, ids=[d[0] for d in DIALECTS])
async def test_the_second_provider_serves_is_paid_and_counted(
    real_world: World, spans: OtlpSink, dialect: str, kind: str, provider: str
) -> None:
    world = real_world
    record = recorded(
        lambda r: bool(r["stream"]) and not NOT_PLAIN & set(r["tags"]), kind=kind, provider=provider
    )
    async with (
        open_shop(world, dialect=dialect, price="1") as first,
        open_shop(world, dialect=dialect, price="2", model=first.model) as second,
    ):
        first.upstream.answer(
            first.path, status=529, body={"error": {"type": "overloaded_error", "message": "busy"}}
        )
        second.recorded(record)
        answer: Any = await first.client().chat.completions.create(
            model=first.model,
            messages=HELLO,
            extra_body={"provider": {"order": [first.slug, second.slug]}},
        )
        assert len(first.upstream.requests) == 1
        assert answer.provider == second.slug.title()
        assert answer.choices[0].message.content
        cost_nano = int(Decimal(str(answer.usage.cost)) * USD)
        assert cost_nano == answer.usage.total_tokens * 2_000  # USD 2 per million tokens
        found = await posted(first, answer.id)
        assert int(Decimal(str(found["total_cost"])) * USD) == cost_nano

        assert await trial_balance_nano(world) == 0
        share_nano = cost_nano - cost_nano * 500 // 10_000  # 5 % commission
        assert await balance_nano(world, f"prov:{second.slug}:pending") == share_nano
        assert await balance_nano(world, f"prov:{first.slug}:pending") == 0
        await _boards_count(first, answer)
        await _one_trace(spans, answer.id.removeprefix("gen-"))


async def _boards_count(shop: Shop, answer: Any) -> None:
    def tokens(days: int) -> int:
        with shop.world.client() as client:
            reply = client.get("/api/v1/boards/most-used", params={"days": days}).json()
        counted = [int(row["total_tokens"]) for row in reply["data"] if row["model"] == shop.model]
        return sum(counted)

    def all_windows() -> bool:
        return all(tokens(days) == answer.usage.total_tokens for days in (1, 7, 30))

    await asyncio.to_thread(worlds.wait_until, "the boards count it", all_windows, 15)


async def _one_trace(spans: OtlpSink, generation: str) -> None:
    """The trace in which billing posted the generation began at edge and passed the worker."""

    def complete() -> bool:
        about = [span for span in spans.spans if generation in str(span.attributes)]
        of_billing = {s.trace_id for s in about if s.resource["service.name"] == "billing"}
        if len(of_billing) != 1:
            return False
        services = {
            span.resource["service.name"] for span in spans.spans if span.trace_id in of_billing
        }
        return {"edge", "providers.worker", "billing"} <= services

    await asyncio.to_thread(worlds.wait_until, "one trace over three services", complete, 20)
