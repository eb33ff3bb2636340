"""Generate bourse/v1 from proto/ (`make proto`), or with --check fail where they differ."""

import filecmp
import importlib.resources
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("bourse/v1")


def generate(out: Path) -> None:
    """Write the generated modules and their types below `out`."""
    from grpc_tools import protoc

    # The two type plugins are console scripts beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    sources = [str(path.relative_to(ROOT / "proto")) for path in protos]
    includes = [str(ROOT / "proto"), str(importlib.resources.files("grpc_tools") / "_proto")]
    outputs = {"python": "", "grpc_python": "", "mypy": "quiet:", "mypy_grpc": "quiet:"}
    arguments = ["protoc", *(f"-I{path}" for path in includes)]
    arguments += [f"--{kind}_out={option}{out}" for kind, option in outputs.items()]
    if protoc.main([*arguments, *sources]) != 0:
        raise SystemExit("protoc failed")
    for path in (out / GENERATED).glob("*_pb2_grpc.py*"):
        source = ROOT / "proto" / GENERATED / path.name.replace("_pb2_grpc", "").split(".")[0]
        if "\nservice " not in source.with_suffix(".proto").read_text():
            path.unlink()  # a file of messages alone has no stubs


def generated(root: Path) -> set[str]:
    return {path.name for path in (root / GENERATED).glob("*_pb2*")}


def differences(made: Path) -> list[str]:
    names = generated(made) | generated(ROOT)
    _, unequal, missing = filecmp.cmpfiles(
        made / GENERATED, ROOT / GENERATED, sorted(names), shallow=False
    )
    return sorted([*unequal, *missing])


def main(check: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(made)
        stale = differences(made)
        if not check:
            for name in stale:
                (ROOT / GENERATED / name).unlink(missing_ok=True)
                if (made / GENERATED / name).exists():
                    shutil.copy(made / GENERATED / name, ROOT / GENERATED / name)
    for name in stale:
        print(f"{GENERATED / name}: {'differs from proto/: run make proto' if check else 'made'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
