"""Count what one attempt consumes, and how much of it is still paid for.

The upstream's last report of the prompt always holds; its report of the output holds if it came
with or after the last content. Everything else is the house count: bytes times the endpoint's
tokens per byte, rounded down. Reports that cannot be true are as if they had not come.
"""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from bourse import rating
from bourse.v1.events_pb2 import (
    UNIT_COMPLETION,
    UNIT_COMPLETION_AUDIO,
    UNIT_COMPLETION_IMAGE,
    UNIT_IMAGE,
    UNIT_PROMPT,
    UNIT_REASONING,
    UNIT_REQUEST,
    UNIT_WEB_SEARCH,
    USAGE_SOURCE_HOUSE,
    USAGE_SOURCE_UNSPECIFIED,
    USAGE_SOURCE_UPSTREAM,
    LeaseSpend,
    PriceVersion,
    UnitCount,
    UsageSource,
)
from services.providers.call import Chunk, Usage

_NEVER = 1 << 62
_TOKENS_SLACK = 16
"""Of a reported output above `max_tokens`: stop tokens and the like."""
_PROMPT_SLACK = 20_000
"""Of a reported text prompt above one token a byte: templates, hidden instructions, tools."""
_OUTPUT_SLACK = 512
"""Of a reported output above one token a received byte: marks of turns and calls, calls of tools
that the provider ran itself, thoughts that are not told of."""
_MEDIA_SLACK = 16_384
"""Of reported image and audio output above one token a received byte: a small file may be large."""
_MEDIA_UNITS = frozenset({UNIT_COMPLETION_IMAGE, UNIT_COMPLETION_AUDIO})
_UNSEEN_MOST = 200_000
"""Tokens of reasoning that nobody shows: more than any model thinks for one answer."""
_CONTEXT_MOST = 10_000_000
_SEARCHES_MOST = 100
"""Of the web, for one answer."""
_TEXT_PARTS = frozenset({"text", "input_text", "refusal"})


class Meter:
    """The count of one attempt.

    `price` is the frozen version, `held_nano` what the edge holds for the attempt, the ratios are
    tokens per byte. A metered attempt without holds has nothing left from the first byte on.
    `max_completion_tokens` and `context_length` are the endpoint's, 0: unknown.
    """

    __slots__ = (
        "_body",
        "_completion_ratio",
        "_context_length",
        "_hidden_reasoning",
        "_images",
        "_max_tokens",
        "_most_tokens",
        "_price",
        "_prompt_ratio",
        "_quantum_nano",
        "_quantum_tokens",
        "_report",
        "_report_is_last",
        "_report_refused",
        "answered",
        "ask_at_bytes",
        "completion_bytes",
        "held_nano",
        "media_bytes",
        "prompt_bytes",
        "reasoned",
        "refused",
        "stop_at_bytes",
    )

    def __init__(
        self,
        body: Mapping[str, Any],
        price: PriceVersion,
        held_nano: int,
        prompt_ratio: float,
        completion_ratio: float,
        *,
        quantum_tokens: int = 256,
        hidden_reasoning: bool = False,
        max_completion_tokens: int = 0,
        context_length: int = 0,
    ) -> None:
        self.answered = False
        """Whether the upstream has said 200: from then on the prompt is billed."""
        self.prompt_bytes = prompt_bytes(body)
        self.completion_bytes = 0
        self.media_bytes = 0
        """Of images, audio, citations and reasoning details: received, but no text."""
        self.reasoned = False
        """Whether reasoning came: what is shown of it may be less than what was thought."""
        self.refused = False
        """Whether the upstream reported counts that cannot be true."""
        self.held_nano = held_nano
        self.ask_at_bytes = self.stop_at_bytes = _NEVER
        self._body = body
        self._price = price
        self._prompt_ratio = prompt_ratio
        self._completion_ratio = completion_ratio
        self._quantum_tokens = quantum_tokens
        self._quantum_nano = 0
        self._hidden_reasoning = hidden_reasoning
        choices = _choices(body)
        self._max_tokens = _max_tokens(body) * choices
        self._most_tokens = (max_completion_tokens or context_length) * choices
        self._context_length = context_length
        self._images = -1
        self._report: Usage | None = None
        self._report_is_last = False
        self._report_refused = False

    def watch_budget(self) -> None:
        """Set the two marks: the bytes of output at which more is asked for, and at which the
        budget is used up. Call it again when `held_nano` has grown."""
        prompt_pico, self._quantum_nano, request_nano = _dearest(
            self._price.SerializeToString(), self._quantum_tokens
        )
        if not self._quantum_nano:
            self.ask_at_bytes = self.stop_at_bytes = _NEVER
            return
        prompt_nano = -(-self._house_prompt() * prompt_pico // rating.PICO_PER_NANO)
        left_nano = self.held_nano - prompt_nano - request_nano
        if self._max_tokens and left_nano * self._quantum_tokens >= (
            self._max_tokens * self._quantum_nano
        ):
            self.ask_at_bytes = self.stop_at_bytes = _NEVER
            return
        self.stop_at_bytes = self._bytes_for(left_nano)
        self.ask_at_bytes = self._bytes_for(left_nano - self._quantum_nano)

    def take(self, chunk: Chunk, content_bytes: int, has_content: bool) -> None:
        """Count a chunk, of so many bytes of text; content may also be media or a signature."""
        if has_content:
            self.completion_bytes += content_bytes
            self._report_is_last = False
        if chunk.usage_refused:
            self._report_refused = True
        if chunk.usage is not None:
            self._report = chunk.usage
            self._report_is_last = True

    def counts(self) -> tuple[list[UnitCount], UsageSource.ValueType]:
        """Return the usage so far and where it came from; nothing before the upstream's 200."""
        if not self.answered:
            return [], USAGE_SOURCE_UNSPECIFIED
        prompt, completion = self._believable()
        by_house = False
        if UNIT_PROMPT not in prompt:
            by_house = True
            prompt = {UNIT_PROMPT: self._house_prompt()}
        if UNIT_COMPLETION not in completion or not self._report_is_last:
            by_house = True
            completion = {UNIT_COMPLETION: int(self.completion_bytes * self._completion_ratio)}
        counts = [_count(unit, count) for unit, count in prompt.items()]
        counts += [_count(unit, count) for unit, count in completion.items()]
        for unit in _priced_units(self._price.SerializeToString()):
            number = 1 if unit == UNIT_REQUEST else self._count_images()
            if number:
                counts.append(_count(unit, number))
        return counts, USAGE_SOURCE_HOUSE if by_house else USAGE_SOURCE_UPSTREAM

    def _believable(self) -> tuple[dict[int, int], dict[int, int]]:
        """The upstream's last report, its prompt's units and the others; none of it, if what it
        says cannot be true."""
        prompt: dict[int, int] = {}
        others: dict[int, int] = {}
        if self._report is not None:
            for unit, count in self._report.counts.items():
                (prompt if unit in rating.PROMPT_UNITS else others)[unit] = count
        self.refused = (
            self._report_refused
            or any(count < 0 for count in (*prompt.values(), *others.values()))
            or sum(prompt.values()) > self._most_prompt()
            or others.get(UNIT_WEB_SEARCH, 0) > _SEARCHES_MOST
            or self._is_too_much(others)
        )
        return ({}, {}) if self.refused else (prompt, others)

    def _is_too_much(self, reported: Mapping[int, int]) -> bool:
        """Whether an output is more than was asked for, than the endpoint writes or than came."""
        reasoning = reported.get(UNIT_REASONING, 0)
        media = sum(reported.get(unit, 0) for unit in _MEDIA_UNITS)
        shown = sum(reported.get(unit, 0) for unit in rating.COMPLETION_UNITS) - reasoning - media
        received_bytes = self.completion_bytes + self.media_bytes
        if media and media > self.media_bytes + (_MEDIA_SLACK if self.media_bytes else 0):
            return True
        unseen_most = min(self._most_tokens or _UNSEEN_MOST, _UNSEEN_MOST)
        if reasoning > max(received_bytes, unseen_most):
            return True
        most = self._max_tokens or self._most_tokens
        limited = shown if self._hidden_reasoning else shown + reasoning
        # Some let only what follows the thoughts count against the limit: then it all came.
        all_came = self.reasoned and limited <= received_bytes
        if most and limited > most + _TOKENS_SLACK and not all_came:
            return True
        if not self._report_is_last:
            return False  # what it says of the output is not used
        # Some count their thoughts as output, and show a summary of them or a seal.
        unseen = unseen_most if self.reasoned and not reasoning else 0
        return shown > received_bytes + unseen + _OUTPUT_SLACK

    def _most_prompt(self) -> int:
        """Of tokens: of text one a byte, of media what the endpoint takes in."""
        if _is_text(self._body):
            return self.prompt_bytes + _PROMPT_SLACK
        return (self._context_length or _CONTEXT_MOST) + _PROMPT_SLACK

    def _house_prompt(self) -> int:
        return int(self.prompt_bytes * self._prompt_ratio)

    def _bytes_for(self, nano: int) -> int:
        if nano <= 0:
            return 0
        return int(nano * self._quantum_tokens / (self._quantum_nano * self._completion_ratio))

    def _count_images(self) -> int:
        if self._images < 0:
            self._images = sum(
                part.get("type") in ("image_url", "input_image")
                for message in self._body.get("messages") or ()
                for part in _parts(message)
            )
        return self._images


def spends(holds: Iterable[LeaseSpend], charge_nano: int) -> list[LeaseSpend]:
    """Spread a charge over the holds, in their order; what exceeds them falls to the last."""
    spent = []
    left = charge_nano
    for hold in holds:
        if left <= 0:
            break
        amount = min(left, hold.amount_nano)
        left -= amount
        spent.append(LeaseSpend(lease=hold.lease, amount_nano=amount))
    if left > 0 and spent:
        spent[-1].amount_nano += left
    return [spend for spend in spent if spend.amount_nano]


def prompt_bytes(body: Mapping[str, Any]) -> int:
    """Return the UTF-8 bytes of the text of a call: messages, tool calls and tools, not media."""
    total = 0
    for message in body.get("messages") or ():
        content = message.get("content")
        if type(content) is str:
            total += _length(content)
        else:
            for part in _parts(message):
                text = part.get("text") or part.get("refusal")
                if type(text) is str:
                    total += _length(text)
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            total += _length(str(function.get("name") or ""))
            total += _length(str(function.get("arguments") or ""))
    tools = body.get("tools")
    if tools:
        total += _length(str(tools))
    return total


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if type(content) is not list:
        return []
    return [part for part in content if type(part) is dict]


def _is_text(body: Mapping[str, Any]) -> bool:
    return not any(
        part.get("type", "text") not in _TEXT_PARTS
        for message in body.get("messages") or ()
        for part in _parts(message)
    )


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _max_tokens(body: Mapping[str, Any]) -> int:
    """The most output the call allows for a choice; 0: it does not say."""
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    return most if type(most) is int and most > 0 else 0


def _choices(body: Mapping[str, Any]) -> int:
    choices = body.get("n")
    return choices if type(choices) is int and choices > 1 else 1


def _count(unit: int, count: int) -> UnitCount:
    return UnitCount(unit=unit, count=count)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def _priced_units(serialized: bytes) -> tuple[int, ...]:
    """Of the units that no report counts, those that a price list names."""
    named = {entry.unit for entry in PriceVersion.FromString(serialized).entries}
    return tuple(sorted(named & {UNIT_REQUEST, UNIT_IMAGE}))


@lru_cache(maxsize=4096)
def _dearest(serialized: bytes, quantum_tokens: int) -> tuple[int, int, int]:
    """Of a price list: the dearest prompt token in pico-USD, `quantum_tokens` of the dearest
    output in nano-USD, and a request in nano-USD. Cached: an endpoint's list hardly changes."""
    price = PriceVersion.FromString(serialized)
    request_nano = rating.bound_nano(price, 0, 0)
    many = 1_000_000
    prompt_pico = math.ceil(
        (rating.bound_nano(price, many, 0) - request_nano) * rating.PICO_PER_NANO / many
    )
    return prompt_pico, rating.bound_nano(price, 0, quantum_tokens) - request_nano, request_nano
