"""Settings every service shares. Only `main.py` modules read settings.

Each field is an environment variable `BOURSE_<FIELD>`. The defaults run everything in one process
on files below `var`; the URL schemes alone choose another world.
"""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

LOCAL = "local:"
"""The URL of a service in the same process."""


class Settings(BaseSettings):
    """What all services of a process share."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_", extra="ignore")

    var: Path = Path("var")
    event_log_url: str = ""
    """`kafka://host:port,host:port` or `sqlite:///path`; empty: a file in `var`."""
    generations_partitions: int = 24
    replication_factor: int = 1

    routing_url: str = LOCAL
    billing_url: str = LOCAL
    registry_url: str = LOCAL
    ranking_url: str = LOCAL
    worker_urls: str = LOCAL
    """Workers, comma-separated: `grpc://host:port` each, or one `dns:///name:port`."""

    grpc_listen: str = ""
    """Where this process serves gRPC, `host:port`; empty: it does not."""

    trace_sample_ratio: float = 0.01
    otlp_endpoint: str = ""
    """`http://host:port` of an OTLP collector; empty: traces and metrics are not exported."""

    drain_timeout_s: float = 600.0

    def log_url(self) -> str:
        return self.event_log_url or f"sqlite:///{self.var.absolute()}/event_log.sqlite"

    def database_url(self, service: str, given: str) -> str:
        """The URL of a service's database: as given, or a file in `var`."""
        return given or f"sqlite:///{self.var.absolute()}/{service}.sqlite"
