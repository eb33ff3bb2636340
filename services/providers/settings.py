"""Settings of the registry and the worker: environment variables `BOURSE_PROVIDERS_<FIELD>`."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from bourse.settings import LOCAL, Settings
from services.providers import sealing
from services.providers.egress import LOOPBACK, Guard


class ServiceSettings(BaseSettings):
    """What the two roles of providers can be told. Only the two mains read this."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_PROVIDERS_", extra="ignore")

    database_url: str = ""
    sealing_key_file: Path | None = None
    """32 bytes in base64, one key a line: the first seals, all open. Unset: a file in `var`, made
    on the first start where registry and worker share one process."""
    commission_bps: int = 500
    """Of each charge, from the provider's side, for those who are not the house."""
    increase_notice_s: int = 86_400
    prices_poll_s: float = 5.0
    """How soon after a first price starts its endpoint is listed."""
    registry_poll_s: float = 1.0
    """How soon a worker hears of what another registry process changed."""

    egress_allow: str | None = None
    """Networks that providers may be called in although they are not public, comma-separated.
    Unset: loopback where everything runs in one process (nothing listens for gRPC), else none."""

    spool_directory: Path | None = None
    """Unset: `spool` in `var`."""
    spool_max_bytes: int = 4 << 30
    spool_retention_s: float = 3_600.0
    max_unshipped_usd: float = 1_000.0
    """Above this much unshipped charge new attempts get a 503."""

    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 30.0
    """Until the first byte of the answer, where the endpoint does not say."""
    idle_timeout_s: float = 30.0
    """Without a byte, once the answer has begun."""
    content_timeout_s: float = 120.0
    """Without content, pings or not, once there was some."""
    total_timeout_s: float = 600.0
    keepalive_s: float = 20.0
    """Idle connections are closed before the providers' own timeouts do it."""
    connections_per_endpoint: int = 1_024
    answer_max_bytes: int = 64 << 20

    quantum_tokens: int = 256
    checkpoint_tokens: int = 256
    checkpoint_s: float = 1.0
    confirm_leases_s: float = 10.0

    def guard(self, settings: Settings) -> Guard:
        """The egress guard as the operator wants it."""
        if self.egress_allow is not None:
            return Guard(self.egress_allow)
        return Guard("" if settings.grpc_listen else LOOPBACK)

    def sealer(self, settings: Settings) -> sealing.Sealer:
        """The sealing keys; a new one only where both roles of this process will find it."""
        if self.sealing_key_file is not None:
            return sealing.load(self.sealing_key_file, create=False)
        together = settings.registry_url == LOCAL and not settings.grpc_listen
        return sealing.load(settings.var / "sealing.key", create=together)
