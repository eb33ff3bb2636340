"""What is counted and traced arrives at a collector; what is not sampled costs no object."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

from bourse import telemetry
from bourse.multiplex import Attempt, GenerationServicer, WorkerPool
from bourse.rpc import Context, Network
from bourse.settings import Settings
from bourse.telemetry.meters import MAX_SERIES, Counter, Histogram
from bourse.v1 import routing_pb2, routing_pb2_grpc
from bourse.v1.events_pb2 import Envelope
from bourse.v1.generation_pb2 import AttemptFacts, Finished
from bourse.v1.generation_pb2_grpc import GenerationStub
from tests.eventually import eventually
from tests.otlp import OtlpSink, otlp_sink

CALLER = "00-0123456789abcdef0123456789abcdef-00f067aa0ba902b7-00"


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    with otlp_sink() as sink:
        settings = Settings(otlp_endpoint=sink.endpoint)
        telemetry.start(["edge", "billing"], "host-1", settings)
        yield sink
        telemetry.shutdown()


def test_nothing_is_sampled_while_nothing_is_exported() -> None:
    telemetry.start(["edge"], "host-1", Settings(otlp_endpoint=""))
    assert telemetry.sample(CALLER, 1.0) == ""


@pytest.mark.usefixtures("sink")
def test_the_ratio_decides_not_the_caller() -> None:
    sampled_caller = CALLER[:-2] + "01"
    assert telemetry.sample(sampled_caller, 0.0) == ""
    assert telemetry.sample(CALLER, 1.0) == sampled_caller
    drawn = [bool(telemetry.sample(None, 0.5)) for _ in range(1_000)]
    assert 300 < sum(drawn) < 700


@pytest.mark.usefixtures("sink")
@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        "ff-0123456789abcdef0123456789abcdef-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-0123456789abcdef0123456789abcdef-0000000000000000-01",
        "00-0123456789ABCDEF0123456789ABCDEF-00f067aa0ba902b7-01",
    ],
)
def test_a_caller_with_a_broken_traceparent_gets_a_trace_of_its_own(parent: str) -> None:
    one, other = telemetry.sample(parent, 1.0), telemetry.sample(parent, 1.0)
    assert one != other
    assert "0123456789abcdef" not in one.lower()


def test_unsampled_spans_are_one_object_that_does_nothing(sink: OtlpSink) -> None:
    with telemetry.span("a", "", attributes={"x": 1}) as one:
        one.set("y", 2)
        one.fail("z")
        assert one.traceparent == telemetry.current() == ""
        with telemetry.span("b", one.traceparent) as other:
            assert other is one
    telemetry.shutdown()
    assert sink.spans == []


def test_a_trace_of_our_own_has_a_root_and_its_children(sink: OtlpSink) -> None:
    traceparent = telemetry.sample(None, 1.0)
    with telemetry.span("request", traceparent, "server", {"bourse.account": "a"}) as request:
        assert telemetry.current() == request.traceparent
        with telemetry.span("attempt", request.traceparent, "client") as attempt:
            attempt.set("gen_ai.request.model", "m")
        assert telemetry.current() == request.traceparent
    assert telemetry.current() == ""
    telemetry.shutdown()
    root, child = sink.span("request"), sink.span("attempt")
    assert root.parent_id == ""
    assert root.trace_id == child.trace_id == traceparent.split("-")[1]
    assert child.parent_id == root.span_id
    assert (root.kind, child.kind) == ("server", "client")
    assert (root.attributes, child.attributes) == (
        {"bourse.account": "a"},
        {"gen_ai.request.model": "m"},
    )
    assert root.resource["service.name"] == "edge+billing"
    assert root.resource["service.instance.id"] == "host-1"
    assert not root.failed


def test_a_callers_trace_is_continued(sink: OtlpSink) -> None:
    with telemetry.span("request", telemetry.sample(CALLER, 1.0), "server"):
        pass
    telemetry.shutdown()
    root = sink.span("request")
    assert (root.trace_id, root.parent_id) == (CALLER.split("-")[1], CALLER.split("-")[2])


def test_a_failure_is_marked_and_goes_on(sink: OtlpSink) -> None:
    with pytest.raises(KeyError), telemetry.span("request", telemetry.sample(None, 1.0)):
        raise KeyError("account-secret")
    with telemetry.span("refused", telemetry.sample(None, 1.0)) as span:
        span.fail("rate_limit_exceeded")
    telemetry.shutdown()
    assert sink.span("request").failed
    assert sink.span("request").attributes == {"error.type": "KeyError"}
    assert sink.span("refused").attributes == {"error.type": "rate_limit_exceeded"}


def test_a_consumers_span_is_a_child_of_the_record_and_links_to_its_batch(sink: OtlpSink) -> None:
    batch, record = telemetry.sample(None, 1.0), telemetry.sample(CALLER, 1.0)
    with telemetry.span("poll", batch, "consumer") as polled:
        links = [polled.traceparent, ""]
        with telemetry.span("process", record, "consumer", links=links):
            pass
    telemetry.shutdown()
    poll, process = sink.span("poll"), sink.span("process")
    assert process.trace_id == CALLER.split("-")[1]
    assert process.links == [(poll.trace_id, poll.span_id)]


async def test_one_trace_spans_edge_worker_and_consumer(sink: OtlpSink) -> None:
    envelopes: list[Envelope] = []

    async def handle(attempt: Attempt) -> None:
        with telemetry.span("attempt", attempt.facts.traceparent, "client") as span:
            envelopes.append(Envelope(traceparent=span.traceparent))
            attempt.finish(Finished())

    class RoutingApi:
        async def Plan(self, request: Any, context: Context) -> routing_pb2.PlanResponse:
            with telemetry.span("plan", context.traceparent, "server"):
                return routing_pb2.PlanResponse()

    server, client = Network(), Network()
    server.serve(GenerationStub, GenerationServicer(handle))
    server.serve(routing_pb2_grpc.RoutingStub, RoutingApi())
    url = f"grpc://127.0.0.1:{await server.listen('127.0.0.1:0')}"
    workers = WorkerPool(client, url)
    await workers.start()
    await eventually(lambda: workers.usable)
    routing = client.connect(url, routing_pb2_grpc.RoutingStub)

    with telemetry.span("request", telemetry.sample(None, 1.0), "server") as request:
        await routing.Plan(routing_pb2.PlanRequest())
        facts = AttemptFacts(traceparent=request.traceparent)
        async for _ in workers.choose().open(facts, b"", 10_000):
            pass
    with telemetry.span("post", envelopes[0].traceparent, "consumer"):
        pass
    await workers.close()
    await server.close()
    await client.close()
    await asyncio.to_thread(telemetry.shutdown)

    root = sink.span("request")
    assert {span.trace_id for span in sink.spans} == {root.trace_id}
    parents = {span.name: span.parent_id for span in sink.spans}
    assert parents == {
        "request": "",
        "plan": root.span_id,
        "attempt": root.span_id,
        "post": sink.span("attempt").span_id,
    }


def test_a_process_that_does_not_export_passes_the_trace_on() -> None:
    with telemetry.span("between", CALLER) as span:
        assert span.traceparent == telemetry.current() == CALLER
    assert telemetry.current() == ""


def test_meters_arrive_with_their_labels_bounds_and_resource(sink: OtlpSink) -> None:
    requests = telemetry.counter("test.requests", "{request}", "Requests by status.")
    seconds = telemetry.histogram("test.duration", "s", "How long.")
    telemetry.gauge("test.depth", "{record}", "How many wait.", lambda: 7)
    telemetry.gauge("test.nothing", "{record}", "Not known now.", lambda: None)
    telemetry.gauge("test.broken", "{record}", "Fails.", lambda: 1 / 0)
    requests.add(2, status="200")
    requests.add(status="200")
    requests.add(1, status="500")
    for value in (0.001, 0.01, 0.011, 100.0):
        seconds.record(value, route="chat")
    telemetry.shutdown()

    assert sink.value("test.requests", status="200") == 3
    assert sink.value("test.requests", status="500") == 1
    assert sink.value("test.depth") == 7
    assert "test.nothing" not in sink.metrics
    counted = sink.metrics["test.requests"]
    assert (counted.unit, counted.description) == ("{request}", "Requests by status.")
    assert counted.sum.is_monotonic
    assert counted.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = sink.metrics["test.duration"].histogram.data_points
    assert list(point.explicit_bounds) == [0.01 * 2**n for n in range(14)]
    assert list(point.bucket_counts) == [2, 1, *[0] * 12, 1]
    assert point.count == 4
    assert point.sum == pytest.approx(100.022)
    assert (point.min, point.max) == (0.001, 100.0)
    assert sink.metrics_resource["service.instance.id"] == "host-1"


def test_the_same_name_is_the_same_meter_and_never_another_kind() -> None:
    assert telemetry.counter("test.same", "1", "") is telemetry.counter("test.same", "1", "")
    with pytest.raises(TypeError, match="another kind"):
        telemetry.histogram("test.same", "1", "")
    with pytest.raises(TypeError, match="another kind"):
        telemetry.gauge("test.same", "1", "", lambda: 1)


def test_label_sets_are_bounded_and_nothing_is_lost() -> None:
    counter = Counter("c", "1", "")
    histogram = Histogram("h", "1", "", [1.0])
    for number in range(MAX_SERIES + 50):
        counter.add(1, label=str(number))
        histogram.record(1.0, label=str(number))
    assert len(counter.values) == len(histogram.rows) == MAX_SERIES + 1
    assert sum(counter.values.values()) == MAX_SERIES + 50
    assert sum(row.counts[0] for row in histogram.rows.values()) == MAX_SERIES + 50


def test_a_collector_that_is_away_delays_the_end_by_seconds_only() -> None:
    telemetry.start(["edge"], "host-1", Settings(otlp_endpoint="http://127.0.0.1:1"))
    with telemetry.span("request", telemetry.sample(None, 1.0)):
        pass
    telemetry.shutdown()
