"""Fail when a service needs more than its own group, the library and its own folder.

This repeats what the image does, without Docker: a fresh environment with
requirements/<service>.txt by plain pip, a copy of bourse/, services/__main__.py and the one
folder, and then an import of every module of it. Environments are kept under .cache/services,
named by their lock's content.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "services"
GROUPS = ("edge", "routing", "providers", "billing", "ranking", "cli")

IMPORT_ALL = """
import importlib, pathlib, sys
sys.path.insert(0, ".")
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        parts = path.with_suffix("").parts
        if "migrations" in parts or "alembic" in parts:
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        importlib.import_module(name)
"""


def environment(group: str) -> Path:
    """Return the interpreter of an environment that holds the group's lock and nothing else."""
    lock = ROOT / "requirements" / f"{group}.txt"
    named = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / named  # groups that ask for the same share one
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    if folder.exists():
        shutil.rmtree(folder)  # an installation that was cut off
    venv.create(folder, with_pip=False, symlinks=True)
    # Another interpreter's pip saves installing pip into each environment.
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check",
            "--no-input", "install", "--quiet", "--require-hashes", "--requirement", str(lock),
        ],
        check=True,
    )  # fmt: skip
    (folder / "complete").touch()
    return python


def copy(group: str, target: Path) -> list[str]:
    """Copy what the image copies; return the folders to import."""
    if group == "cli":
        shutil.copytree(ROOT / "bourse_cli", target / "bourse_cli")
        return ["bourse_cli"]
    shutil.copytree(ROOT / "bourse", target / "bourse")
    shutil.copytree(ROOT / "services" / group, target / "services" / group)
    shutil.copy(ROOT / "services" / "__main__.py", target / "services" / "__main__.py")
    return ["bourse", "services"]


def imports(group: str) -> str:
    """Return "" when every module imports, else what went wrong."""
    python = environment(group)
    with tempfile.TemporaryDirectory() as folder:
        folders = copy(group, Path(folder))
        done = subprocess.run(
            [str(python), "-I", "-c", IMPORT_ALL, *folders],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": folder},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    return "" if done.returncode == 0 else done.stdout


def prune() -> None:
    """Remove the environments of locks that are no more."""
    kept = {environment(group).parent.parent for group in GROUPS}
    for folder in set(CACHE.iterdir()) - kept:
        shutil.rmtree(folder)


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    prune()
    bad = 0
    for group in GROUPS:
        if fault := imports(group):
            print(f"{group}: {fault}")
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
