"""Values of an upstream's JSON as what they must be: nothing of another type gets any further."""

from typing import Any

from services.providers import refusals

CHOICES_MAX = 128
"""An index above it is no choice of ours: nobody may ask for so many."""


def text(value: Any) -> str:
    """Return content; null is empty. Raise AttemptFailed (malformed) for what is no string."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    raise refusals.malformed("a text that is no string")


def word(value: Any) -> str:
    """Return an id, a name, a label; a number as its digits, anything else as not said."""
    if type(value) is str:
        return value
    return str(value) if type(value) in (int, float) else ""


def index(value: Any) -> int:
    """Return which choice this is, the first where it is not said. Raise AttemptFailed."""
    if value is None:
        return 0
    if type(value) is int and 0 <= value < CHOICES_MAX:
        return value
    raise refusals.malformed("an index of no choice")


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, none of what is no list."""
    return [item for item in value if type(item) is dict] if type(value) is list else []
