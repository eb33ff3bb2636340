"""Settings of routing: it owns no database and reads everything from the event log."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Environment variables `BOURSE_ROUTING_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_ROUTING_", extra="ignore")

    replay_s: float = 1800.0
    """How far back health is replayed at the start; its longest window is 30 minutes."""
