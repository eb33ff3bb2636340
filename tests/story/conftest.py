"""Both worlds, started once for the whole run; stories that kill a part start it again."""

import asyncio
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import kafka
from tests import world as worlds
from tests.kafka import Broker
from tests.otlp import OtlpSink, otlp_sink
from tests.postgres import PostgresServer
from tests.world import World


@pytest.fixture(scope="session")
def one_process_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """`python -m services`: one process on SQLite files."""
    world = worlds.one_process(tmp_path_factory.mktemp("one"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def spans() -> Iterator[OtlpSink]:
    """Where the real world's processes send their traces."""
    with otlp_sink() as sink:
        yield sink


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker for the exchange alone: its topics have fixed names."""
    found = kafka.find()
    if isinstance(found, str):
        kafka.missing(found)
        raise AssertionError
    yield found
    found.stop()


@pytest.fixture(scope="session")
def real_world(
    tmp_path_factory: pytest.TempPathFactory,
    broker: Broker,
    postgres_found: PostgresServer | str,
    spans: OtlpSink,
) -> Iterator[World]:
    """One process per service on Kafka, PostgreSQL and gRPC."""
    if isinstance(postgres_found, str):
        kafka.missing(postgres_found)
    assert isinstance(postgres_found, PostgresServer)
    server, prefix = postgres_found, f"story{secrets.token_hex(4)}"

    def database(name: str) -> str:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, server.create(f"{prefix}_{name}")).result()

    world = worlds.real(
        tmp_path_factory.mktemp("real"),
        broker.url,
        database,
        {"BOURSE_OTLP_ENDPOINT": spans.endpoint, "BOURSE_TRACE_SAMPLE_RATIO": "1"},
    )
    yield world
    world.close()


@pytest.fixture(params=["one process", "Kafka and PostgreSQL"])
def world(request: pytest.FixtureRequest) -> World:
    """The same story in both worlds."""
    name = "one_process_world" if request.param == "one process" else "real_world"
    found: World = request.getfixturevalue(name)
    return found


@pytest.fixture
def var(tmp_path: Path) -> Path:
    return tmp_path / "var"
