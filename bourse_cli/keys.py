"""`bourse keys`: list, create and delete the account's inference keys."""

from typing import Annotated

import typer

from bourse_cli import show
from bourse_cli.client import Client

app = typer.Typer(help="The account's keys.", no_args_is_help=True)


@app.command("list")
def list_keys(
    context: typer.Context,
    include_disabled: Annotated[bool, typer.Option(help="Show disabled keys too.")] = False,
    json: show.Json = False,
) -> None:
    """List the keys; a key itself is shown only when it is made."""
    client: Client = context.obj
    answer = client.ask(
        "GET",
        "/keys",
        needs="management key",
        query={"include_disabled": "true" if include_disabled else None},
    )
    if json:
        return show.as_json(answer)
    rows = (
        (
            key.get("name"), key.get("label"), show.usd(key.get("usage")),
            "yes" if key.get("disabled") else "no", key.get("expires_at"), key.get("hash"),
        )
        for key in answer["data"]
    )  # fmt: skip
    show.table(("name", "key", "used, USD", "disabled", "expires", "hash"), rows)


@app.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    expires_at: Annotated[str | None, typer.Option(help="A UTC time, ISO 8601.")] = None,
    json: show.Json = False,
) -> None:
    """Create a key and show it, this once."""
    client: Client = context.obj
    body = {"name": name, "expires_at": expires_at}
    answer = client.ask(
        "POST",
        "/keys",
        needs="management key",
        body={field: value for field, value in body.items() if value is not None},
    )
    if json:
        return show.as_json(answer)
    show.facts({"key": answer["key"], "hash": answer["data"]["hash"]})
    typer.echo("Keep it: it is not shown again.", err=True)


@app.command("delete")
def delete_key(
    context: typer.Context,
    hash: Annotated[str, typer.Argument(help="The hash that `bourse keys list` shows.")],
    json: show.Json = False,
) -> None:
    """Delete a key; it stops working within a second."""
    client: Client = context.obj
    answer = client.ask("DELETE", f"/keys/{hash}", needs="management key")
    if json:
        return show.as_json(answer)
    typer.echo("Deleted.")
