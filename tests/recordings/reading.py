"""Find and read recorded exchanges: gzip files of one JSON object per line, one file per kind."""

import base64
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]


def directory() -> Path:
    """Return where recordings lie: `RECORDINGS`, else below `BOURSE_SHARED`, else beside the
    repository. The directory may not exist."""
    named = os.environ.get("RECORDINGS")
    if named:
        return Path(named)
    shared = os.environ.get("BOURSE_SHARED")
    return (Path(shared) if shared else _ROOT.parent / "shared") / "recordings"


def kinds(root: Path) -> list[str]:
    """Return the kinds that were recorded, by file name."""
    return sorted(path.name.removesuffix(".jsonl.gz") for path in root.glob("*.jsonl.gz"))


def recordings(kind: str, root: Path) -> Iterator[Record]:
    """Yield the exchanges of one kind in file order."""
    with gzip.open(root / f"{kind}.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def raw(record: Record) -> bytes:
    """Return the body as bytes."""
    if record.get("body_b64"):
        return base64.b64decode(record["body_b64"])
    if record.get("body_text") is not None:
        return str(record["body_text"]).encode()
    return json.dumps(record["body"]).encode() if record.get("body") is not None else b""


def wire(record: Record) -> list[bytes]:
    """Return the reads a client saw: the real cuts where they fit the body, else one read."""
    body = raw(record)
    cuts = record.get("chunk_lens") or []
    if sum(cuts) != len(body):
        return [body]
    reads, at = [], 0
    for length in cuts:
        reads.append(body[at : at + length])
        at += length
    return reads
