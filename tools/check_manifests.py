"""Render every overlay and validate it strictly against Kubernetes' own schemas.

An empty file passes any validator, so the documents are counted first: fewer than one workload
per service is a failure.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tools import manifests

KUBERNETES = "1.37"
WORKLOADS = {
    "edge", "routing", "providers-registry", "providers-worker", "billing", "ranking",
}  # fmt: skip


def validate(text: str) -> str:
    """Return "" when the manifests are valid, else what is wrong with them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.yaml"
        path.write_text(text)
        command = Path(sys.executable).parent / "kubernetes-validate"
        done = subprocess.run(
            [str(command), "--strict", "--quiet", "-k", KUBERNETES, str(path)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    return done.stdout.strip() or ("" if done.returncode == 0 else f"exit {done.returncode}")


def main() -> int:
    if not manifests.overlays():
        print("there is no overlay")
        return 1
    bad = 0
    for overlay in manifests.overlays():
        found = manifests.documents(overlay)
        kinds = ("Deployment", "StatefulSet")
        workloads = {one["metadata"]["name"] for one in found if one["kind"] in kinds}
        if workloads != WORKLOADS:
            print(f"{overlay}: has {sorted(workloads)}, not {sorted(WORKLOADS)}")
            bad = 1
        if fault := validate(manifests.render(overlay)):
            print(f"{overlay}: {fault}")
            bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
