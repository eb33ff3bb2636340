"""What providers send when they register, and how it becomes the registry's messages."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bourse.v1.events_pb2 import Listing, PriceOverride, PriceVersion, UnitPrice
from bourse.v1.registry_pb2 import Connection, Policies
from services.edge.errors import ApiError
from services.edge.listings import PRICE_KEYS, price_pico

DISCOUNT_DENOMINATOR_MAX = 1_000_000
DISCOUNT_MIN = -99
"""A negative discount raises the price, a hundredfold at most."""
NAME_SHOWN = 64
_UNITS = dict(PRICE_KEYS)
_BESIDE_PRICES = frozenset({"discount", "overrides"})
_BESIDE_OVERRIDES = frozenset({"min_prompt_tokens"})


class Body(BaseModel):
    model_config = ConfigDict(strict=True, protected_namespaces=())


class ProfileBody(Body):
    """Who the provider is."""

    name: str | None = None
    headquarters: str | None = Field(None, description="ISO 3166 country code.")
    datacenters: list[str] | None = Field(None, description="ISO 3166 country codes.")
    privacy_policy_url: str | None = None
    terms_of_service_url: str | None = None
    status_page_url: str | None = None


class NewProvider(ProfileBody):
    slug: str
    name: str
    contact: str = ""


class PoliciesBody(Body):
    """What the provider does with prompts and completions."""

    trains: bool = False
    retention_days: int = Field(0, ge=0, le=36_500, description="0: nothing is kept.")
    can_publish: bool = False
    moderated: bool = False
    requires_user_id: bool = False

    def message(self) -> Policies:
        return Policies(**self.model_dump())


class ConnectionBody(Body):
    """Where the models are and which dialect they speak."""

    base_url: str
    dialect: str
    models_url: str = ""
    preset: str = ""
    first_byte_timeout_s: float = Field(0, ge=0, le=300, description="0: the default.")

    def message(self) -> Connection:
        return Connection(
            base_url=self.base_url,
            dialect=self.dialect,
            models_url=self.models_url,
            preset=self.preset,
            first_byte_timeout_ms=int(self.first_byte_timeout_s * 1_000),
        )


class CredentialBody(Body):
    """How requests prove who sends them. The secret is sealed on arrival and never returned."""

    kind: str = Field(description="`bearer`, `header` or `none`.")
    header: str = ""
    secret: str = Field("", repr=False)


class PriceBody(Body):
    """A dated price: USD per unit as decimal strings."""

    pricing: dict[str, Any]
    discount: float | None = Field(None, description="Price × (1 − discount).")
    effective_at: str | None = Field(None, description="ISO 8601, UTC; absent: as soon as it may.")
    confirm: bool = False

    def message(self) -> PriceVersion:
        return price(self.pricing, self.discount, self.effective_at, "")


class ModelBody(Body):
    """One model on offer."""

    name: str = ""
    description: str = ""
    upstream_model_id: str = ""
    tag: str = ""
    context_length: int = Field(0, ge=0, le=2**62)
    max_completion_tokens: int | None = Field(None, ge=0, le=2**62)
    max_output_length: int | None = Field(
        None, ge=0, le=2**62, description="The same, in the flat document's word."
    )
    max_prompt_tokens: int | None = Field(None, ge=0, le=2**62)
    quantization: str | None = None
    input_modalities: list[str] = ["text"]
    output_modalities: list[str] = ["text"]
    supported_parameters: list[str] | None = None
    supported_sampling_parameters: list[str] | None = None
    supported_features: list[str] | None = None
    hugging_face_id: str | None = None
    tokenizer: str | None = None
    created: int = Field(0, ge=0, le=2**40, description="Unix seconds.")
    pricing: dict[str, Any] | None = None
    discount: float | None = None
    preset: str = ""
    dialect: str = ""
    base_url: str = ""

    def listing(self, model: str) -> Listing:
        parameters = dict.fromkeys(
            [
                *(self.supported_parameters or ()),
                *(self.supported_sampling_parameters or ()),
                *(_FEATURES.get(name, name) for name in self.supported_features or ()),
            ]
        )
        return Listing(
            model=model,
            model_name=self.name,
            description=self.description,
            tag=self.tag,
            context_length=self.context_length,
            max_completion_tokens=self.max_completion_tokens or self.max_output_length or 0,
            max_prompt_tokens=self.max_prompt_tokens or 0,
            quantization=self.quantization or "",
            input_modalities=self.input_modalities,
            output_modalities=self.output_modalities,
            supported_parameters=list(parameters),
            hugging_face_id=self.hugging_face_id or "",
            tokenizer=self.tokenizer or "",
            created_at_ms=self.created * 1_000,
        )

    def price(self) -> PriceVersion | None:
        if self.pricing is None:
            return None
        return price(self.pricing, self.discount, None, "")


_FEATURES = {"json_mode": "response_format"}


def price(
    pricing: Mapping[str, Any], discount: float | None, effective_at: str | None, at: str
) -> PriceVersion:
    """Return a price version. Raises ApiError 400 with a JSON pointer under `at`."""
    made = PriceVersion(effective_at_ms=_time_ms(effective_at, f"{at}/effective_at"))
    overrides = pricing.get("overrides")
    made.entries.extend(_entries(pricing, f"{at}/pricing", _BESIDE_PRICES))
    if not made.entries:
        raise ApiError(400, "A price needs at least one unit.", field=f"{at}/pricing")
    if overrides is not None:
        if not isinstance(overrides, list):
            raise ApiError(400, "`overrides` must be an array.", field=f"{at}/pricing/overrides")
        for index, override in enumerate(overrides):
            made.overrides.append(_override(override, f"{at}/pricing/overrides/{index}"))
    given = discount if discount is not None else pricing.get("discount")
    if given is not None:
        _set_discount(made, given, f"{at}/discount")
    return made


def _entries(pricing: Mapping[str, Any], at: str, beside: Collection[str]) -> list[UnitPrice]:
    """Return the prices of units; `beside` are the other keys there may be."""
    entries = []
    for name, value in pricing.items():
        if name in beside:
            continue
        unit = _UNITS.get(name)
        if unit is None:  # also a misspelt one, which would be sold for nothing
            shown = name[:NAME_SHOWN].encode(errors="replace").decode()  # half a character may come
            raise ApiError(400, f"`{shown}` is not a price that can be set.", field=f"{at}/{shown}")
        if value is None:
            continue
        if not isinstance(value, str):
            raise ApiError(400, "A price is a decimal string, USD per unit.", field=f"{at}/{name}")
        try:
            pico, inexact = price_pico(value)
        except ValueError as error:
            raise ApiError(400, f"`{name}` {error}.", field=f"{at}/{name}") from error
        if inexact and not pico:
            raise ApiError(
                400,
                f"`{name}` is less than can be charged: prices are whole pico-USD (1e-12 USD).",
                field=f"{at}/{name}",
            )
        entries.append(UnitPrice(unit=unit, price_pico=pico))
    return entries


def _override(override: Any, at: str) -> PriceOverride:
    if not isinstance(override, dict):
        raise ApiError(400, "An override is an object.", field=at)
    over = override.get("min_prompt_tokens")
    if isinstance(over, bool) or not isinstance(over, int) or not 0 <= over < 2**62:
        raise ApiError(
            400, "`min_prompt_tokens` must be an integer.", field=f"{at}/min_prompt_tokens"
        )
    return PriceOverride(prompt_tokens_over=over, entries=_entries(override, at, _BESIDE_OVERRIDES))


def _set_discount(made: PriceVersion, discount: Any, at: str) -> None:
    if isinstance(discount, bool) or not isinstance(discount, int | float):
        raise ApiError(400, "`discount` must be a number.", field=at)
    if not DISCOUNT_MIN <= discount < 1:
        raise ApiError(400, f"`discount` must be at least {DISCOUNT_MIN} and below 1.", field=at)
    part = 1 - Fraction(str(discount)).limit_denominator(DISCOUNT_DENOMINATOR_MAX)
    if not part:
        raise ApiError(400, "`discount` is so close to 1 that nothing would be charged.", field=at)
    if part == 1:
        return
    made.discount_numerator, made.discount_denominator = part.numerator, part.denominator


def _time_ms(text: str | None, at: str) -> int:
    if not text:
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ApiError(400, "Not a time: ISO 8601, UTC.", field=at) from error
    if moment.utcoffset() != timedelta(0):
        raise ApiError(400, "The time must be UTC.", field=at)
    return int(moment.timestamp() * 1_000)
