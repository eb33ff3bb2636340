"""Fail when a lock is not what pyproject.toml asks for; needs no network.

Each file's digest must be that of its group now, each requirement of the group must be pinned to
a version it allows, every pin must carry a hash, no two files may pin different versions, and no
file may name where packages are fetched from.
"""

import re
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.lock import DIGEST, GROUPS, REQUIREMENTS, digest, project, requirements

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", re.MULTILINE)
SOURCE = re.compile(r"://|--(?:extra-)?index-url|--find-links| @ ")


def faults(group: str, pinned: dict[str, str]) -> list[str]:
    """Return what is wrong with one group's lock; `pinned` gathers versions over the groups."""
    path = REQUIREMENTS / f"{group}.txt"
    if not path.exists():
        return ["is missing"]
    text = path.read_text()
    found: list[str] = []
    pyproject = project()
    if f"{DIGEST}{digest(group, pyproject)}\n" not in text:
        found.append("was locked for other requirements")
    if SOURCE.search(text):
        found.append("names a place that packages come from")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
    found += [
        f"{block.split()[0]} has no hash"
        for block in blocks
        if PIN.match(block) and "--hash=sha256:" not in block
    ]
    here = {canonicalize_name(name): version for name, version in PIN.findall(text)}
    for name, version in here.items():
        if pinned.setdefault(name, version) != version:
            found.append(f"{name} is {version} here and {pinned[name]} elsewhere")
    for asked in map(Requirement, requirements(group, pyproject["dependency-groups"])):
        locked = here.get(canonicalize_name(asked.name))
        if locked is None or not asked.specifier.contains(Version(locked)):
            found.append(f"asks for {asked}, has {locked}")
    return found


def main() -> int:
    pinned: dict[str, str] = {}
    bad = 0
    for group in GROUPS:
        for fault in faults(group, pinned):
            print(f"requirements/{group}.txt {fault}: run make lock")
            bad = 1
    unknown = {path.stem for path in REQUIREMENTS.glob("*.txt")} - set(GROUPS)
    for name in sorted(unknown):
        print(f"requirements/{name}.txt belongs to no group")
        bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
