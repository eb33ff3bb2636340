"""What `python -m services` does beside running everything: the first minute.

It creates the topics, an account with two keys and credit, and lists the house's providers: the
sandbox, those whose keys the environment holds, an Ollama on this machine. Keys are shown once, so
they are written to `quickstart.env` in `var`; while that file names a key that still works, a
start keeps everything as it is.
"""

import asyncio
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import httpx
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bourse import migrate
from bourse.database import Database
from bourse.process import Process
from bourse.rating import NANO_PER_USD
from bourse.settings import LOCAL, Settings
from bourse.v1.billing_pb2_grpc import BillingStub
from bourse.v1.registry_pb2_grpc import RegistryStub
from services.edge import accounts, store
from services.edge.settings import ServiceSettings as EdgeSettings
from services.providers import house
from services.providers.http1 import Http1Transport
from services.providers.settings import ServiceSettings as ProvidersSettings

FILE = "quickstart.env"
ACCOUNT_NAME = "quickstart"
SANDBOX_MODEL = "sandbox/echo"
USABLE_TIMEOUT_S = 30.0
_ANY = ("0.0.0.0", "::")


class QuickstartSettings(BaseSettings):
    """Settings of the all-in-one start: environment variables `BOURSE_QUICKSTART_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_QUICKSTART_", extra="ignore")

    credit_usd: Decimal = Field(default=Decimal(10), ge=0)
    """What the first account starts with."""


async def prepare(settings: Settings) -> None:
    """Make what the services expect to find: the folder and the topics."""
    settings.var.mkdir(mode=0o700, parents=True, exist_ok=True)
    await migrate.create_topics(settings)


def starter(process: Process, settings: Settings) -> Callable[[], Awaitable[None]]:
    """What to do once every service runs."""

    async def started() -> None:
        edge = EdgeSettings()
        host = "127.0.0.1" if edge.host in _ANY else edge.host
        url = f"http://{host}:{edge.port}"
        path = settings.var / FILE
        database = process.database(settings.database_url("edge", edge.database_url))
        values = _read(path)
        account = await _account_of(database, values.get("OPENAI_API_KEY", ""))
        created = not account
        if not account:
            made = await accounts.create_account(
                database,
                process.network.connect(LOCAL, BillingStub),
                name=ACCOUNT_NAME,
                credit_nano=int(QuickstartSettings().credit_usd * NANO_PER_USD),
            )
            account = made.account
            values = {
                "OPENAI_API_KEY": made.inference_key,
                "BOURSE_MANAGEMENT_KEY": made.management_key,
            }
        ollama = Http1Transport(ProvidersSettings().guard(settings).resolve)
        registry = process.network.connect(LOCAL, RegistryStub)
        listed = await house.register(registry, account, os.environ, ollama=ollama)
        await ollama.aclose()
        await _usable(url, values["OPENAI_API_KEY"])
        _write(path, {"OPENAI_BASE_URL": f"{url}/api/v1", **values})
        print(_greeting(url, path, values, listed, created=created), flush=True)

    return started


async def _usable(url: str, key: str) -> None:
    """Wait until edge knows the key and the sandbox: both reach it as events."""

    async def itself(host: str, port: int) -> list[tuple[str, int]]:
        return [(host, port)]

    client = Http1Transport(itself)
    headers = {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(USABLE_TIMEOUT_S):
        for path in ("/api/v1/key", f"/api/v1/models/{SANDBOX_MODEL}/endpoints"):
            while True:
                request = httpx.Request("GET", url + path, headers=headers)
                response = await client.handle_async_request(request)
                await response.aread()
                if response.is_success:
                    break
                await asyncio.sleep(0.02)
    await client.aclose()


async def _account_of(database: Database, key: str) -> str:
    """The account of a key that was made before; empty when there is none."""
    if not key:
        return ""
    key_hash = hashlib.sha256(key.encode()).hexdigest()
    async with database.read() as connection:
        return await store.account_of_key(connection, key_hash) or ""


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = [line.removeprefix("export ") for line in path.read_text().splitlines()]
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip("'\"") for name, _, value in pairs}


def _write(path: Path, values: dict[str, str]) -> None:
    """Replace the file in one step, readable by its owner alone."""
    temporary = path.with_suffix(".new")
    temporary.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    temporary.write_text("".join(f"export {name}={value}\n" for name, value in values.items()))
    temporary.replace(path)


def _greeting(
    url: str, path: Path, values: dict[str, str], listed: list[str], *, created: bool
) -> str:
    credit = f", with USD {QuickstartSettings().credit_usd} of credit" if created else ""
    return f"""
Bourse listens at {url}

  inference key    {values["OPENAI_API_KEY"]}
  management key   {values["BOURSE_MANAGEMENT_KEY"]}
  providers        {", ".join(listed)}

One account{credit}. Try it:

  curl -N {url}/api/v1/chat/completions \\
    -H "Authorization: Bearer {values["OPENAI_API_KEY"]}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{SANDBOX_MODEL}", "stream": true,
         "messages": [{{"role": "user", "content": "Say hello to the exchange"}}]}}'

Any OpenAI program uses this exchange after:  . {path}
The API is described at {url}/api/v1/docs
"""
