"""Attempts seen, hourly rollups, accounts per day; the outbox and the consumer's place."""

import sqlalchemy as sa
from alembic import op

from bourse.database import Int64

revision = "ranking_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attempt",
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("merit", sa.Integer, nullable=False),
        sa.Column("excluded", sa.Text, nullable=False),
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("account_hash", sa.Text, nullable=False),
        sa.Column("prompt_tokens", Int64, nullable=False),
        sa.Column("completion_tokens", Int64, nullable=False),
        sa.Column("cost_nano", Int64, nullable=False),
        sa.PrimaryKeyConstraint("generation", "attempt", name="attempt_pk"),
    )
    op.create_index("attempt_hour", "attempt", ["hour"])
    op.create_table(
        "model_hour",
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("requests", Int64, nullable=False),
        sa.Column("prompt_tokens", Int64, nullable=False),
        sa.Column("completion_tokens", Int64, nullable=False),
        sa.Column("cost_nano", Int64, nullable=False),
        sa.PrimaryKeyConstraint("hour", "model", name="model_hour_pk"),
    )
    op.create_table(
        "account_model_day",
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("account_hash", sa.Text, nullable=False),
        sa.Column("requests", Int64, nullable=False),
        sa.Column("tokens", Int64, nullable=False),
        sa.PrimaryKeyConstraint("day", "model", "account_hash", name="account_model_day_pk"),
    )
    _endpoint_tables()
    _event_log_tables()


def _endpoint_tables() -> None:
    op.create_table(
        "endpoint_hour",
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("completed", Int64, nullable=False),
        sa.Column("client_left", Int64, nullable=False),
        sa.Column("credit_exhausted", Int64, nullable=False),
        sa.Column("hedge_lost", Int64, nullable=False),
        sa.Column("cached", Int64, nullable=False),
        sa.Column("lost", Int64, nullable=False),
        sa.Column("failed", Int64, nullable=False),
        sa.Column("denied", Int64, nullable=False),
        sa.Column("limited", Int64, nullable=False),
        sa.Column("refused", Int64, nullable=False),
        sa.Column("prompt_tokens", Int64, nullable=False),
        sa.Column("completion_tokens", Int64, nullable=False),
        sa.Column("charge_nano", Int64, nullable=False),
        sa.Column("insured_nano", Int64, nullable=False),
        sa.PrimaryKeyConstraint("hour", "endpoint", name="endpoint_hour_pk"),
    )
    op.create_table(
        "endpoint_hour_histogram",
        sa.Column("hour", sa.Integer, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("measure", sa.Text, nullable=False),
        sa.Column("input_bucket", sa.Integer, nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("count", Int64, nullable=False),
        sa.PrimaryKeyConstraint(
            "hour",
            "endpoint",
            "measure",
            "input_bucket",
            "bucket",
            name="endpoint_hour_histogram_pk",
        ),
    )


def _event_log_tables() -> None:
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
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "topic", "partition", "record_offset", "group_name", name="uq_dead_letter_source"
        ),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
