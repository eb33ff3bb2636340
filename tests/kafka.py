"""A real Apache Kafka for tests: the first that can be had.

`KAFKA_BOOTSTRAP` names one that runs. Else Java 17 and Maven (or jars that are already in
`.kafka/libs`) start one here. Else a reachable Docker engine starts the one of the compose file.
Else the tests are skipped, with the reason, and fail where `BOURSE_REQUIRE_REAL=1`.
"""

import asyncio
import base64
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bourse.event_log import LogUnavailable, Topic
from bourse.event_log.kafka import KafkaLog

ROOT = Path(__file__).resolve().parent.parent
LIBS = ROOT / ".kafka" / "libs"
POM = ROOT / "deploy" / "kafka" / "pom.xml"
COMPOSE = ROOT / "deploy" / "compose.yaml"
START_TIMEOUT_S = 90.0
JAVA_MIN = 17

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=1048577
log.cleaner.backoff.ms=200
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
"""

LOG4J = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT"><PatternLayout pattern="%d %p %c{1} %m%n"/></Console>
  </Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class Broker:
    """A Kafka. One that was started here (`owned`) can be killed and started again."""

    owned = False

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    def name(self, prefix: str = "t") -> str:
        """A name for a topic or a group that nobody has used."""
        return f"{prefix}-{secrets.token_hex(6)}"

    def stop(self) -> None:
        """Leave it as it is: it is not ours."""


class LocalBroker(Broker):
    """A single KRaft node from the jars, in a directory that outlives `kill`."""

    owned = True

    def __init__(self) -> None:
        port, controller_port = free_ports(2)
        super().__init__(f"127.0.0.1:{port}")
        self._directory = Path(tempfile.mkdtemp(prefix="bourse-kafka-"))
        data = self._directory / "data"
        data.mkdir()
        (self._directory / "server.properties").write_text(
            PROPERTIES.format(port=port, controller_port=controller_port, data=data)
        )
        (self._directory / "log4j2.xml").write_text(LOG4J)
        # What `kafka-storage format` would write, without starting a JVM for it.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        (data / "meta.properties").write_text(
            f"version=1\ncluster.id={cluster.replace('-', 'A')}\nnode.id=1\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until a client gets its metadata."""
        output = (self._directory / "output.txt").open("ab")
        self._process = subprocess.Popen(
            [
                "java", "-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData", "-cp", f"{LIBS}/*",
                f"-Dlog4j2.configurationFile={self._directory}/log4j2.xml",
                "kafka.Kafka", str(self._directory / "server.properties"),
            ],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        output.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.bootstrap):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka did not start:\n{self.output()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9: nothing is flushed, nothing is said."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.kill()  # what it holds is thrown away
        shutil.rmtree(self._directory, ignore_errors=True)

    def output(self) -> str:
        return (self._directory / "output.txt").read_text(errors="replace")[-4000:]


class ComposeBroker(Broker):
    """The broker of the compose file."""

    owned = False

    def __init__(self) -> None:
        super().__init__("127.0.0.1:9092")

    def start(self) -> None:
        subprocess.run(
            ["docker", "compose", "-f", str(COMPOSE), "up", "-d", "--wait", "kafka"],
            check=True, timeout=300,
        )  # fmt: skip

    def stop(self) -> None:
        subprocess.run(
            ["docker", "compose", "-f", str(COMPOSE), "rm", "-sf", "kafka"],
            check=False, timeout=60,
        )  # fmt: skip


def answers(bootstrap: str) -> bool:
    """True when a client can get the cluster's metadata and create a topic."""
    host, _, port = bootstrap.partition(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), 0.5).close()
    except OSError:
        return False

    async def probe() -> bool:
        event_log = KafkaLog(bootstrap)
        try:
            async with asyncio.timeout(10):
                await event_log.create_topics([Topic("probe")])
        except (LogUnavailable, TimeoutError):
            return False
        return True

    with ThreadPoolExecutor(1) as executor:  # also where an event loop runs already
        return executor.submit(asyncio.run, probe()).result()


def find() -> Broker | str:
    """The broker that can be had here, started; or why there is none."""
    bootstrap = os.environ.get("KAFKA_BOOTSTRAP", "")
    if bootstrap:
        return Broker(bootstrap)
    reasons = []
    java = _java_version()
    if java < JAVA_MIN:
        reasons.append(f"no Java {JAVA_MIN} or later")
    elif reason := _fetch_jars():
        reasons.append(reason)
    else:
        broker = LocalBroker()
        try:
            broker.start()
        except BaseException:
            broker.stop()
            raise
        return broker
    if _docker():
        compose = ComposeBroker()
        compose.start()
        return compose
    reasons.append("no Docker engine")
    return "no Kafka: KAFKA_BOOTSTRAP is not set, " + ", ".join(reasons)


def _java_version() -> int:
    if shutil.which("java") is None:
        return 0
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found.group(1)) if found else 0


def _fetch_jars() -> str:
    """Fill `.kafka/libs` unless it is filled; return why not, or nothing."""
    done = LIBS / ".complete"
    if done.exists():
        return ""
    if shutil.which("mvn") is None:
        return "" if any(LIBS.glob("kafka-server-*.jar")) else "no Maven to fetch Kafka's jars with"
    ran = subprocess.run(
        ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies",
         "-DincludeScope=runtime", f"-DoutputDirectory={LIBS}"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if ran.returncode:
        return f"Maven could not fetch Kafka's jars: {(ran.stdout + ran.stderr)[-500:]}"
    done.touch()
    return ""


def _docker() -> bool:
    if shutil.which("docker") is None:
        return False
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            if subprocess.run(command, capture_output=True, timeout=20).returncode:
                return False
        except (OSError, subprocess.TimeoutExpired):
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held at once, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def missing(reason: str) -> None:
    """Skip what needs a real server, or fail where it must be there."""
    if os.environ.get("BOURSE_REQUIRE_REAL") == "1":
        pytest.fail(f"BOURSE_REQUIRE_REAL is set, but there is {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka_found() -> Iterator[Broker | str]:
    found = find()
    yield found
    if isinstance(found, Broker):
        found.stop()


@pytest.fixture
def kafka(kafka_found: Broker | str) -> Broker:
    """One broker for the whole run; take a new topic and group from `kafka.name()` per test."""
    if isinstance(kafka_found, str):
        missing(kafka_found)
        raise AssertionError
    return kafka_found


@pytest.fixture
def own_kafka(kafka: Broker) -> Iterator[LocalBroker]:
    """A broker of the test's own, to kill and start again."""
    if not isinstance(kafka, LocalBroker):
        missing("no Kafka that a test may kill: the one in use was not started here")
    broker = LocalBroker()
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
