"""Where the exchange is and with which keys to ask it.

What is given on the command line wins, then the environment (BOURSE_URL, BOURSE_KEY,
BOURSE_MANAGEMENT_KEY), then the file that `make run` writes, then localhost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8080"
API = "/api/v1"
QUICKSTART = "quickstart.env"


@dataclass(frozen=True, slots=True)
class CliSettings:
    """`url` ends before `/api/v1`; an empty key means that none was found."""

    url: str
    key: str
    management_key: str


def read(environment: Mapping[str, str], url: str = "") -> CliSettings:
    """Gather the settings; `url` is what the command line gave, if anything."""
    folder = Path(environment.get("BOURSE_VAR") or "var")
    written = quickstart(folder / QUICKSTART)
    found = url or environment.get("BOURSE_URL") or written.get("OPENAI_BASE_URL") or DEFAULT_URL
    return CliSettings(
        url=found.rstrip("/").removesuffix(API).removesuffix("/v1"),
        key=environment.get("BOURSE_KEY") or written.get("OPENAI_API_KEY", ""),
        management_key=environment.get("BOURSE_MANAGEMENT_KEY")
        or written.get("BOURSE_MANAGEMENT_KEY", ""),
    )


def quickstart(path: Path) -> dict[str, str]:
    """Read `NAME=value` lines, with or without `export` and quotes; no file, no values."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines)
    return {
        name.strip(): value.strip().strip("'\"")
        for name, equals, value in pairs
        if equals and not name.startswith("#")
    }
