"""Measure Bourse beside the bare upstream: `make bench`, or `python -m benchmarks --quick`.

The gateway (every service of it) runs on one core; upstream and load generator, compiled C
programs, on the other. Everything is on: keys, leases, plans, pricing, spool, event log, billing,
ranking. CPU is user + system time of all gateway processes until the ledger has posted the last
request, divided by the requests. A run whose requests and postings differ is an error.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tests import world as worlds
from tests.world import World

HERE = Path(__file__).resolve().parent
GATEWAY_CPU, LOAD_CPU = "0", "1"
PATH = "/api/v1/chat/completions"
CHUNKS, STREAMS = 100, 100
PACKAGES = (
    "uvicorn",
    "uvloop",
    "httptools",
    "aiohttp",
    "httpx",
    "grpcio",
    "protobuf",
    "orjson",
    "sqlalchemy",
)
PROMPT = "Measure twice and cut once. " * 28


@dataclass
class Case:
    """One load, and what it showed in every round."""

    name: str
    model: str
    streamed: bool
    load: tuple[str, str, str]  # load.c: closed|open|batch, number, seconds or requests
    results: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def body(self) -> bytes:
        call: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": PROMPT},
            ],
            "max_tokens": 200,
            "temperature": 0.2,
        }
        if self.streamed:
            call["stream"] = True
        return json.dumps(call, separators=(",", ":")).encode()


def cases(seconds: str) -> list[Case]:
    return [
        Case("c=1", "bench/plain", False, ("closed", "1", seconds)),
        Case("c=32", "bench/plain", False, ("closed", "32", seconds)),
        Case("100/s", "bench/plain", False, ("open", "100", seconds)),
        Case("streams", "bench/paced", True, ("batch", str(STREAMS), str(STREAMS * 2))),
    ]


@contextmanager
def upstream(build: Path, pace_ms: float) -> Iterator[tuple[int, psutil.Process]]:
    port = worlds.free_port()
    command = [
        "taskset",
        "-c",
        LOAD_CPU,
        str(build / "upstream"),
        str(port),
        str(CHUNKS),
        str(pace_ms),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


def compiled() -> Path:
    """Build the two C programs; they need a C compiler and Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("the benchmark's upstream and load generator need a C compiler (Debian: gcc)")
    build = HERE.parent / "build" / "benchmarks"
    build.mkdir(parents=True, exist_ok=True)
    for name in ("upstream", "load"):
        subprocess.run([compiler, "-O2", "-o", build / name, HERE / f"{name}.c"], check=True)
    return build


def run_load(build: Path, case: Case, port: int, key: str) -> dict[str, float]:
    with tempfile.NamedTemporaryFile() as body:
        body.write(case.body())
        body.flush()
        command = [
            "taskset",
            "-c",
            LOAD_CPU,
            str(build / "load"),
            str(port),
            PATH,
            key,
            body.name,
            *case.load,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        sys.exit(f"{case.name}: the load saw errors: {done.stdout}{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(p.cpu_times().user + p.cpu_times().system for p in processes)


class Gateway:
    """A running Bourse under measurement."""

    def __init__(self, world: World, upstream_port: int) -> None:
        self.world = world
        base_url = f"http://127.0.0.1:{upstream_port}/v1"
        for model in ("bench/plain", "bench/paced"):
            worlds.list_model(world, base_url, slug="bench", model=model, upstream_model=model)
        self.processes = [psutil.Process(p.pid) for p in world.processes.values()]
        self.cost_nano = 0
        self.used_nano = self._used_nano()
        case = Case("one", "bench/plain", False, ("", "", ""))
        with world.client() as client:
            reply = client.post(PATH, content=case.body()).raise_for_status().json()
        self.cost_nano = round(reply["usage"]["cost"] * 1e9)
        self.settle(1)

    def _used_nano(self) -> int:
        with self.world.client(self.world.management_key) as client:
            used_usd: float = client.get("/api/v1/credits").json()["data"]["total_usage"]
            return round(used_usd * 1e9)

    def settle(self, requests: int) -> None:
        """Wait until exactly so many more requests are posted."""
        due = self.used_nano + requests * self.cost_nano

        def posted() -> bool:
            used = self._used_nano()
            if used > due:
                sys.exit(f"posted {used} nano-USD, more than the {due} of {requests} requests")
            return used == due

        worlds.wait_until(f"{requests} requests posted", posted, 120)
        self.used_nano = due

    def measure(self, build: Path, case: Case) -> dict[str, float]:
        before = cpu_seconds(self.processes)
        result = run_load(build, case, self.world.ports["edge"], self.world.key)
        self.settle(int(result["requests"]))
        cpu = cpu_seconds(self.processes) - before
        result["cpu_ms"] = cpu * 1e3 / result["requests"]
        result["rss_mb"] = sum(p.memory_info().rss for p in self.processes) / 1e6
        return result


def measure(build: Path, arguments: argparse.Namespace) -> list[Case]:
    measured = cases(str(arguments.seconds))
    topologies: Mapping[str, Callable[..., World]] = {
        "separate": worlds.separate_processes,
        "one process": worlds.one_process,
    }
    with (
        upstream(build, arguments.pace_ms) as (port, upstream_process),
        tempfile.TemporaryDirectory() as var,
    ):
        running: dict[str, World] = {}
        try:
            for name, start in topologies.items():
                env = {"BOURSE_QUICKSTART_CREDIT_USD": "100000"}
                extra: dict[str, Any] = {"credit_usd": "100000"} if name == "separate" else {}
                running[name] = start(
                    Path(var) / name.replace(" ", "_"), env, cpus=GATEWAY_CPU, **extra
                )
            gateways = {name: Gateway(world, port) for name, world in running.items()}
            for case in measured:  # one uncounted round
                for gateway in gateways.values():
                    warm = Case(case.name, case.model, case.streamed, ("batch", "8", "64"))
                    gateway.measure(build, warm)
            for number in range(arguments.rounds):
                print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
                for case in measured:
                    before = cpu_seconds([upstream_process])
                    direct = run_load(build, case, port, "none")
                    direct["upstream_cpu_s"] = cpu_seconds([upstream_process]) - before
                    case.results.setdefault("direct", []).append(direct)
                    for name, gateway in gateways.items():
                        before = cpu_seconds([upstream_process])
                        result = gateway.measure(build, case)
                        result["upstream_cpu_s"] = cpu_seconds([upstream_process]) - before
                        case.results.setdefault(name, []).append(result)
        finally:
            for world in running.values():
                world.close()
    return measured


def spread(results: list[dict[str, float]], key: str, digits: int) -> str:
    values = [r[key] for r in results]
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def report(measured: list[Case], arguments: argparse.Namespace) -> None:
    sizes = {case.name: len(case.body()) for case in measured}
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    )
    print(
        f"gateway on core {GATEWAY_CPU}, upstream and load on core {LOAD_CPU}; "
        f"event log and databases: SQLite files; request {sizes['c=32']} B; "
        f"medians of {arguments.rounds} rounds (min-max); every request reconciled with a posting"
    )
    print(
        f"\n{'load':<9}{'':<13}{'requests/s':>26}{'CPU-ms/request':>24}{'p50 ms':>22}{'p99 ms':>24}"
    )
    for case in measured[:3]:
        for name, results in case.results.items():
            cpu = spread(results, "cpu_ms", 3) if name != "direct" else ""
            print(
                f"{case.name:<9}{name:<13}{spread(results, 'rps', 0):>26}{cpu:>24}"
                f"{spread(results, 'p50_ms', 2):>22}{spread(results, 'p99_ms', 2):>24}"
            )
    _report_added(measured[2])
    _report_streams(measured[3], arguments.pace_ms)
    print("\nupstream and load generator, share of their core while the gateway was measured:")
    for case in measured:
        for name, results in case.results.items():
            busy = [(r["own_cpu_s"] + r["upstream_cpu_s"]) / r["seconds"] for r in results]
            print(f"  {case.name:<9}{name:<13}{statistics.median(busy):>6.0%}")


def _report_added(case: Case) -> None:
    print("\nadded at 100 requests/s, open loop, against direct in the same round:")
    for name in list(case.results)[1:]:
        for quantile in ("p50_ms", "p99_ms"):
            added = [
                r[quantile] - d[quantile]
                for r, d in zip(case.results[name], case.results["direct"], strict=True)
            ]
            print(
                f"  {name:<13}{quantile[:3]} {statistics.median(added):6.2f} ms "
                f"({min(added):.2f}-{max(added):.2f})"
            )


def _report_streams(case: Case, pace_ms: float) -> None:
    print(f"\n{STREAMS} streams at once, {CHUNKS} chunks each, one every {pace_ms:g} ms:")
    for name, results in case.results.items():
        line = f"  {name:<13}first content p50 {spread(results, 'first_p50_ms', 1)} ms"
        if name != "direct":
            per_chunk = [r["cpu_ms"] * 1e3 / CHUNKS for r in results]
            low, middle, high = min(per_chunk), statistics.median(per_chunk), max(per_chunk)
            line += f", CPU {middle:.1f} µs/chunk ({low:.1f}-{high:.1f})"
            line += f", RSS {spread(results, 'rss_mb', 0)} MB"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pace-ms", type=float, default=5)
    parser.add_argument("--quick", action="store_true", help="one short round, for a look")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 2
    report(measure(compiled(), arguments), arguments)


if __name__ == "__main__":
    main()
