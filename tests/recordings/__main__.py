"""Decode every recorded generation and print, per kind, how much came out as it was recorded.

    python -m tests.recordings            the recordings beside the repository
    RECORDINGS=DIR python -m …            those of another folder of the same format
    JSON=FILE python -m …                 the counts as JSON too

Exits with 1 if a generation kind is decoded to less than 97 %, with 2 if there is nothing to read.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path

from tests.recordings.decoding import (
    DIALECTS,
    decode,
    differences,
    failed_answer,
    failure_of,
    is_refusal,
    is_success,
)
from tests.recordings.reading import directory, kinds, recordings

ENOUGH = 0.97
COLUMNS = ("total", "decoded", "text", "tool_calls", "finish_reason", "usage")
KINDS = ("openai.chat", "anthropic.messages", "gemini.")
SHOWN_FAILURES = 200


async def measure(kind: str, root: Path) -> tuple[Counter[str], list[str]]:
    """Return the counts of one kind and a line for each exchange that differs."""
    counts: Counter[str] = Counter(dict.fromkeys(COLUMNS, 0))
    failures = []
    for record in recordings(kind, root):
        if kind not in DIALECTS:
            counts["total"] += 200 <= (record.get("status") or 0) < 300
            continue
        if is_refusal(record):
            counts["refusals"] += 1
            counts["refusals typed"] += bool(failure_of(record).error_type)
            continue
        if not is_success(record):
            counts["errors in a 2xx"] += 1
            counts["errors in a 2xx recognised"] += (await decode(record)).failure is not None
            continue
        counts["total"] += 1
        try:
            wrong = differences(record, await decode(record))
        except Exception as error:  # one odd record must not hide what the others show
            wrong = dict.fromkeys(COLUMNS[1:], f"{type(error).__name__}: {error}")
        counts["empty answers recognised"] += failed_answer(record) == "empty" and not wrong
        for column in COLUMNS[1:]:
            counts[column] += column not in wrong
        if wrong:
            name = f"{kind} {record['id']} ({record['provider']})"
            if "decoded" in wrong:
                failures.append(f"{name}: not decoded: {wrong['decoded']}")
            else:
                failures += [f"{name}: {column}: {why}" for column, why in wrong.items()]
    return counts, failures


def main() -> int:
    root = directory()
    found = [kind for kind in kinds(root) if kind.startswith(KINDS)] if root.is_dir() else []
    if not found:
        print(f"No recordings of {', '.join(KINDS)}* in {root}", file=sys.stderr)
        return 2
    measured = {kind: asyncio.run(measure(kind, root)) for kind in found}
    width = max(map(len, found))
    print(f"{'kind':{width}}" + "".join(f"{column.replace('_', ' '):>15}" for column in COLUMNS))
    enough = True
    for kind, (counts, _) in measured.items():
        print(f"{kind:{width}}" + "".join(f"{counts[column]:>15}" for column in COLUMNS))
        if kind in DIALECTS and counts["total"]:
            share = min(counts[column] for column in COLUMNS[1:]) / counts["total"]
            enough = enough and share >= ENOUGH
            print(f"{'':{width}}{share:>14.2%} in every column")
        for name in sorted(set(counts) - set(COLUMNS)):
            print(f"{'':{width}}  {name}: {counts[name]}")
        if kind not in DIALECTS:
            print(f"{'':{width}}  no generation, and no dialect yet: undecoded")
    for _, failures in measured.values():
        for line in failures[:SHOWN_FAILURES]:
            print(line)
    if os.environ.get("JSON"):
        report = {
            kind: {column: counts[column] for column in COLUMNS}
            for kind, (counts, _) in measured.items()
        }
        Path(os.environ["JSON"]).write_text(json.dumps(report, indent=2) + "\n")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
