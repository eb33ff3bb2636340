"""The registry's tables: providers, endpoints, immutable price versions, the audit trail."""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from bourse.database import Int64
from bourse.event_log.tables import tables

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

revision = Table(
    "revision",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("value", Int64, nullable=False),
)
"""One row. Every writing transaction locks and raises it first, so that revisions become visible
in their order and a reader that has seen N can ask for what is above N."""

provider = Table(
    "provider",
    metadata,
    Column("slug", String(64), primary_key=True),
    Column("account", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("privacy_policy_url", Text, nullable=False),
    Column("terms_of_service_url", Text, nullable=False),
    Column("status_page_url", Text, nullable=False),
    Column("headquarters", String(2), nullable=False),
    Column("datacenters", Text, nullable=False),  # country codes, comma-separated
    Column("contact", Text, nullable=False),
    Column("house", Boolean, nullable=False),
    Column("commission_bps", Integer, nullable=False),
    Column("trains", Boolean, nullable=False),
    Column("retention_days", Integer, nullable=False),
    Column("can_publish", Boolean, nullable=False),
    Column("moderated", Boolean, nullable=False),
    Column("requires_user_id", Boolean, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("dialect", String(64), nullable=False),
    Column("models_url", Text, nullable=False),
    Column("preset", String(64), nullable=False),
    Column("first_byte_timeout_ms", Int64, nullable=False),
    Column("credential_kind", String(32), nullable=False),  # empty: none was set
    Column("credential_header", String(128), nullable=False),
    Column("credential_label", String(64), nullable=False),
    Column("sealed_credential", LargeBinary, nullable=False),
    Column("created_at_ms", Int64, nullable=False),
    Index("ix_provider_account", "account"),
)

endpoint = Table(
    "endpoint",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("provider", String(64), ForeignKey("provider.slug"), nullable=False),
    Column("model", String(200), nullable=False),
    Column("tag", String(200), nullable=False),
    Column("state", Integer, nullable=False),  # ListingState, as last published
    Column("upstream_model", Text, nullable=False),
    Column("preset", String(64), nullable=False),
    Column("dialect", String(64), nullable=False),
    Column("base_url", Text, nullable=False),
    Column("facts", LargeBinary, nullable=False),  # Listing: what PutModel was given
    Column("prompt_tokens_per_byte", Float, nullable=False),
    Column("completion_tokens_per_byte", Float, nullable=False),
    Column("created_at_ms", Int64, nullable=False),
    Column("revision", Int64, nullable=False),
    UniqueConstraint("provider", "model", "tag", name="uq_endpoint_provider_model_tag"),
    Index("ix_endpoint_revision", "revision"),
)

price = Table(
    "price",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("endpoint", String(64), ForeignKey("endpoint.id"), nullable=False),
    Column("effective_at_ms", Int64, nullable=False),
    Column("version", LargeBinary, nullable=False),  # PriceVersion without ends_at_ms
    Column("created_at_ms", Int64, nullable=False),
    UniqueConstraint("endpoint", "effective_at_ms", name="uq_price_endpoint_effective_at_ms"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Int64, primary_key=True, autoincrement=True),
    Column("at_ms", Int64, nullable=False),
    Column("account", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("before", Text, nullable=False),  # JSON; never a secret
    Column("after", Text, nullable=False),
    Index("ix_audit_subject", "subject"),
)

consumer_tables = tables(metadata)
