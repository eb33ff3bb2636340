"""Export spans and meters to an OTLP collector."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export as otel
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from bourse.telemetry import spans
from bourse.telemetry.meters import Counter, Gauge, Histogram, Meter, meters

log = logging.getLogger(__name__)

SCOPE = "bourse"
METERS_EVERY_S = 15.0
SPANS_EVERY_S = 2.0
EXPORT_TIMEOUT_S = 3.0
MAX_WAITING_SPANS = 4_096


class Exporter:
    """Two batches under way: spans in a thread of the SDK, meters in one of ours."""

    def __init__(self, endpoint: str, attributes: Mapping[str, str]) -> None:
        resource = Resource.create(dict(attributes))
        insecure = not endpoint.startswith("https://")
        self._traces = TracerProvider(
            sampler=ALWAYS_ON,  # what is not sampled never comes here
            resource=resource,
            shutdown_on_exit=False,
            id_generator=_Ids(),
        )
        self._traces.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S),
                max_queue_size=MAX_WAITING_SPANS,
                schedule_delay_millis=SPANS_EVERY_S * 1000,
                export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
            )
        )
        self.tracer = self._traces.get_tracer(SCOPE)
        self._resource = resource
        self._started_ns = time.time_ns()
        self._metrics = OTLPMetricExporter(endpoint, insecure=insecure, timeout=EXPORT_TIMEOUT_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._export_meters, name="meters", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        self._stop.set()
        self._thread.join(2 * EXPORT_TIMEOUT_S)
        self._metrics.shutdown(EXPORT_TIMEOUT_S * 1000)
        self._traces.shutdown()

    def _export_meters(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(METERS_EVERY_S)
            try:
                data = snapshot(meters(), self._resource, self._started_ns, time.time_ns())
                self._metrics.export(data, EXPORT_TIMEOUT_S * 1000)
            except Exception:
                log.exception("meters could not be exported")


class _Ids(RandomIdGenerator):
    """Gives a root span the trace id that was drawn when its request was sampled."""

    def generate_trace_id(self) -> int:
        return spans.root_trace_id() or super().generate_trace_id()


def snapshot(
    read: Mapping[str, Meter], resource: Resource, started_ns: int, now_ns: int
) -> otel.MetricsData:
    """Return what all meters hold, as sums since `started_ns`."""
    found = [_metric(meter, started_ns, now_ns) for meter in read.values()]
    metrics = [metric for metric in found if metric.data.data_points]
    scope = otel.ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
    return otel.MetricsData([otel.ResourceMetrics(resource, [scope], "")])


def _metric(meter: Meter, started_ns: int, now_ns: int) -> otel.Metric:
    cumulative = otel.AggregationTemporality.CUMULATIVE
    data: otel.Sum | otel.Gauge | otel.Histogram
    if isinstance(meter, Counter):
        # `dict(…)` is one step for other threads; so are the copies of rows below, nearly: a
        # histogram may be one value ahead in one of its numbers, and is right the next time.
        sums = [
            otel.NumberDataPoint(dict(labels), started_ns, now_ns, value)
            for labels, value in dict(meter.values).items()
        ]
        data = otel.Sum(sums, cumulative, is_monotonic=True)
    elif isinstance(meter, Gauge):
        value = _read(meter)
        points = [] if value is None else [otel.NumberDataPoint({}, now_ns, now_ns, value)]
        data = otel.Gauge(points)
    else:
        data = otel.Histogram(_histogram_points(meter, started_ns, now_ns), cumulative)
    return otel.Metric(meter.name, meter.description, meter.unit, data)


def _read(meter: Gauge) -> float | None:
    try:
        return meter.read()
    except Exception:
        log.exception("gauge %s cannot be read", meter.name)
        return None


def _histogram_points(
    meter: Histogram, started_ns: int, now_ns: int
) -> Sequence[otel.HistogramDataPoint]:
    points = []
    for labels, row in dict(meter.rows).items():
        counts = list(row.counts)
        point = otel.HistogramDataPoint(
            attributes=dict(labels),
            start_time_unix_nano=started_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=row.sum,
            bucket_counts=counts,
            explicit_bounds=meter.bounds,
            min=row.least,
            max=row.most,
        )
        points.append(point)
    return points
