"""The rules of registration: what a provider, an endpoint and a price must look like. Pure.

Every refusal is `Invalid`, which names the field by JSON pointer in the body that a provider sends.
"""

import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import urlsplit

from bourse.v1.events_pb2 import Listing, ProviderProfile
from bourse.v1.registry_pb2 import Connection, Policies, PutModelRequest
from services.providers.egress import EgressRefused, Guard

CREDENTIAL_KINDS = frozenset({"bearer", "header", "none"})
QUANTIZATIONS = frozenset(
    [
        "int4",
        "int8",
        "fp4",
        "mxfp4",
        "nvfp4",
        "fp6",
        "fp8",
        "mxfp8",
        "fp16",
        "bf16",
        "fp32",
        "unknown",
    ]
)
MODALITIES = frozenset({"text", "image", "audio", "video", "file", "embeddings"})
RESERVED_SLUGS = frozenset({"stealth", "bourse", "openrouter", "auto", "free", "all", "providers"})
RESERVED_AUTHORS = frozenset({"stealth", "bourse", "openrouter"})
PROFILE_FIELDS = (
    "name",
    "privacy_policy_url",
    "terms_of_service_url",
    "status_page_url",
    "headquarters",
    "datacenters",
)
FIRST_BYTE_TIMEOUT_MS_MAX = 300_000
SECRET_MAX = 16_384

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])")
_MODEL = re.compile(
    r"[a-z0-9][a-z0-9._-]{0,63}/[a-z0-9][a-z0-9._-]{0,95}(?::[a-z][a-z0-9-]{0,31})?"
)
_TAG = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")
_COUNTRY = re.compile(r"[A-Z]{2}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NAME_MAX = 100
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of Unicode: control and format characters (bidi marks, zero widths), line breaks."""
_TEXT_MAX = 10_000
_URL_MAX = 2_048
# Headers that say who asks of whom and how long the body is are the transport's.
_FORBIDDEN_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "accept-encoding"}
)


class Invalid(Exception):
    """A request breaks a rule. `field` is a JSON pointer; the message may be shown."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


def check_profile(profile: ProviderProfile, *, house: bool) -> None:
    """Judge a whole profile."""
    slug = profile.slug
    if not _SLUG.fullmatch(slug):
        raise Invalid("/slug", "2 to 40 of a-z, 0-9 and inner hyphens")
    if slug in RESERVED_SLUGS and not house:
        raise Invalid("/slug", "this slug is reserved")
    _text("/name", profile.name, _NAME_MAX, needed=True)
    if any(unicodedata.category(character) in _UNSHOWN for character in profile.name):
        raise Invalid("/name", "contains a character that does not show, or breaks the line")
    for field in ("privacy_policy_url", "terms_of_service_url", "status_page_url"):
        _page("/" + field, getattr(profile, field))
    if profile.headquarters and not _COUNTRY.fullmatch(profile.headquarters):
        raise Invalid("/headquarters", "an ISO 3166 country code of two capital letters")
    if len(profile.datacenters) > 100:
        raise Invalid("/datacenters", "at most 100")
    for index, country in enumerate(profile.datacenters):
        if not _COUNTRY.fullmatch(country):
            raise Invalid(f"/datacenters/{index}", "an ISO 3166 country code")


def folded(name: str) -> str:
    """A name as it must be unique: names that look the same are one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def check_contact(contact: str) -> None:
    _text("/contact", contact, 320)


def check_policies(policies: Policies) -> None:
    if not 0 <= policies.retention_days <= 36_500:
        raise Invalid("/retention_days", "0 (nothing is kept) to 36500 days")


@dataclass(frozen=True, slots=True)
class Known:
    """What this installation can speak and where it may call."""

    guard: Guard
    dialects: frozenset[str]
    presets: frozenset[str]


def check_connection(connection: Connection, known: Known, *, house: bool) -> None:
    """Judge a connection; URLs are judged as written, and again whenever they are called."""
    _base_url("/base_url", connection.base_url, known, house=house)
    if connection.models_url:
        _base_url("/models_url", connection.models_url, known, house=house)
    _dialect("/dialect", connection.dialect, known)
    _preset("/preset", connection.preset, known)
    if not 0 <= connection.first_byte_timeout_ms <= FIRST_BYTE_TIMEOUT_MS_MAX:
        raise Invalid("/first_byte_timeout_ms", f"0 (the default) to {FIRST_BYTE_TIMEOUT_MS_MAX}")


def check_credential(kind: str, header: str, secret: str) -> None:
    if kind not in CREDENTIAL_KINDS:
        raise Invalid("/kind", f"one of {', '.join(sorted(CREDENTIAL_KINDS))}")
    if kind == "header":
        if not _HEADER.fullmatch(header) or header.lower() in _FORBIDDEN_HEADERS:
            raise Invalid("/header", "the name of a header that carries a credential")
    elif header:
        raise Invalid("/header", "only for kind header")
    if kind == "none":
        if secret:
            raise Invalid("/secret", "kind none has no secret")
        return
    if not secret or len(secret) > SECRET_MAX:
        raise Invalid("/secret", f"1 to {SECRET_MAX} characters")
    if not secret.isascii() or any(
        ord(character) <= 0x20 or ord(character) == 0x7F for character in secret
    ):
        raise Invalid(
            "/secret", "a secret travels in a header: no spaces and no control characters"
        )


def check_model(request: PutModelRequest, known: Known, *, house: bool) -> None:
    """Judge what PutModel was given, but for the price."""
    _listing(request.listing, house=house)
    _text("/upstream_model", request.upstream_model, 256, needed=True)
    if request.dialect:
        _dialect("/dialect", request.dialect, known)
    _preset("/preset", request.preset, known)
    if request.base_url:
        _base_url("/base_url", request.base_url, known, house=house)


def _listing(listing: Listing, *, house: bool) -> None:
    if not _MODEL.fullmatch(listing.model):
        raise Invalid("/model", "author/slug or author/slug:variant, in lower case")
    if listing.model.partition("/")[0] in RESERVED_AUTHORS and not house:
        raise Invalid("/model", "this author is reserved")
    if listing.tag and not _TAG.fullmatch(listing.tag):
        raise Invalid("/tag", "provider[/variant or region or tier]")
    _text("/model_name", listing.model_name, _NAME_MAX)
    _text("/description", listing.description, _TEXT_MAX)
    _text("/hugging_face_id", listing.hugging_face_id, 200)
    _text("/tokenizer", listing.tokenizer, 100)
    if not 1 <= listing.context_length <= 100_000_000:
        raise Invalid("/context_length", "1 to 100000000 tokens")
    for field in ("max_completion_tokens", "max_prompt_tokens"):
        if not 0 <= getattr(listing, field) <= listing.context_length:
            raise Invalid(f"/{field}", "0 (unknown) to the context length")
    if listing.quantization and listing.quantization not in QUANTIZATIONS:
        raise Invalid("/quantization", f"one of {', '.join(sorted(QUANTIZATIONS))}")
    for field in ("input_modalities", "output_modalities"):
        for index, modality in enumerate(getattr(listing, field)):
            if modality not in MODALITIES:
                raise Invalid(f"/{field}/{index}", f"one of {', '.join(sorted(MODALITIES))}")
    if len(listing.supported_parameters) > 100:
        raise Invalid("/supported_parameters", "at most 100")
    for index, parameter in enumerate(listing.supported_parameters):
        if not _WORD.fullmatch(parameter):
            raise Invalid(f"/supported_parameters/{index}", "the name of a request parameter")


def _base_url(field: str, url: str, known: Known, *, house: bool) -> None:
    if house and url.startswith("sandbox://"):
        return
    try:
        parsed = known.guard.check_url(url)
    except EgressRefused as refusal:
        raise Invalid(field, str(refusal)) from None
    if parsed.query and field != "/models_url":
        raise Invalid(field, "a base URL has no query")


def _dialect(field: str, dialect: str, known: Known) -> None:
    if dialect not in known.dialects:
        raise Invalid(field, f"unknown dialect; there are {', '.join(sorted(known.dialects))}")


def _preset(field: str, preset: str, known: Known) -> None:
    if preset and preset not in known.presets:
        raise Invalid(field, "unknown preset")


def _text(field: str, value: str, most: int, *, needed: bool = False) -> None:
    if needed and not value.strip():
        raise Invalid(field, "must not be empty")
    if len(value) > most:
        raise Invalid(field, f"at most {most} characters")
    if any(ord(character) < 0x20 and character not in "\n\t" for character in value):
        raise Invalid(field, "contains a control character")


def _page(field: str, url: str) -> None:
    """A page that people open. We never fetch it, so only its scheme and host matter."""
    if not url:
        return
    try:
        parsed = urlsplit(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.hostname) and not parsed.username
    except ValueError:
        good = False
    if not good or len(url) > _URL_MAX or any(ord(character) <= 0x20 for character in url):
        raise Invalid(field, "an http or https URL")
