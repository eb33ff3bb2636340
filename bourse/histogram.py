"""The one latency histogram: fixed logarithmic buckets, 2 % wide, merged by adding counts.

Bucket `b` holds the values in `(1.02 ** (b - 1), 1.02 ** b]`, so 1 ms to 600 s takes about 680
buckets and any value is known to within 1 %. Source: docs/rankings.md.
"""

import math
from collections.abc import Mapping

BASE = 1.02
_SCALE = 1 / math.log(BASE)


def bucket(value: float) -> int:
    """Return the bucket of a value; everything up to 1 is in bucket 0."""
    if value <= 1:
        return 0
    return math.ceil(math.log(value) * _SCALE - 1e-9)


def middle(number: int) -> float:
    """Return the value that stands for a bucket: at most 1 % from any value in it."""
    return 1.0 if number <= 0 else float(BASE ** (number - 0.5))


def percentile(counts: Mapping[int, int], fraction: float) -> float | None:
    """Return the value below or at which `fraction` of the counted values lie; None without any."""
    total = sum(counts.values())
    if total <= 0:
        return None
    wanted = max(1, math.ceil(fraction * total - 1e-9))
    seen = 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= wanted:
            return middle(number)
    return middle(max(counts))
