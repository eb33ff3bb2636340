"""The hard filters: who may not serve a request, and which of its fields says so. Pure."""

from dataclasses import dataclass

from bourse.v1.events_pb2 import ListingState
from services.routing.ask import Ask
from services.routing.endpoint import Endpoint
from services.routing.price import Price


@dataclass(frozen=True, slots=True)
class Excluded:
    """An endpoint that is no candidate: the rule, the request's field (empty: none), the words."""

    endpoint: Endpoint
    excluded_by: str
    field: str
    detail: str


def exclusion(
    endpoint: Endpoint, price: Price | None, ask: Ask, service_tier: str
) -> Excluded | None:
    """Return why the endpoint may not serve, the first rule that says so; None when it may.

    `service_tier` is the tier that may serve beside the ordinary endpoints.
    """
    return (
        _by_state(endpoint)
        or _by_price(endpoint, price)
        or _by_provider(endpoint, ask)
        or _by_tier(endpoint, ask, service_tier)
        or _by_data_policy(endpoint, ask)
        or _by_size(endpoint, ask)
        or _by_modality(endpoint, ask)
        or _by_parameters(endpoint, ask)
    )


def _by_state(endpoint: Endpoint) -> Excluded | None:
    if endpoint.serves:
        return None
    name = ListingState.Name(endpoint.state).removeprefix("LISTING_STATE_").lower()
    return Excluded(endpoint, "state", "", f"the endpoint is {name.replace('_', ' ')}")


def _by_price(endpoint: Endpoint, price: Price | None) -> Excluded | None:
    if price is None:
        return Excluded(endpoint, "price", "", "no price is in force")
    if not price.sold:
        return Excluded(endpoint, "price", "", "prompt or completion has no price")
    return None


def _by_provider(endpoint: Endpoint, ask: Ask) -> Excluded | None:
    if ask.only and not any(endpoint.matches(wanted) for wanted in ask.only):
        return _not_allowed(endpoint, "provider.only", f"{endpoint.tag} is not in the list")
    if any(endpoint.matches(unwanted) for unwanted in ask.ignore):
        return _not_allowed(endpoint, "provider.ignore", f"{endpoint.tag} is in the list")
    restricted = ask.order if ask.forbid_fallbacks else ()
    if restricted and not any(endpoint.matches(wanted) for wanted in restricted):
        detail = f"{endpoint.tag} is not in provider.order and fallbacks are not allowed"
        return _not_allowed(endpoint, "provider.allow_fallbacks", detail)
    return None


def _not_allowed(endpoint: Endpoint, field: str, detail: str) -> Excluded:
    return Excluded(endpoint, "allowed_providers", field, detail)


def _by_tier(endpoint: Endpoint, ask: Ask, service_tier: str) -> Excluded | None:
    """A tier endpoint serves only who asked for the tier, or named its very tag."""
    if endpoint.service_tier in ("", service_tier):
        return None
    if endpoint.tag in ask.order or endpoint.tag in ask.only:
        return None
    detail = f"serves the tier {endpoint.service_tier}, which was not asked for"
    return Excluded(endpoint, "allowed_providers", "service_tier", detail)


def _by_data_policy(endpoint: Endpoint, ask: Ask) -> Excluded | None:
    if ask.zero_data_retention and endpoint.stores:
        return Excluded(endpoint, "data_policy:zdr", "provider.zdr", "the provider keeps prompts")
    if ask.deny_data_collection and (endpoint.trains or endpoint.stores):
        what = "trains on prompts" if endpoint.trains else "keeps prompts"
        return Excluded(
            endpoint, "data_policy:training", "provider.data_collection", f"the provider {what}"
        )
    return None


def _by_size(endpoint: Endpoint, ask: Ask) -> Excluded | None:
    prompt, context = ask.prompt_tokens, endpoint.context_length
    if endpoint.max_prompt_tokens and prompt > endpoint.max_prompt_tokens:
        detail = f"the prompt has about {prompt} tokens, at most {endpoint.max_prompt_tokens} fit"
        return Excluded(endpoint, "context_length", "messages", detail)
    if context and prompt > context:
        detail = f"the prompt has about {prompt} tokens, the context {context}"
        return Excluded(endpoint, "context_length", "messages", detail)
    if context and prompt + ask.max_tokens > context:
        detail = f"about {prompt} tokens and max_tokens {ask.max_tokens} exceed {context}"
        return Excluded(endpoint, "context_length", "max_tokens", detail)
    if endpoint.max_completion_tokens and ask.max_tokens > endpoint.max_completion_tokens:
        detail = f"max_tokens {ask.max_tokens} exceeds {endpoint.max_completion_tokens}"
        return Excluded(endpoint, "context_length", "max_tokens", detail)
    return None


def _by_modality(endpoint: Endpoint, ask: Ask) -> Excluded | None:
    missing = ask.input_modalities - endpoint.input_modalities
    if not missing:
        return None
    return Excluded(endpoint, "capability", "messages", f"takes no {', '.join(sorted(missing))}")


def _by_parameters(endpoint: Endpoint, ask: Ask) -> Excluded | None:
    if not ask.require_parameters:
        return None
    missing = sorted(ask.parameters - endpoint.parameters)
    if not missing:
        return None
    detail = f"does not support {', '.join(missing)}"
    return Excluded(endpoint, "require_parameters", missing[0], detail)
