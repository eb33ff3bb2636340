"""Settings of ranking. The defaults suit one's own machine; a public exchange raises them."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Environment variables `BOURSE_RANKING_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="BOURSE_RANKING_", extra="ignore")

    database_url: str = ""
    """`sqlite:///path` or `postgresql://user@host/name`; empty: a file in `var`."""

    account_key: str = ""
    """The secret under which accounts are hashed, the same for every replica, at least 16
    characters; empty: a file in `var`, made at the first start."""

    account_days: int = Field(default=60, ge=31)
    """How many days rows that tell accounts apart are kept."""

    min_accounts: int = Field(default=1, ge=1)
    """A row is published when at least so many accounts are in it; a public exchange: 20."""

    max_account_share: float = Field(default=1.0, gt=0, le=1)
    """... and none of them has more than this share of it; a public exchange: 0.5."""

    running_windows: bool = True
    """Show windows that end with the running day, labelled partial; a public exchange: false."""

    board_cache_s: float = Field(default=1.0, ge=0)
    """How long a board that was read is shown again."""
