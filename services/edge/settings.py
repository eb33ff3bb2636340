"""Settings of edge. Each field is an environment variable `BOURSE_EDGE_<FIELD>`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What an operator may change about edge. Every deadline of the request path stands here."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_EDGE_", extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    database_url: str = ""
    """Accounts and keys: `sqlite:///path` or `postgresql://…`; empty: a file in `BOURSE_VAR`."""
    public_url: str = ""
    """Where clients find this exchange, for links in answers; empty: relative links."""

    body_limit_bytes: int = 32 * 1024 * 1024
    """Longer bodies are 413 before they are parsed."""
    body_deadline_s: float = 60.0
    """How long a client may take to send its body; then 408."""
    header_keep_alive_s: int = 75
    """An idle client connection is closed after this."""

    first_token_deadline_s: float = 120.0
    """From acceptance to the first content, over all attempts."""
    answer_deadline_s: float = 660.0
    """A whole attempt, from its start to its last frame; the worker's own bound lies below."""
    hold_back_s: float = 15.0
    """How long a stream without content keeps its status uncommitted."""
    keep_alive_s: float = 15.0
    """A waiting client gets a comment (or whitespace) this often."""
    write_stall_s: float = 60.0
    """A client that takes nothing for so long has left."""
    attempts_per_model: int = 5

    plan_fresh_ms: int = 100
    """A plan is reused for so long."""
    plan_stale_ms: int = 2_000
    """A plan older than fresh is still used while it is asked for anew, up to this age."""
    plan_deadline_s: float = 2.0
    plans_max: int = 4_096

    lease_deadline_s: float = 2.0
    """One call for credit at billing."""
    refusal_remembered_s: float = 1.0
    """How long a refusal for lack of credit is answered from memory."""
    expected_output_tokens: int = 1_024
    """What a request holds for its output at first, if `max_tokens` is not less."""
    quantum_tokens: int = 256
    """What a running answer gets when its hold is nearly spent."""

    records_deadline_s: float = 5.0
    """Reads and writes at other services that are not the request path."""
    endpoint_removal_s: float = 0.0
    """After being told to stop: serve on for so long, until balancers know (with readiness off)."""
