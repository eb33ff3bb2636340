"""The request's `provider` object as routing takes it."""

from typing import Any

from bourse.v1.routing_pb2 import ProviderPreferences, Sort
from services.edge.errors import invalid
from services.edge.fields import boolean, mapping, one_of, percentiles, strings, wrong_type

NAMES_MAX = 100
NONE = ProviderPreferences()
"""No preferences: most requests share it, and nobody changes it."""

_SORTS = {
    "price": Sort.SORT_PRICE,
    "throughput": Sort.SORT_THROUGHPUT,
    "latency": Sort.SORT_LATENCY,
    "exacto": Sort.SORT_EXACTO,
}
_PREFERRED = ("preferred_min_throughput", "preferred_max_latency")
"""Wishes, which nothing is measured for yet."""
_NOT_OFFERED = ("quantizations", "max_price", "enforce_distillable_text")
"""Hard filters that no endpoint is tested against yet: a promise of them would be broken."""


def read(value: Any, route: str | None) -> ProviderPreferences:
    """Return the preferences, or raise a 400 naming the field at fault."""
    if value is None and route != "sort":
        return NONE
    preferences = ProviderPreferences(sort_across_models=route == "sort")
    if value is None:
        return preferences
    mapping("provider", value)
    for name in ("order", "only", "ignore"):
        names = value.get(name)
        if names is not None:
            strings(NAMES_MAX)(f"provider.{name}", names)
            getattr(preferences, name).extend(names)
    for name in ("allow_fallbacks", "require_parameters", "zdr"):
        if value.get(name) is not None:
            boolean(f"provider.{name}", value[name])
    preferences.forbid_fallbacks = value.get("allow_fallbacks") is False
    preferences.require_parameters = bool(value.get("require_parameters"))
    preferences.zero_data_retention = bool(value.get("zdr"))
    if value.get("data_collection") is not None:
        one_of(("allow", "deny"))("provider.data_collection", value["data_collection"])
        preferences.deny_data_collection = value["data_collection"] == "deny"
    _sort(preferences, value.get("sort"))
    for name in _PREFERRED:
        if value.get(name) is not None:
            percentiles(f"provider.{name}", value[name])
    for name in _NOT_OFFERED:
        if value.get(name):
            raise invalid(f"provider.{name}", f"`provider.{name}` is not offered here yet.")
    return preferences


def _sort(preferences: ProviderPreferences, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, dict):
        partition = value.get("partition")
        if partition is not None:
            one_of(("model", "none"))("provider.sort.partition", partition)
            preferences.sort_across_models = partition == "none"
        value = value.get("by")
        if value is None:
            return
        one_of(tuple(_SORTS))("provider.sort.by", value)
    elif not isinstance(value, str) or value not in _SORTS:
        raise wrong_type("provider.sort", "one of " + ", ".join(_SORTS) + " or an object")
    preferences.sort = _SORTS[value]
