"""`bourse models`, `bourse endpoints` and `bourse board`: what anyone may see."""

from typing import Annotated

import typer

from bourse_cli import show
from bourse_cli.client import Client


def models(
    context: typer.Context,
    search: Annotated[str, typer.Argument(help="Only models whose id or name holds this.")] = "",
    json: show.Json = False,
) -> None:
    """List the models on offer, with prices in USD per million tokens."""
    client: Client = context.obj
    answer = client.ask("GET", "/models")
    wanted = search.lower()
    found = [
        model
        for model in answer["data"]
        if wanted in model["id"].lower() or wanted in str(model.get("name", "")).lower()
    ]
    if json:
        return show.as_json({**answer, "data": found})
    rows = (
        (
            model["id"],
            model.get("context_length"),
            show.per_million((model.get("pricing") or {}).get("prompt")),
            show.per_million((model.get("pricing") or {}).get("completion")),
        )
        for model in found
    )
    show.table(("model", "context", "prompt, USD/M", "completion, USD/M"), rows)


def endpoints(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="author/slug")],
    json: show.Json = False,
) -> None:
    """List who serves a model, and at what price."""
    client: Client = context.obj
    answer = client.ask("GET", f"/models/{model}/endpoints")
    if json:
        return show.as_json(answer)
    rows = (
        (
            endpoint.get("provider_name"),
            endpoint.get("tag") or endpoint.get("name"),
            endpoint.get("context_length"),
            show.per_million((endpoint.get("pricing") or {}).get("prompt")),
            show.per_million((endpoint.get("pricing") or {}).get("completion")),
            endpoint.get("status"),
        )
        for endpoint in answer["data"]["endpoints"]
    )
    columns = ("provider", "endpoint", "context", "prompt, USD/M", "completion, USD/M", "status")
    show.table(columns, rows)


def board(
    context: typer.Context,
    days: Annotated[int, typer.Option(help="The window: 1, 7 or 30 days.")] = 1,
    limit: Annotated[int, typer.Option(help="How many rows.", min=1, max=50)] = 20,
    json: show.Json = False,
) -> None:
    """Show the most used models, counted from use."""
    client: Client = context.obj
    answer = client.ask("GET", "/boards/most-used", query={"days": days, "limit": limit})
    if json:
        return show.as_json(answer)
    rows = (
        (
            row.get("rank") or "",
            row.get("model"),
            row.get("total_tokens"),
            row.get("requests"),
            f"{float(row.get('share') or 0):.1%}",
        )
        for row in answer["data"]
    )
    show.table(("rank", "model", "tokens", "requests", "share"), rows)
