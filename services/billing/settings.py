"""Billing's own settings: environment variables `BOURSE_BILLING_<FIELD>`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bourse.rating import NANO_PER_USD


class ServiceSettings(BaseSettings):
    """Where billing keeps its books, and how it lends."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_BILLING_", extra="ignore")

    database_url: str = ""

    lease_ttl_s: int = Field(30, ge=1)
    lease_grace_s: int = Field(10, ge=0)
    lease_cap_nano: int = Field(50 * NANO_PER_USD, gt=0)
    lease_estimates_min: int = Field(16, ge=1)
    sweep_interval_s: float = Field(5.0, gt=0)
    sweep_wait_s: float = Field(60.0, ge=0)
    """How much older than its end a lease must be, by every worker's report, while the consumer
    has a backlog; with none, a report after the end is enough."""
