"""Routing's answers, reused for about 100 ms, and the order of attempts drawn from them.

A plan is asked for once at a time (single flight), is used a little longer while it is asked for
anew, and never outlives a price boundary among its candidates.
"""

import asyncio
import hashlib
import itertools
import math
import operator
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from bourse.rating import COMPLETION_UNITS, PICO_PER_NANO, PROMPT_UNITS
from bourse.rpc import RpcError
from bourse.v1.events_pb2 import PriceVersion, Unit, UnitPrice
from bourse.v1.generation_pb2 import AttemptFacts
from bourse.v1.routing_pb2 import Candidate, PlanRequest, PlanResponse
from services.edge.call import DEFAULT_TOKENS_PER_BYTE, Call
from services.edge.errors import ApiError

HOLD_RATIO = 2
"""Holds count prompt bytes at twice the endpoint's tokens per byte."""


class RoutingClient(Protocol):
    async def Plan(self, request: PlanRequest, *, timeout: float) -> PlanResponse: ...


class Attempt:
    """One candidate of a plan, ready to be called: its price as three numbers."""

    __slots__ = (
        "candidate", "completion_pico", "context_length", "denominator", "endpoint", "facts",
        "model", "model_index", "numerator", "output_max", "price", "prompt_pico", "provider",
        "provider_name", "request_pico", "sells_cache", "tier", "tokens_per_byte", "weight",
    )  # fmt: skip

    def __init__(self, candidate: Candidate, version: str = "") -> None:
        listing = candidate.listing
        self.candidate = candidate
        self.endpoint = listing.endpoint
        self.model = listing.model
        self.provider = listing.provider
        self.provider_name = listing.provider_name
        self.context_length = listing.context_length
        self.output_max = listing.max_completion_tokens or listing.context_length
        self.tokens_per_byte = listing.prompt_tokens_per_byte or DEFAULT_TOKENS_PER_BYTE
        self.model_index = candidate.model_index
        self.tier = candidate.tier
        self.weight = candidate.weight
        self.price = candidate.price
        prompt = completion = request = cache = 0
        for entry in _entries(self.price):
            if entry.unit in PROMPT_UNITS:
                prompt = max(prompt, entry.price_pico)
                if entry.unit == Unit.UNIT_CACHE_READ:
                    cache = entry.price_pico
            elif entry.unit in COMPLETION_UNITS:
                completion = max(completion, entry.price_pico)
            elif entry.unit == Unit.UNIT_REQUEST:
                request = max(request, entry.price_pico)
        self.prompt_pico, self.completion_pico, self.request_pico = prompt, completion, request
        self.sells_cache = 0 < cache < prompt
        self.facts = AttemptFacts(
            endpoint=self.endpoint, model=self.model, price=self.price, plan_version=version
        )
        """What every attempt here says of itself; copied, never changed."""
        self.numerator = self.price.discount_numerator if self.price.discount_denominator else 1
        self.denominator = self.price.discount_denominator or 1

    def bound_nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return the most that so many tokens can cost here: `rating.bound_nano`, precomputed."""
        pico = (
            prompt_tokens * self.prompt_pico
            + completion_tokens * self.completion_pico
            + self.request_pico
        )
        return -(-pico * self.numerator // (self.denominator * PICO_PER_NANO))

    def affordable_tokens(self, nano: int, prompt_tokens: int) -> int:
        """Return how many output tokens `nano` pays for beside the prompt; -1: not even it."""
        pico = nano * self.denominator * PICO_PER_NANO // max(self.numerator, 1)
        rest = pico - prompt_tokens * self.prompt_pico - self.request_pico
        if rest < 0:
            return -1
        return rest // self.completion_pico if self.completion_pico else 1 << 62

    def hold_tokens(self, call: Call) -> int:
        """Return the prompt tokens that a hold counts."""
        return math.ceil(call.text_bytes * self.tokens_per_byte * HOLD_RATIO) + call.media_tokens


class Plan:
    """Routing's answer to one kind of request."""

    def __init__(self, response: PlanResponse, now: float) -> None:
        self.version = response.version
        self.response = response
        self.made_at = now
        self.attempts = [Attempt(one, response.version) for one in response.candidates]
        self.sells_cache = any(one.sells_cache for one in self.attempts)

    def draw(
        self, call: Call, account: str, per_model: int, usable: Callable[[str], bool]
    ) -> list[Attempt]:
        """Return the attempts in the order to make them, at most `per_model` of each model.

        Equal tiers are drawn by weight without replacement: at random, or, for a conversation that
        gains by staying where it is, the same way every time. Endpoints that are not `usable` are
        passed over, unless a model would have none left.
        """
        attempts = self.attempts
        if len(attempts) <= 1:
            return attempts
        chance: Callable[[Attempt], float] = _at_random
        if call.session_id or self.sells_cache:
            chance = _seeded(call.sticky_seed(account))
        # The smallest of -log(u) / weight is a draw in proportion to weight.
        drawn = [
            (one.tier, -math.log(chance(one)) / one.weight if one.weight > 0 else math.inf, one)
            for one in attempts
        ]
        drawn.sort(key=_TIER_THEN_DRAW)
        if call.preferences.forbid_fallbacks and not call.preferences.order:
            per_model = 1  # routing gives the best tier alone, and one of it is drawn
        models: dict[int, list[Attempt]] = {}
        for _, _, one in drawn:
            models.setdefault(one.model_index, []).append(one)
        kept: set[str] = set()
        for ones in models.values():
            rested = [one.endpoint for one in ones if usable(one.endpoint)]
            kept.update((rested or [one.endpoint for one in ones])[:per_model])
        return [one for _, _, one in drawn if one.endpoint in kept]


_TIER_THEN_DRAW = operator.itemgetter(0, 1)


class PlanCache:
    """Plans by the inputs of routing's filters."""

    def __init__(
        self,
        routing: RoutingClient,
        *,
        fresh_s: float = 0.1,
        stale_s: float = 2.0,
        deadline_s: float = 2.0,
        plans_max: int = 4_096,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._routing = routing
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._deadline_s = deadline_s
        self._plans_max = plans_max
        self._clock = clock
        self._wall_ms = wall_ms
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()
        self._asking: dict[tuple[object, ...], asyncio.Task[Plan]] = {}

    def ready(self, call: Call) -> Plan | None:
        """Return a plan that needs no waiting; one that is no longer fresh is asked for anew."""
        key = call.plan_key()
        plan = self._plans.get(key)
        if plan is None:
            return None
        age = self._clock() - plan.made_at
        if age > self._stale_s or self._expired(plan):
            return None
        if age > self._fresh_s and key not in self._asking:
            self._ask(key, call)
        return plan

    async def wait(self, call: Call) -> Plan:
        """Return a plan asked for now; requests of the same kind wait for one answer.

        Raises ApiError 503 when routing cannot be reached, 400 when it refuses the request.
        """
        key = call.plan_key()
        asking = self._asking.get(key) or self._ask(key, call)
        try:
            return await asyncio.shield(asking)
        except RpcError as error:
            stale = self._plans.get(key)
            if stale is not None and not self._expired(stale):
                return stale  # routing is away: an old plan serves better than none
            if error.code.name == "INVALID_ARGUMENT":
                raise ApiError(400, error.message, field=error.field) from error
            raise ApiError(503, "Routing cannot be reached now.") from error

    async def close(self) -> None:
        """Give up what is being asked for."""
        for task in self._asking.values():
            task.cancel()

    def _expired(self, plan: Plan) -> bool:
        return 0 < plan.response.expires_at_ms <= self._wall_ms()

    def _ask(self, key: tuple[object, ...], call: Call) -> asyncio.Task[Plan]:
        task = asyncio.get_running_loop().create_task(self._fetch(key, request(call)))
        self._asking[key] = task
        task.add_done_callback(lambda done: self._asked(key, done))
        return task

    async def _fetch(self, key: tuple[object, ...], wanted: PlanRequest) -> Plan:
        response = await self._routing.Plan(wanted, timeout=self._deadline_s)
        plan = Plan(response, self._clock())
        if plan.attempts:  # why nothing fits is asked for every time: the world may change
            self._plans[key] = plan
            self._plans.move_to_end(key)
            if len(self._plans) > self._plans_max:
                self._plans.popitem(last=False)
        else:
            self._plans.pop(key, None)
        return plan

    def _asked(self, key: tuple[object, ...], done: asyncio.Task[Plan]) -> None:
        if self._asking.get(key) is done:
            del self._asking[key]
        if not done.cancelled():
            done.exception()


def request(call: Call) -> PlanRequest:
    """Return the question to routing. No policy differs between accounts yet, so none is named."""
    return PlanRequest(
        models=call.models,
        preferences=call.preferences,
        prompt_tokens=call.prompt_tokens_bucket,
        max_tokens=call.max_tokens,
        parameters=call.parameters,
        input_modalities=call.input_modalities,
    )


def _entries(price: PriceVersion) -> Sequence[UnitPrice]:
    overrides = itertools.chain.from_iterable(one.entries for one in price.overrides)
    return [*price.entries, *overrides]


def _at_random(_: Attempt) -> float:
    return 1.0 - random.random()


def _seeded(seed: bytes) -> Callable[[Attempt], float]:
    """A number in (0, 1] per endpoint that only the seed decides, whatever other endpoints are."""

    def chance(attempt: Attempt) -> float:
        digest = hashlib.blake2b(attempt.endpoint.encode(), key=seed_key, digest_size=8).digest()
        return (int.from_bytes(digest, "big") + 1) / (1 << 64)

    seed_key = hashlib.blake2b(seed, digest_size=32).digest()
    return chance
