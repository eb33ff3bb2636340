"""Providers as data: what a vendor's endpoints need that their dialect does not say."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Preset:
    """One vendor's row. Everything here is a fact about the vendor, never about one model."""

    slug: str
    name: str
    dialect: str = "openai_chat"
    base_url: str = ""


PRESETS: Mapping[str, Preset] = MappingProxyType({})
