"""Edge's tables: who has accounts and keys. No key stands here, only its hash."""

from sqlalchemy import Boolean, Column, ForeignKey, Index, MetaData, String, Table

from bourse.database import Int64
from bourse.event_log import consumer

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

account = Table(
    "account",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_at_ms", Int64, nullable=False),
)

key = Table(
    "key",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("account", String(40), ForeignKey("account.id"), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("name", String(200), nullable=False),
    Column("label", String(40), nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("expires_at_ms", Int64, nullable=False),
    Column("created_at_ms", Int64, nullable=False),
    Column("updated_at_ms", Int64, nullable=False),
    Column("version", Int64, nullable=False),
    Index("ix_key_account", "account", "created_at_ms", "hash"),
)

log = consumer.tables(metadata)
"""Edge consumes nothing into its database; of these it uses the outbox."""
