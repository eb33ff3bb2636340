"""The `bourse` command: wires its parts."""

import os
import sys
from decimal import Decimal
from typing import Annotated

import typer

from bourse_cli import catalogue, chat, keys, providers, settings, show
from bourse_cli.client import Client, CliError

app = typer.Typer(
    help="An open exchange for model inference, from the terminal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys")
app.add_typer(providers.app, name="providers")
app.command("models")(catalogue.models)
app.command("endpoints")(catalogue.endpoints)
app.command("board")(catalogue.board)
app.command("chat")(chat.chat)
app.command("generation")(chat.generation)


@app.callback()
def connect(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(help="The exchange; else BOURSE_URL, or what `make run` wrote.")
    ] = "",
) -> None:
    client = Client(settings.read(os.environ, url))
    context.obj = client
    context.call_on_close(client.close)


@app.command("credits")
def credits_left(context: typer.Context, json: show.Json = False) -> None:
    """Show what the account was given, has used and has left, in USD."""
    client: Client = context.obj
    answer = client.ask("GET", "/credits", needs="management key")
    if json:
        return show.as_json(answer)
    given = Decimal(str(answer["data"]["total_credits"]))
    used = Decimal(str(answer["data"]["total_usage"]))
    show.facts({"given": show.usd(given), "used": show.usd(used), "left": show.usd(given - used)})


def main() -> None:
    """Run the command; a refusal is one line on standard error and exit status 1."""
    try:
        app()
    except CliError as error:
        if "--json" in sys.argv:
            show.as_json({"error": error.as_json()})
        else:
            typer.secho(str(error), fg="red", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
