"""How much a call wants the model to think, whatever words the provider has for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHARES: Mapping[str, int] = {  # percent of max_tokens: docs/api.md section 3
    "max": 95,
    "xhigh": 95,
    "high": 80,
    "medium": 50,
    "low": 20,
    "minimal": 10,
}
_ORDER = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a call says about reasoning. Empty effort and budget 0: not said."""

    on: bool
    effort: str = ""
    budget: int = 0
    exclude: bool = False

    def budget_for(self, max_tokens: int, lowest: int, highest: int) -> int:
        """Return a thinking budget in tokens: as said, or the effort's share of `max_tokens`."""
        budget = self.budget or max_tokens * _SHARES.get(self.effort, 50) // 100
        return max(lowest, min(budget, highest))

    def effort_for(self, supported: Sequence[str], max_tokens: int = 0) -> str:
        """Return the supported effort nearest to what was asked; upwards where two are as near."""
        if not self.on:
            wanted = "none"
        elif self.effort:
            wanted = self.effort
        elif self.budget and max_tokens:
            share = 100 * self.budget // max_tokens
            wanted = min(_SHARES, key=lambda effort: abs(_SHARES[effort] - share))
        else:
            wanted = "medium"
        return nearest(wanted, supported)


def thinking_of(body: Mapping[str, Any]) -> Thinking | None:
    """Return what a canonical body says about reasoning, or None where it says nothing."""
    asked = body.get("reasoning")
    effort = body.get("reasoning_effort")
    if not isinstance(asked, Mapping):
        if not isinstance(effort, str):
            return None
        return Thinking(on=effort != "none", effort=effort)
    effort = asked.get("effort") or effort or ""
    budget = asked.get("max_tokens") or 0
    if not isinstance(effort, str) or not isinstance(budget, int):
        return None
    on = asked.get("enabled") is not False and effort != "none"
    if not (effort or budget or "enabled" in asked):
        return None
    return Thinking(on, "" if budget else effort, budget, asked.get("exclude") is True)


def nearest(effort: str, supported: Sequence[str]) -> str:
    """Return the member of `supported` closest to `effort`; empty if there is none."""
    if effort in supported or not supported:
        return effort if supported else ""
    if effort not in _ORDER:
        return ""
    at = _ORDER.index(effort)
    ranked = [name for name in supported if name in _ORDER]
    return min(
        ranked, key=lambda name: (abs(_ORDER.index(name) - at), -_ORDER.index(name)), default=""
    )
