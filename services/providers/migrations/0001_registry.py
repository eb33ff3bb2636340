"""Providers, endpoints, prices, audit; the outbox and the consumer's place."""

import sqlalchemy as sa
from alembic import op

from bourse.database import Int64

revision = "providers_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    revisions = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("value", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
    )
    op.bulk_insert(revisions, [{"id": 1, "value": 0}])
    op.create_table(
        "provider",
        sa.Column("slug", sa.String(64), nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("privacy_policy_url", sa.Text, nullable=False),
        sa.Column("terms_of_service_url", sa.Text, nullable=False),
        sa.Column("status_page_url", sa.Text, nullable=False),
        sa.Column("headquarters", sa.String(2), nullable=False),
        sa.Column("datacenters", sa.Text, nullable=False),
        sa.Column("contact", sa.Text, nullable=False),
        sa.Column("house", sa.Boolean, nullable=False),
        sa.Column("commission_bps", sa.Integer, nullable=False),
        sa.Column("trains", sa.Boolean, nullable=False),
        sa.Column("retention_days", sa.Integer, nullable=False),
        sa.Column("can_publish", sa.Boolean, nullable=False),
        sa.Column("moderated", sa.Boolean, nullable=False),
        sa.Column("requires_user_id", sa.Boolean, nullable=False),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("dialect", sa.String(64), nullable=False),
        sa.Column("models_url", sa.Text, nullable=False),
        sa.Column("preset", sa.String(64), nullable=False),
        sa.Column("first_byte_timeout_ms", Int64, nullable=False),
        sa.Column("credential_kind", sa.String(32), nullable=False),
        sa.Column("credential_header", sa.String(128), nullable=False),
        sa.Column("credential_label", sa.String(64), nullable=False),
        sa.Column("sealed_credential", sa.LargeBinary, nullable=False),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("slug", name="pk_provider"),
    )
    op.create_index("ix_provider_account", "provider", ["account"])
    op.create_table(
        "endpoint",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("tag", sa.String(200), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("upstream_model", sa.Text, nullable=False),
        sa.Column("preset", sa.String(64), nullable=False),
        sa.Column("dialect", sa.String(64), nullable=False),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("prompt_tokens_per_byte", sa.Float, nullable=False),
        sa.Column("completion_tokens_per_byte", sa.Float, nullable=False),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.Column("revision", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_endpoint"),
        sa.ForeignKeyConstraint(["provider"], ["provider.slug"], name="fk_endpoint_provider"),
        sa.UniqueConstraint("provider", "model", "tag", name="uq_endpoint_provider_model_tag"),
    )
    op.create_index("ix_endpoint_revision", "endpoint", ["revision"])
    op.create_table(
        "price",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("effective_at_ms", Int64, nullable=False),
        sa.Column("version", sa.LargeBinary, nullable=False),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_price"),
        sa.ForeignKeyConstraint(["endpoint"], ["endpoint.id"], name="fk_price_endpoint"),
        sa.UniqueConstraint(
            "endpoint", "effective_at_ms", name="uq_price_endpoint_effective_at_ms"
        ),
    )
    op.create_table(
        "audit",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("at_ms", Int64, nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    _event_log_tables()


def _event_log_tables() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_table(
        "consumer_offset",
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("partition", Int64, nullable=False),
        sa.Column("group_name", sa.String, nullable=False),
        sa.Column("next_offset", Int64, nullable=False),
        sa.Column("epoch", Int64, nullable=False),
        sa.Column("failures", Int64, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "group_name", name="pk_consumer_offset"),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("partition", Int64, nullable=False),
        sa.Column("record_offset", Int64, nullable=False),
        sa.Column("group_name", sa.String, nullable=False),
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("error_class", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letter"),
        sa.UniqueConstraint(
            "topic", "partition", "record_offset", "group_name", name="uq_dead_letter_source"
        ),
    )
