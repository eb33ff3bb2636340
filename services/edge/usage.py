"""Usage and cost as clients read them: counts rebuilt from disjoint units, USD from integers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import orjson

from bourse.rating import COMPLETION_UNITS, PICO_PER_NANO, PROMPT_UNITS, round_half_even
from bourse.v1.events_pb2 import CostLine, PriceVersion, Unit, UnitCount

NANO_DIGITS = 9
_NANO_PER_USD = 10**NANO_DIGITS

# Looking an enum's value up costs more than all the arithmetic here.
_CACHE_READ: int = Unit.UNIT_CACHE_READ
_CACHE_READ_AUDIO: int = Unit.UNIT_CACHE_READ_AUDIO
_CACHE_WRITE: int = Unit.UNIT_CACHE_WRITE
_CACHE_WRITE_1H: int = Unit.UNIT_CACHE_WRITE_1H
_PROMPT_AUDIO: int = Unit.UNIT_PROMPT_AUDIO
_PROMPT_VIDEO: int = Unit.UNIT_PROMPT_VIDEO
_REASONING: int = Unit.UNIT_REASONING
_COMPLETION_AUDIO: int = Unit.UNIT_COMPLETION_AUDIO
_COMPLETION_IMAGE: int = Unit.UNIT_COMPLETION_IMAGE

CACHE_READ = (_CACHE_READ, _CACHE_READ_AUDIO)


def usd(nano: int) -> str:
    """Print nano-USD as USD with at most nine decimals, never through a float."""
    if nano < 0:
        return "-" + usd(-nano)
    part = nano % _NANO_PER_USD
    if not part:
        return str(nano // _NANO_PER_USD)
    return f"{nano // _NANO_PER_USD}.{part:09d}".rstrip("0")


def usd_number(nano: int) -> orjson.Fragment:
    """The same as a JSON number."""
    return orjson.Fragment(usd(nano))


def prompt_nano(lines: Iterable[CostLine], price: PriceVersion, list_nano: int) -> int:
    """Return the prompt's part of a rated list price; the completion's is the rest."""
    pico = 0
    for line in lines:
        if line.unit in PROMPT_UNITS:
            pico += line.cost_pico
    numerator, denominator = 1, 1
    if price.discount_denominator:
        numerator, denominator = price.discount_numerator, price.discount_denominator
    return min(round_half_even(pico * numerator, denominator * PICO_PER_NANO), list_nano)


def counts(usage: Iterable[UnitCount]) -> dict[int, int]:
    found: dict[int, int] = {}
    for item in usage:
        found[item.unit] = found.get(item.unit, 0) + item.count
    return found


def of(found: Mapping[int, int], units: Iterable[int]) -> int:
    return sum(found.get(unit, 0) for unit in units)


def usage_json(
    usage: Iterable[UnitCount],
    lines: Iterable[CostLine],
    price: PriceVersion,
    list_nano: int,
    charge_nano: int,
) -> bytes:
    """Return the `usage` object of a reply as JSON."""
    found: defaultdict[int, int] = defaultdict(int)
    prompt = completion = 0
    for item in usage:
        unit, count = item.unit, item.count
        found[unit] += count
        if unit in PROMPT_UNITS:
            prompt += count
        elif unit in COMPLETION_UNITS:
            completion += count
    prompt_cost = prompt_nano(lines, price, list_nano)
    audio_read = found[_CACHE_READ_AUDIO]
    text = _USAGE % (
        prompt,
        completion,
        prompt + completion,
        usd(charge_nano),
        usd(prompt_cost),
        usd(list_nano - prompt_cost),
        found[_CACHE_READ] + audio_read,
        found[_CACHE_WRITE] + found[_CACHE_WRITE_1H],
        found[_PROMPT_AUDIO] + audio_read,
        found[_PROMPT_VIDEO],
        found[_REASONING],
        found[_COMPLETION_AUDIO],
        found[_COMPLETION_IMAGE],
    )
    return text.encode()


_USAGE = (
    '{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"cost":%s,"is_byok":false,'
    '"cost_details":{"upstream_inference_cost":null,"upstream_inference_prompt_cost":%s,'
    '"upstream_inference_completions_cost":%s},'
    '"prompt_tokens_details":{"cached_tokens":%d,"cache_write_tokens":%d,"audio_tokens":%d,'
    '"video_tokens":%d},'
    '"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":%d,"image_tokens":%d,'
    '"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
"""Numbers alone are filled in, so nothing needs escaping."""
