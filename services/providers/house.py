"""List the house's providers: the sandbox, those whose keys the environment holds, local Ollama.

They are rows like everyone's, written through the registry's contract with `house` set: commission
0, never payable. Models and prices of vendors come from the genai-prices package; a house is free
to change them like any provider.
"""

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from grpc import StatusCode

from bourse.rpc import RpcError
from bourse.v1 import registry_pb2 as pb
from bourse.v1.events_pb2 import (
    Listing,
    PriceOverride,
    PriceVersion,
    ProviderProfile,
    Unit,
    UnitPrice,
)
from services.providers.presets import PRESETS, Preset

if TYPE_CHECKING:
    from bourse.v1.registry_pb2_grpc import RegistryAsyncStub

log = logging.getLogger(__name__)

MODELS_MAX = 60
"""Of one provider: a start must be quick, and the rest can be listed by hand."""
CONTEXT_UNKNOWN = 128_000
OLLAMA_TIMEOUT_S = 0.5
RPC_TIMEOUT_S = 30.0
PARAMETERS = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "structured_outputs",
    "reasoning",
    "service_tier",
)


@dataclass(frozen=True, slots=True)
class HouseModel:
    """A model that the house sells."""

    model: str
    upstream_model: str
    name: str
    price: PriceVersion
    context_length: int = CONTEXT_UNKNOWN
    description: str = ""
    base_url: str = ""
    dialect: str = ""
    inputs: tuple[str, ...] = ("text",)


@dataclass(frozen=True, slots=True)
class HouseProvider:
    """A provider of the house."""

    slug: str
    name: str
    base_url: str
    dialect: str
    preset: str
    credential_kind: str
    credential_header: str
    secret: str
    models: list[HouseModel]


async def register(
    registry: "RegistryAsyncStub",
    account: str,
    environment: Mapping[str, str],
    *,
    ollama: httpx.AsyncBaseTransport | None = None,
) -> list[str]:
    """List what the house has; return the slugs. It is safe, and quick, to do it again.

    A provider that cannot be listed is logged and passed over. `ollama` is asked for its models at
    the preset's address, where it is given.
    """
    found = [sandbox()]
    found += await asyncio.to_thread(from_environment, environment)
    if ollama is not None:
        found += await _ollama(ollama)
    listed = []
    for provider in found:
        try:
            await _list(registry, account, provider)
        except RpcError as error:
            log.error("provider %s is not listed: %s %s", provider.slug, error, error.field)
            continue
        listed.append(provider.slug)
    return listed


def sandbox() -> HouseProvider:
    """The sandbox: one model per dialect, with prices so that costs show."""

    def model(suffix: str, dialect: str, name: str, *more_inputs: str) -> HouseModel:
        host = dialect.partition("_")[0]
        return HouseModel(
            model=f"sandbox/echo{suffix}",
            upstream_model=f"echo{suffix}",
            name=name,
            price=price({Unit.UNIT_PROMPT: "0.5", Unit.UNIT_COMPLETION: "1.5"}),
            context_length=CONTEXT_UNKNOWN,
            description="Answers in this process, from nothing: it echoes, calls tools, fills "
            "schemas. For trying things out; no model is behind it.",
            base_url=f"sandbox://{host}",
            dialect=dialect,
            inputs=("text", *more_inputs),
        )

    return HouseProvider(
        slug="sandbox",
        name="Sandbox",
        base_url="sandbox://openai",
        dialect="openai_chat",
        preset="",
        credential_kind="none",
        credential_header="",
        secret="",
        models=[
            model("", "openai_chat", "Echo", "image"),
            model("-anthropic", "anthropic_messages", "Echo (Anthropic dialect)"),
            model("-gemini", "gemini", "Echo (Gemini dialect)"),
        ],
    )


def from_environment(environment: Mapping[str, str]) -> list[HouseProvider]:
    """Providers whose API key is in the environment and whose models have known prices."""
    keys = {
        slug: secret
        for slug, preset in PRESETS.items()
        if slug in _PRICED_AS or slug in _PRICED_BY_SLUG
        if (secret := _secret(preset, environment)) and "{" not in preset.base_url
    }
    if not keys:
        return []
    from genai_prices.data import providers  # most of a second: only where it is needed

    sold = {provider.id: provider.models for provider in providers}
    found = []
    for slug, secret in keys.items():
        preset = PRESETS[slug]
        models = _models(preset, sold.get(_PRICED_AS.get(slug, slug)) or [])
        found.append(
            HouseProvider(
                slug=slug,
                name=preset.name,
                base_url=preset.base_url,
                dialect=preset.dialect,
                preset=slug,
                credential_kind=preset.credential_kind,
                credential_header=preset.credential_header,
                secret=secret,
                models=models,
            )
        )
    return found


def price(usd_per_million: Mapping[int, str | Decimal]) -> PriceVersion:
    """A price list from USD per million tokens; finer than a micro-USD is rounded half-even."""
    return PriceVersion(
        entries=[
            UnitPrice(unit=unit, price_pico=_pico(Decimal(usd), 1_000_000))  # type: ignore[arg-type]
            for unit, usd in usd_per_million.items()
        ]
    )


def model_slug(preset_slug: str, upstream_model: str) -> str:
    """`author/slug` for what a vendor calls its model."""
    name = _UNSAFE.sub("-", upstream_model.lower().rpartition("/")[2]).strip("-._") or "model"
    if "/" in upstream_model:
        author = _UNSAFE.sub("-", upstream_model.lower().split("/")[-2]).strip("-._")
        return f"{_AUTHORS.get(author, author) or preset_slug}/{name}"
    for prefix, author in _FAMILIES:
        if name.startswith(prefix):
            return f"{author}/{name}"
    return f"{_AUTHORS.get(preset_slug, preset_slug)}/{name}"


async def _list(registry: "RegistryAsyncStub", account: str, provider: HouseProvider) -> None:
    profile = ProviderProfile(slug=provider.slug, name=provider.name)
    try:
        await registry.CreateProvider(
            pb.CreateProviderRequest(account=account, profile=profile, house=True),
            timeout=RPC_TIMEOUT_S,
        )
    except RpcError as error:
        if error.code is not StatusCode.ALREADY_EXISTS:
            raise
    owned = {"account": account, "slug": provider.slug}
    connection = pb.Connection(
        base_url=provider.base_url, dialect=provider.dialect, preset=provider.preset
    )
    await registry.SetConnection(
        pb.SetConnectionRequest(**owned, connection=connection), timeout=RPC_TIMEOUT_S
    )
    await registry.SetCredential(
        pb.SetCredentialRequest(
            **owned,
            kind=provider.credential_kind,
            header=provider.credential_header,
            secret=provider.secret,
        ),
        timeout=RPC_TIMEOUT_S,
    )
    for model in provider.models:
        await registry.PutModel(
            pb.PutModelRequest(
                **owned,
                listing=Listing(
                    model=model.model,
                    model_name=model.name,
                    description=model.description,
                    context_length=model.context_length,
                    input_modalities=model.inputs,
                    output_modalities=["text"],
                    supported_parameters=PARAMETERS,
                ),
                upstream_model=model.upstream_model,
                price=model.price,
                base_url=model.base_url,
                dialect=model.dialect,
            ),
            timeout=RPC_TIMEOUT_S,
        )


async def _ollama(transport: httpx.AsyncBaseTransport) -> list[HouseProvider]:
    """The models of an Ollama that answers on this machine. They are free."""
    preset = PRESETS["ollama"]
    url = httpx.URL(preset.base_url).copy_with(path="/api/tags")
    try:
        async with asyncio.timeout(OLLAMA_TIMEOUT_S):
            response = await transport.handle_async_request(httpx.Request("GET", url))
            body = await response.aread()
            await response.aclose()
        names = [str(model["name"]) for model in orjson.loads(body)["models"]]
    except (httpx.HTTPError, OSError, TimeoutError, ValueError, KeyError, TypeError):
        return []
    free = price({Unit.UNIT_PROMPT: "0", Unit.UNIT_COMPLETION: "0"})
    models = [
        HouseModel(f"ollama/{model_slug('ollama', name).partition('/')[2]}", name, name, free)
        for name in names[:MODELS_MAX]
    ]
    return [
        HouseProvider(
            slug="ollama",
            name=preset.name,
            base_url=preset.base_url,
            dialect=preset.dialect,
            preset="ollama",
            credential_kind="none",
            credential_header="",
            secret="",
            models=models,
        )
    ]


def _secret(preset: Preset, environment: Mapping[str, str]) -> str:
    for name in preset.env:
        secret = environment.get(name, "").strip()
        if secret:
            return secret
    return ""


def _models(preset: Preset, known: Iterable[Any]) -> list[HouseModel]:
    """Of genai-prices' models, those that chat and have a price today; newest names first."""
    today = datetime.now(UTC)
    found: dict[str, HouseModel] = {}
    for model in sorted(known, key=lambda each: _newness(each.id), reverse=True):
        if model.deprecated or _NOT_CHAT.search(model.id.lower()):
            continue
        if preset.slug == "google" and not model.id.startswith(("gemini", "gemma")):
            continue
        version = _version(model.get_prices(today))
        slug = model_slug(preset.slug, model.id)
        if version is None or slug in found:
            continue
        found[slug] = HouseModel(
            model=slug,
            upstream_model=model.id,
            name=model.name or model.id,
            price=version,
            context_length=model.context_window or CONTEXT_UNKNOWN,
            description=model.description or "",
        )
        if len(found) == MODELS_MAX:
            break
    return list(found.values())


def _version(known: Any) -> PriceVersion | None:
    """genai-prices' prices as a price list; None without a price of prompt and completion."""
    entries: dict[int, int] = {}
    overrides: dict[int, dict[int, int]] = {}
    for field, (unit, per) in _PRICE_FIELDS.items():
        value = getattr(known, field, None)
        if value is None:
            continue
        if not isinstance(value, Decimal):
            for tier in value.tiers:
                overrides.setdefault(tier.start, {})[unit] = _pico(tier.price, per)
            value = value.base
        entries[unit] = _pico(value, per)
    if Unit.UNIT_PROMPT not in entries or Unit.UNIT_COMPLETION not in entries:
        return None
    return PriceVersion(
        entries=_entries(entries),
        overrides=[
            PriceOverride(prompt_tokens_over=start, entries=_entries(prices))
            for start, prices in sorted(overrides.items())
        ],
    )


def _entries(prices: Mapping[int, int]) -> list[UnitPrice]:
    return [
        UnitPrice(unit=unit, price_pico=price_pico)  # type: ignore[arg-type]
        for unit, price_pico in sorted(prices.items())
    ]


def _pico(usd: Decimal, per: int) -> int:
    return int((usd * 10**12 / per).to_integral_value(ROUND_HALF_EVEN))


def _newness(name: str) -> list[tuple[int, int | str]]:
    """A key by which `gpt-5.2` comes after `gpt-4.1` and `claude-opus-4-5` after `-4-1`."""
    return [
        (1, int(part)) if part.isdigit() else (0, part)
        for part in re.findall(r"\d{1,6}(?!\d)|\D+", name)
    ]


_PRICE_FIELDS: Mapping[str, tuple[int, int]] = {
    "input_mtok": (Unit.UNIT_PROMPT, 1_000_000),
    "cache_read_mtok": (Unit.UNIT_CACHE_READ, 1_000_000),
    "cache_write_mtok": (Unit.UNIT_CACHE_WRITE, 1_000_000),
    "cache_write_1h_mtok": (Unit.UNIT_CACHE_WRITE_1H, 1_000_000),
    "output_mtok": (Unit.UNIT_COMPLETION, 1_000_000),
    "output_reasoning_mtok": (Unit.UNIT_REASONING, 1_000_000),
    "input_audio_mtok": (Unit.UNIT_PROMPT_AUDIO, 1_000_000),
    "input_image_mtok": (Unit.UNIT_PROMPT_IMAGE, 1_000_000),
    "cache_audio_read_mtok": (Unit.UNIT_CACHE_READ_AUDIO, 1_000_000),
    "output_audio_mtok": (Unit.UNIT_COMPLETION_AUDIO, 1_000_000),
    "requests_kcount": (Unit.UNIT_REQUEST, 1_000),
    "web_searches_kcount": (Unit.UNIT_WEB_SEARCH, 1_000),
}
_PRICED_AS: Mapping[str, str] = {"xai": "x-ai"}
"""Presets that genai-prices knows under another name."""
_PRICED_BY_SLUG = frozenset(
    {
        "anthropic",
        "cerebras",
        "deepseek",
        "fireworks",
        "google",
        "groq",
        "minimax",
        "mistral",
        "moonshotai",
        "novita",
        "openai",
        "openrouter",
        "perplexity",
        "together",
        "zai",
    }
)
_AUTHORS: Mapping[str, str] = {
    "xai": "x-ai",
    "zai": "z-ai",
    "zai-org": "z-ai",
    "mistral": "mistralai",
    "deepseek-ai": "deepseek",
    "minimaxai": "minimax",
}
_FAMILIES = (
    ("gpt-oss", "openai"),
    ("llama", "meta-llama"),
    ("meta-llama", "meta-llama"),
    ("qwen", "qwen"),
    ("gemma", "google"),
    ("deepseek", "deepseek"),
    ("kimi", "moonshotai"),
    ("glm", "z-ai"),
    ("minimax", "minimax"),
    ("mixtral", "mistralai"),
    ("mistral", "mistralai"),
)
_UNSAFE = re.compile(r"[^a-z0-9._-]+")
_NOT_CHAT = re.compile(
    r"embed|whisper|tts|audio|speech|realtime|image|dall|moderation|transcri|instruct-0914|ocr"
    r"|search|rerank|guard|\bada|babbage|curie|davinci|sora|veo|\blive|orpheus|batch"
)
