"""Token counts as upstreams report them: checked, and split so that none is counted twice."""

from collections.abc import Iterable, Mapping
from typing import Any

_MOST = 1_000_000_000  # tokens in one generation; more is a broken upstream


class Untrue(ValueError):
    """An upstream reported a count that cannot be true: negative, absurd, or no whole number."""


def count(fields: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first of these counts that is there, None if none is. Raise Untrue."""
    for key in keys:
        value = fields.get(key)
        if value is None:
            continue
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise Untrue(f"{key} = {value!r}")
        return value
    return None


def split(
    made: dict[int, int], total: int, rest: int, parts: Iterable[tuple[int, int | None]]
) -> None:
    """Add `parts` of `total` to `made`, and what is left of it under the unit `rest`.

    Parts may not add up to more than the total: the later ones are cut.
    """
    left = total
    for unit, part in parts:
        if part and left:
            part = min(part, left)
            made[unit] = made.get(unit, 0) + part
            left -= part
    made[rest] = made.get(rest, 0) + left
