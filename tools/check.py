"""Run the static checks by name: `make check`, or `make check ARGS="types imports"` for some.

Every check runs even when one before it failed; the exit status is non-zero when any did.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTHON = sys.executable

WORKERS = 2
TIMEOUT_S = 600

CHECKS: dict[str, tuple[str, list[str]]] = {
    "services": (
        "each service imports with only its own group installed",
        [PYTHON, "-m", "tools.check_services"],
    ),
    "types": ("types are strict", [str(BIN / "mypy"), "--no-error-summary"]),
    "format": ("code is formatted", [str(BIN / "ruff"), "format", "--check", "."]),
    "lint": (
        "lint finds nothing",
        [str(BIN / "ruff"), "check", "--quiet", "--output-format=concise", "."],
    ),
    "imports": ("import contracts are kept", [str(BIN / "lint-imports"), "--no-logo"]),
    "proto": ("generated code is that of proto/", [PYTHON, "-m", "tools.proto", "--check"]),
    "lock": ("requirements/ holds what pyproject.toml asks", [PYTHON, "-m", "tools.check_locks"]),
    "migrations": (
        "migrations lead to the tables, on both databases",
        [PYTHON, "-m", "tools.check_migrations"],
    ),
    "manifests": ("Kubernetes manifests are valid", [PYTHON, "-m", "tools.check_manifests"]),
    "compose": (
        "the compose file is valid",
        [
            str(BIN / "check-jsonschema"),
            "--builtin-schema",
            "vendor.compose-spec",
            "deploy/compose.yaml",
        ],
    ),
    "dockerfile": (
        "hadolint finds nothing in the Dockerfile",
        [str(BIN / "hadolint"), "deploy/Dockerfile"],
    ),
    "settings": ("docs/settings.md is current", [PYTHON, "-m", "tools.settings", "--check"]),
}
"""Name → what it promises, and the command that fails when it does not hold; slowest first."""


def run(name: str) -> bool:
    promise, command = CHECKS[name]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        good, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired:
        good, output = False, f"took longer than {TIMEOUT_S} s"
    taken_s = time.monotonic() - started
    print(f"{'ok  ' if good else 'FAIL'} {name:<11} {promise} ({taken_s:.0f} s)", flush=True)
    if not good or output.startswith("note:"):
        print("     " + output.strip().replace("\n", "\n     "), flush=True)
    return good


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        print(f"unknown check {unknown[0]!r}; there are {', '.join(CHECKS)}")
        return 2
    with ThreadPoolExecutor(WORKERS) as pool:
        results = dict(zip(names or CHECKS, pool.map(run, names or CHECKS), strict=True))
    failed = [name for name, good in results.items() if not good]
    print(f"failed: {', '.join(failed)}" if failed else f"{len(results)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
