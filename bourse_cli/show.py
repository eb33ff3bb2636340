"""Show answers: as tables to people, as JSON to programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON instead.")]

MILLION = 1_000_000
WIDTH = 1_000
"""A line longer than the terminal is wrapped by the terminal, so that a key or a hash can be
copied whole; Rich would cut it in two."""


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows, each on one line; an absent value is a dash."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*(Text("–" if value is None or value == "" else str(value)) for value in row))
    Console(width=WIDTH).print(shown)


def facts(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line."""
    longest = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name:{longest}}  {_plain(value)}")


def per_million(price: Any) -> str | None:
    """Turn USD per token, a decimal string, into USD per million tokens."""
    try:
        return f"{(Decimal(str(price)) * MILLION).normalize():f}"
    except InvalidOperation:
        return None


def usd(value: Any) -> str | None:
    """Show an amount in full: a cost may be a few nano-dollars."""
    try:
        return f"{Decimal(str(value)):f}"
    except InvalidOperation:
        return None


def _plain(value: Any) -> Any:
    if value is None or value == "":
        return "–"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return usd(value)  # never 1e-05
    return str(value).lower() if isinstance(value, bool) else value
