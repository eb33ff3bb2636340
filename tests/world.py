"""Bourse as real processes, for story tests and benchmarks.

Three worlds, the same services and the same HTTP in front of each:
- `one_process`: `python -m services`, SQLite files;
- `separate_processes`: one process per service on one box, gRPC, SQLite files, one log file;
- `real`: one process per service, gRPC, Apache Kafka, PostgreSQL.
"""

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
ROUTES = {
    "billing": "BOURSE_BILLING_URL",
    "ranking": "BOURSE_RANKING_URL",
    "providers.registry": "BOURSE_REGISTRY_URL",
    "routing": "BOURSE_ROUTING_URL",
    "providers.worker": "BOURSE_WORKER_URLS",
}
START_TIMEOUT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, check: Callable[[], Any], timeout_s: float = START_TIMEOUT_S) -> Any:
    """Return the first true value of `check`; fail naming `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = check()
        except (httpx.HTTPError, OSError) as error:
            value, last = None, error
        else:
            last = value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s} s; last: {last!r}")
        time.sleep(0.02)


class World:
    """Running services. `env` is what every process gets; `only` what one of them gets beside."""

    def __init__(self, var: Path, env: Mapping[str, str] | None = None) -> None:
        self.var = var
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.key = self.management_key = ""
        self._cpus: str | None = None
        var.mkdir(parents=True, exist_ok=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BOURSE_")},
            "BOURSE_VAR": str(var),
            "BOURSE_PROVIDERS_EGRESS_ALLOW": "127.0.0.0/8",
            **(env or {}),
        }
        for vendor_key in [name for name in self.env if name.endswith("_API_KEY")]:
            del self.env[vendor_key]  # a story never calls a vendor

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['edge']}"

    def client(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            timeout=30,
            headers={"Authorization": f"Bearer {self.key if key is None else key}"},
        )

    def start(self, name: str, only: Mapping[str, str] | None = None, *, argv: str = "") -> None:
        """Start process `name`, which runs the services `argv` (else `name`); keep its output."""
        log = (self.var / f"{name}.log").open("ab")
        command = [sys.executable, "-m", "services", *(argv or name).split()]
        if name == "all":
            command = command[:3]
        if self._cpus:
            command = ["taskset", "-c", self._cpus, *command]
        self.processes[name] = subprocess.Popen(
            command, cwd=ROOT, env={**self.env, **(only or {})}, stdout=log, stderr=log
        )
        log.close()

    def output(self, name: str) -> str:
        return (self.var / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal; wait for the end unless it only stops or continues the process."""
        process = self.processes[name]
        process.send_signal(number)
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            process.wait(timeout=60)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ready(self, name: str = "edge") -> None:
        def check() -> bool:
            for other, process in self.processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"{other} ended: {self.output(other)[-3000:]}")
            return httpx.get(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=5).is_success

        wait_until(f"{name} ready", check)


def one_process(var: Path, env: Mapping[str, str] | None = None, cpus: str | None = None) -> World:
    world = World(var, env)
    world._cpus = cpus
    world.ports["edge"] = free_port()
    world.env["BOURSE_EDGE_PORT"] = str(world.ports["edge"])
    world.start("all")
    world.ready()
    wait_until("quickstart file", lambda: _alive(world) and (var / "quickstart.env").exists())
    values = dict(
        line.removeprefix("export ").split("=", 1)
        for line in (var / "quickstart.env").read_text().splitlines()
        if "=" in line
    )
    world.key = values["OPENAI_API_KEY"].strip("'\"")
    world.management_key = values["BOURSE_MANAGEMENT_KEY"].strip("'\"")
    return world


def _alive(world: World) -> bool:
    for name, process in world.processes.items():
        if process.poll() is not None:
            raise AssertionError(f"{name} ended: {world.output(name)[-3000:]}")
    return True


def separate_processes(
    var: Path,
    env: Mapping[str, str] | None = None,
    *,
    cpus: str | None = None,
    credit_usd: str = "100",
) -> World:
    """One process per service; `env` decides where databases and the event log are."""
    world = World(var, env)
    world._cpus = cpus
    for name, variable in ROUTES.items():
        world.ports[name] = free_port()
        world.env[variable] = f"grpc://127.0.0.1:{world.ports[name]}"
    world.ports["edge"] = free_port()
    world.env["BOURSE_EDGE_PORT"] = str(world.ports["edge"])
    sealing_key = var / "sealing.key"
    sealing_key.write_bytes(base64.b64encode(secrets.token_bytes(32)))
    sealing_key.chmod(0o600)
    world.env["BOURSE_PROVIDERS_SEALING_KEY_FILE"] = str(sealing_key)
    _run(world, "bourse.migrate")
    for name in ROUTES:
        start_service(world, name)
    start_service(world, "edge")
    world.ready()
    created = json.loads(
        _run(
            world,
            "services.edge",
            "create-account",
            "--name",
            "story",
            "--credit-usd",
            credit_usd,
            "--json",
        )
    )
    world.key, world.management_key = created["inference_key"], created["management_key"]
    wait_until("key known", lambda: world.client().get("/api/v1/key").is_success)
    return world


def start_service(world: World, name: str, only: Mapping[str, str] | None = None) -> None:
    """Start (again) one service of a world of separate processes."""
    listen = {} if name == "edge" else {"BOURSE_GRPC_LISTEN": f"127.0.0.1:{world.ports[name]}"}
    world.start(name, {**listen, **(only or {})})


def second_edge(world: World) -> str:
    """Start another edge of the same exchange; return its URL."""
    world.ports["edge2"] = free_port()
    world.start("edge2", {"BOURSE_EDGE_PORT": str(world.ports["edge2"])}, argv="edge")
    world.ready("edge2")
    return f"http://127.0.0.1:{world.ports['edge2']}"


def real(
    var: Path, kafka_url: str, database: Callable[[str], str], env: Mapping[str, str] | None = None
) -> World:
    """`database(name)` makes an empty PostgreSQL database and returns its URL."""
    urls = {
        f"BOURSE_{service.upper()}_DATABASE_URL": database(service)
        for service in ("edge", "providers", "billing", "ranking")
    }
    return separate_processes(
        var,
        {
            "BOURSE_EVENT_LOG_URL": kafka_url,
            "BOURSE_GENERATIONS_PARTITIONS": "4",
            **urls,
            **(env or {}),
        },
    )


def _run(world: World, module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=world.env,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{module}: {done.stdout}\n{done.stderr}"
    return done.stdout


def list_model(
    world: World,
    base_url: str,
    *,
    slug: str,
    model: str,
    dialect: str = "openai_chat",
    prompt_usd_per_million: str = "1",
    completion_usd_per_million: str = "4",
    upstream_model: str = "",
    **facts: Any,
) -> str:
    """Onboard a provider with one model through the registration API; return the endpoint's id."""
    with world.client(world.management_key) as client:

        def send(method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            reply = client.request(method, path, json=body)
            assert reply.is_success, (path, reply.status_code, reply.text)
            answer: dict[str, Any] = reply.json()
            return answer

        at = "/api/v1/providers"
        if client.get(f"{at}/{slug}").status_code == 404:
            send("POST", at, {"slug": slug, "name": slug.title(), "headquarters": "NL"})
            send("PUT", f"{at}/{slug}/policies", {"trains": False, "retention_days": 0})
            send("PUT", f"{at}/{slug}/connection", {"base_url": base_url, "dialect": dialect})
            send("PUT", f"{at}/{slug}/credential", {"kind": "bearer", "secret": f"upstream-{slug}"})
        body = {
            "name": model,
            "context_length": 128_000,
            "max_completion_tokens": 16_384,
            "upstream_model_id": upstream_model or model.split("/")[-1],
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "supported_parameters": [
                "tools",
                "tool_choice",
                "parallel_tool_calls",
                "response_format",
                "structured_outputs",
                "temperature",
                "max_tokens",
                "stop",
                "seed",
                "top_p",
                "reasoning",
            ],
            **facts,
        }
        listed = send("PUT", f"{at}/{slug}/models/{model}", body)
        endpoint: str = (listed.get("data") or listed)["id"]
        million = 1_000_000
        send(
            "POST",
            f"{at}/{slug}/endpoints/{endpoint}/prices",
            {
                "pricing": {
                    "prompt": f"{float(prompt_usd_per_million) / million:.12f}",
                    "completion": f"{float(completion_usd_per_million) / million:.12f}",
                }
            },
        )

    def listed_now() -> bool:
        reply = world.client().get(f"/api/v1/models/{model}/endpoints")
        return reply.is_success and any(
            slug in one["tag"] for one in reply.json()["data"]["endpoints"]
        )

    wait_until(f"{model} at {slug} listed", listed_now, 10)
    return endpoint
