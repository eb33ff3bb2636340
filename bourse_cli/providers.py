"""`bourse providers`: list oneself as a provider, step by step."""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bourse_cli import show
from bourse_cli.client import Client, CliError

app = typer.Typer(help="Who the account provides, and what they serve.", no_args_is_help=True)

Slug = Annotated[str, typer.Argument(help="The provider's slug.")]
NEEDS: Any = "management key"


def _sent(client: Client, method: str, path: str, body: dict[str, Any], json: bool) -> None:
    given = {name: value for name, value in body.items() if value not in (None, "", [])}
    answer = client.ask(method, f"/providers{path}", needs=NEEDS, body=given)
    if json:
        return show.as_json(answer)
    show.facts(answer.get("data", answer))


@app.command("list")
def list_providers(context: typer.Context, json: show.Json = False) -> None:
    """List the providers that serve a model on this exchange."""
    client: Client = context.obj
    answer = client.ask("GET", "/providers")
    if json:
        return show.as_json(answer)
    rows = ((one.get("slug"), one.get("name"), one.get("headquarters")) for one in answer["data"])
    show.table(("slug", "name", "headquarters"), rows)


@app.command("show")
def show_provider(context: typer.Context, slug: Slug, json: show.Json = False) -> None:
    """Show a provider of one's own."""
    client: Client = context.obj
    answer = client.ask("GET", f"/providers/{slug}", needs=NEEDS)
    if json:
        return show.as_json(answer)
    show.facts(answer["data"])


@app.command("create")
def create_provider(
    context: typer.Context,
    slug: Slug,
    name: Annotated[str, typer.Option(help="The name that people see.")],
    headquarters: Annotated[str, typer.Option(help="ISO country code.")] = "",
    datacenter: Annotated[list[str] | None, typer.Option(help="ISO country code; repeat.")] = None,
    privacy_policy_url: Annotated[str, typer.Option()] = "",
    terms_of_service_url: Annotated[str, typer.Option()] = "",
    status_page_url: Annotated[str, typer.Option()] = "",
    contact: Annotated[str, typer.Option(help="An address for people, not shown.")] = "",
    json: show.Json = False,
) -> None:
    """Create a provider, owned by this account."""
    body = {
        "slug": slug, "name": name, "headquarters": headquarters, "datacenters": datacenter,
        "privacy_policy_url": privacy_policy_url, "terms_of_service_url": terms_of_service_url,
        "status_page_url": status_page_url, "contact": contact,
    }  # fmt: skip
    _sent(context.obj, "POST", "", body, json)


@app.command("connection")
def set_connection(
    context: typer.Context,
    slug: Slug,
    base_url: Annotated[str, typer.Option(help="What the paths of the dialect are joined to.")],
    dialect: Annotated[str, typer.Option(help="openai_chat, anthropic_messages or gemini.")],
    preset: Annotated[str, typer.Option(help="A known provider's quirks.")] = "",
    models_url: Annotated[str, typer.Option(help="Where the model document is.")] = "",
    json: show.Json = False,
) -> None:
    """Say where the provider's models are and which dialect they speak."""
    body = {"base_url": base_url, "dialect": dialect, "preset": preset, "models_url": models_url}
    _sent(context.obj, "PUT", f"/{slug}/connection", body, json)


@app.command("credential")
def set_credential(
    context: typer.Context,
    slug: Slug,
    kind: Annotated[str, typer.Option(help="bearer, header or none.")] = "bearer",
    header: Annotated[str, typer.Option(help="The header's name, for kind header.")] = "",
    env: Annotated[str, typer.Option(help="The environment variable that holds the secret.")] = "",
    json: show.Json = False,
) -> None:
    """Give the credential that requests carry. Read from standard input or --env, never argv."""
    secret = "" if kind == "none" else _secret(env)
    body = {"kind": kind, "header": header, "secret": secret}
    _sent(context.obj, "PUT", f"/{slug}/credential", body, json)


@app.command("model")
def put_model(
    context: typer.Context,
    slug: Slug,
    model: Annotated[str, typer.Argument(help="What clients ask for: author/slug.")],
    upstream: Annotated[str, typer.Option(help="The provider's own name of it.")] = "",
    name: Annotated[str, typer.Option(help="The name that people see.")] = "",
    context_length: Annotated[int | None, typer.Option()] = None,
    max_output_length: Annotated[int | None, typer.Option()] = None,
    prompt: Annotated[str, typer.Option(help="USD per token.")] = "",
    completion: Annotated[str, typer.Option(help="USD per token.")] = "",
    document: Annotated[Path | None, typer.Option(help="A JSON file with the whole body.")] = None,
    json: show.Json = False,
) -> None:
    """Put one model on offer; an endpoint is listed once it has a credential and a price."""
    pricing = {"prompt": prompt, "completion": completion}
    body = {
        "name": name or model, "upstream_model_id": upstream or model,
        "context_length": context_length, "max_output_length": max_output_length,
        "pricing": {key: value for key, value in pricing.items() if value} or None,
        **(_document(document) if document else {}),
    }  # fmt: skip
    _sent(context.obj, "PUT", f"/{slug}/models/{model}", body, json)


@app.command("price")
def add_price(
    context: typer.Context,
    slug: Slug,
    endpoint: Annotated[str, typer.Argument(help="The endpoint's id.")],
    prompt: Annotated[str, typer.Option(help="USD per token.")],
    completion: Annotated[str, typer.Option(help="USD per token.")],
    cache_read: Annotated[str, typer.Option(help="USD per token.")] = "",
    cache_write: Annotated[str, typer.Option(help="USD per token.")] = "",
    effective_at: Annotated[str, typer.Option(help="A UTC time, ISO 8601; now if absent.")] = "",
    confirm: Annotated[bool, typer.Option(help="Yes, I mean a change by more than ten.")] = False,
    json: show.Json = False,
) -> None:
    """Add a dated price. An increase starts a day later at the earliest; the past never changes."""
    pricing = {
        "prompt": prompt, "completion": completion, "input_cache_read": cache_read,
        "input_cache_write": cache_write,
    }  # fmt: skip
    body = {
        "pricing": {key: value for key, value in pricing.items() if value},
        "effective_at": effective_at,
        "confirm": confirm or None,
    }
    _sent(context.obj, "POST", f"/{slug}/endpoints/{endpoint}/prices", body, json)


@app.command("endpoints")
def list_endpoints(context: typer.Context, slug: Slug, json: show.Json = False) -> None:
    """List the provider's endpoints and the state of each."""
    client: Client = context.obj
    answer = client.ask("GET", f"/providers/{slug}/endpoints", needs=NEEDS)
    if json:
        return show.as_json(answer)
    rows = (
        (
            one.get("id"),
            one.get("model"),
            one.get("state"),
            show.per_million((one.get("pricing") or {}).get("prompt")),
            show.per_million((one.get("pricing") or {}).get("completion")),
        )
        for one in answer["data"]
    )
    show.table(("endpoint", "model", "state", "prompt, USD/M", "completion, USD/M"), rows)


def _secret(env: str) -> str:
    if env:
        secret = os.environ.get(env, "")
    elif sys.stdin.isatty():
        secret = typer.prompt("Secret", hide_input=True)
    else:
        secret = sys.stdin.read()
    if not secret.strip():
        raise CliError(f"{env or 'standard input'} holds no secret")
    return str(secret).strip()


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json_module.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CliError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise CliError(f"{path}: not a JSON object")
    return found
