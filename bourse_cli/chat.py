"""`bourse chat` and `bourse generation`: ask a model, and look at what it cost."""

import sys
from typing import Annotated, Any

import typer

from bourse_cli import show
from bourse_cli.client import ANSWER_TIMEOUT_S, Client

DEFAULT_MODEL = "sandbox/echo"
PATH = "/chat/completions"


def chat(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to say; without it, standard input.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="author/slug")] = DEFAULT_MODEL,
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer.")] = None,
    stream: Annotated[bool, typer.Option(help="Print the answer as it comes.")] = True,
    json: show.Json = False,
) -> None:
    """Ask a model. The answer goes to standard output, its cost to standard error."""
    client: Client = context.obj
    said = prompt or (sys.stdin.read() if not sys.stdin.isatty() else typer.prompt("You"))
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": said})
    body: dict[str, Any] = {"model": model, "messages": messages}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if json or not stream:
        answer = client.ask("POST", PATH, needs="key", body=body, timeout_s=ANSWER_TIMEOUT_S)
        if json:
            return show.as_json(answer)
        typer.echo(answer["choices"][0]["message"].get("content") or "")
        return _closing(answer)
    last: dict[str, Any] = {}
    for chunk in client.stream(PATH, {**body, "stream": True}):
        for choice in chunk.get("choices") or ():
            typer.echo((choice.get("delta") or {}).get("content") or "", nl=False)
        sys.stdout.flush()
        last = {**last, **{name: value for name, value in chunk.items() if value}}
    typer.echo()
    _closing(last)


def generation(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="The id of an answer.")],
    json: show.Json = False,
) -> None:
    """Show what became of a request: attempts, usage, cost and its lines."""
    client: Client = context.obj
    answer = client.ask("GET", "/generation", needs="key", query={"id": id})
    if json:
        return show.as_json(answer)
    data = answer["data"]
    simple = {
        name: value
        for name, value in data.items()
        if value is not None and not isinstance(value, dict | list)
    }
    show.facts(simple)
    for name in ("provider_responses", "cost_lines"):
        rows = data.get(name) or []
        if rows:
            typer.echo(f"\n{name}")
            columns = list(dict.fromkeys(column for row in rows for column in row))
            show.table(columns, ([row.get(column) for column in columns] for row in rows))


def _closing(answer: dict[str, Any]) -> None:
    usage = answer.get("usage") or {}
    cost = show.usd(usage.get("cost"))
    told = [
        str(answer.get("provider") or ""),
        f"{usage.get('prompt_tokens', 0)} + {usage.get('completion_tokens', 0)} tokens",
        f"{cost} USD" if cost else "",
        str(answer.get("id") or ""),
    ]
    typer.echo(" · ".join(part for part in told if part), err=True)
