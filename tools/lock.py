"""Compile every dependency group with hashes into requirements/<group>.txt: `make lock`.

`dev` contains all groups, so it is resolved first and constrains the others: one version of a
package everywhere. Each file opens with a digest of what its group asks for, which lets
`tools/check_locks.py` see drift without a network. UPGRADE=1 takes the newest versions.
"""

import hashlib
import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
GROUPS = ("dev", "test", "all", "cli", "edge", "routing", "providers", "billing", "ranking")
DIGEST = "# asked: "


def requirements(group: str, groups: dict[str, Any]) -> list[str]:
    """Return the requirements of a group, included groups among them, sorted, each once."""
    found: set[str] = set()
    for entry in groups[group]:
        if isinstance(entry, dict):
            found.update(requirements(entry["include-group"], groups))
        else:
            found.add(entry)
    return sorted(found)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def digest(group: str, pyproject: dict[str, Any]) -> str:
    """Name what a group asks for, so that any change of it shows."""
    asked = [
        pyproject["project"]["requires-python"],
        *requirements(group, pyproject["dependency-groups"]),
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def compile_group(group: str, pyproject: dict[str, Any]) -> None:
    target = REQUIREMENTS / f"{group}.txt"
    command = [
        os.environ.get("UV", "uv"), "pip", "compile", "--quiet", "--universal",
        "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate",
        "--python-version", pyproject["project"]["requires-python"].removeprefix(">="),
        "--output-file", str(target), "-",
    ]  # fmt: skip
    if group != "dev":
        command += ["--constraint", str(REQUIREMENTS / "dev.txt")]
    elif os.environ.get("UPGRADE"):
        command += ["--upgrade"]
    asked = "\n".join(requirements(group, pyproject["dependency-groups"]))
    subprocess.run(command, input=asked, text=True, check=True, stdout=subprocess.DEVNULL)
    header = f"# Made by `make lock` from pyproject.toml; never edited.\n{DIGEST}"
    target.write_text(f"{header}{digest(group, pyproject)}\n{target.read_text()}")


def main() -> None:
    REQUIREMENTS.mkdir(exist_ok=True)
    pyproject = project()
    for group in GROUPS:
        compile_group(group, pyproject)
        print(f"requirements/{group}.txt")


if __name__ == "__main__":
    main()
