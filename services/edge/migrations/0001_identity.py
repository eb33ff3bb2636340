"""Accounts, keys, and the outbox that tells of them."""

import sqlalchemy as sa
from alembic import op

from bourse.database import Int64

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_account"),
    )
    op.create_table(
        "key",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("account", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("label", sa.String(40), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("expires_at_ms", Int64, nullable=False),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.Column("updated_at_ms", Int64, nullable=False),
        sa.Column("version", Int64, nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="fk_key_account"),
        sa.PrimaryKeyConstraint("hash", name="pk_key"),
    )
    op.create_index("ix_key_account", "key", ["account", "created_at_ms", "hash"])
    op.create_table(
        "consumer_offset",
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("partition", Int64, nullable=False),
        sa.Column("group_name", sa.String(), nullable=False),
        sa.Column("next_offset", Int64, nullable=False),
        sa.Column("epoch", Int64, nullable=False),
        sa.Column("failures", Int64, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "group_name", name="pk_consumer_offset"),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("partition", Int64, nullable=False),
        sa.Column("record_offset", Int64, nullable=False),
        sa.Column("group_name", sa.String(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column("error_class", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letter"),
        sa.UniqueConstraint(
            "topic", "partition", "record_offset", "group_name", name="uq_dead_letter_source"
        ),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )


def downgrade() -> None:
    for table in ("outbox", "dead_letter", "consumer_offset", "key", "account"):
        op.drop_table(table)
