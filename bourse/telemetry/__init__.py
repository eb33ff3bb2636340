"""Count everything, trace one request in a hundred, and pay little for either.

Counters and histograms are dictionaries of ours, which a thread reads and exports. Traces are
sampled once, at the edge: what carries a traceparent is sampled, an empty string is not, and makes
no object anywhere:

    traceparent = telemetry.sample(parent, ratio)                    # "" : not this one
    with telemetry.span("chat", traceparent, "server") as span:      # costs nothing for ""
        ... span.traceparent ...                                     # for what happens elsewhere

A consumer of events opens its span with the record's own traceparent, so that one trace spans the
request, its attempt and its posting. `start` begins to export over OTLP where an endpoint is set.
"""

from bourse.telemetry.lifecycle import shutdown, start
from bourse.telemetry.meters import (
    DURATION_S,
    Counter,
    Gauge,
    Histogram,
    counter,
    gauge,
    histogram,
)
from bourse.telemetry.spans import Span, current, enter, sample, span

__all__ = [
    "DURATION_S",
    "Counter",
    "Gauge",
    "Histogram",
    "Span",
    "counter",
    "current",
    "enter",
    "gauge",
    "histogram",
    "sample",
    "shutdown",
    "span",
    "start",
]
