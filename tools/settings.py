"""Write docs/settings.md from the settings classes (`make settings`), or --check it.

A field's description is the string below it, which is where its unit and its meaning belong.
"""

import ast
import importlib
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"
SERVICES = ("edge", "routing", "providers", "billing", "ranking")

TOP = """# Settings

Every setting is an environment variable. The defaults run the whole exchange in one process on
files below `var/`; a URL's scheme alone chooses another world. This page is made from the settings
classes by `make settings`, and `make check` fails when it is not current.
"""


def classes(module: str) -> list[type[BaseSettings]]:
    """The settings classes that a module defines, in the order of the file."""
    found = [
        member
        for _, member in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(member, BaseSettings) and member.__module__ == module
    ]
    return sorted(found, key=lambda member: inspect.getsourcelines(member)[1])


def all_classes() -> dict[str, list[type[BaseSettings]]]:
    """Section → its settings classes: what services share, then each service's own."""
    return {
        "Shared by all services": classes("bourse.settings"),
        "The first start of `make run`": classes("services.quickstart"),
        **{name: classes(f"services.{name}.settings") for name in SERVICES},
    }


def variables(settings: type[BaseSettings]) -> dict[str, str]:
    """Environment variable → field, for one settings class."""
    prefix = settings.model_config.get("env_prefix", "")
    names = {}
    for name, field in settings.model_fields.items():
        alias = field.validation_alias
        names[alias if isinstance(alias, str) else f"{prefix}{name}".upper()] = name
    return names


def descriptions(settings: type[BaseSettings]) -> dict[str, str]:
    """Field → the string that follows it in the class body."""
    source = textwrap.dedent(inspect.getsource(settings))
    body: list[Any] = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    found = {}
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = getattr(following, "value", None)
            if isinstance(following, ast.Expr) and isinstance(value, ast.Constant):
                found[statement.target.id] = " ".join(str(value.value).split())
    return found


def shown(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if str(value) else "empty"


def table(settings: type[BaseSettings]) -> str:
    described = descriptions(settings)
    lines = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for variable, name in variables(settings).items():
        field = settings.model_fields[name]
        meaning = (field.description or described.get(name, "")).replace("|", "\\|")
        default = field.get_default(call_default_factory=True, validated_data={})
        lines.append(f"| `{variable}` | {shown(default)} | {meaning} |")
    return "\n".join(lines)


def page() -> str:
    sections = [
        f"## {title}\n\n" + "\n\n".join(map(table, found)) + "\n"
        for title, found in all_classes().items()
        if any(settings.model_fields for settings in found)
    ]
    return "\n".join([TOP, *sections])


def main(check: bool) -> int:
    made = page()
    if check:
        if not PAGE.exists() or PAGE.read_text() != made:
            print("docs/settings.md is not current: run make settings")
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
