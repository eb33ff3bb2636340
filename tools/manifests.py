"""Render the Kubernetes manifests of an overlay: `kubectl kustomize`, or kustomize alone."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ROOT / "deploy" / "k8s" / "overlays"

KUSTOMIZE = (("kubectl", "kustomize"), ("kustomize", "build"))


def kustomize() -> list[str] | None:
    """The command that renders a folder; None when there is none on this machine."""
    found = (list(command) for command in KUSTOMIZE if shutil.which(command[0]))
    return next(found, None)


def overlays() -> list[str]:
    return sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml"))


@cache
def render(overlay: str) -> str:
    """Return the manifests as one YAML text. Raises CalledProcessError when they do not render."""
    command = kustomize()
    if command is None:
        raise FileNotFoundError("neither kubectl nor kustomize is on the PATH")
    return subprocess.run(
        [*command, str(OVERLAYS / overlay)], check=True, text=True, capture_output=True
    ).stdout


def documents(overlay: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(render(overlay)) if document]
