"""Billing's ledger, leases and records"""

import sqlalchemy as sa
from alembic import op

from bourse.database import Int64

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("attempt", "unserved_attempt", "credit_grant", "ledger_transaction", "entry")


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("granted_nano", Int64, nullable=False),
        sa.Column("used_nano", Int64, nullable=False),
        sa.Column("reserved_nano", Int64, nullable=False),
        sa.Column("credit_epoch", Int64, nullable=False),
        sa.Column("refused", sa.Boolean(), nullable=False),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("opened_at_ms", Int64, nullable=False),
        sa.CheckConstraint("reserved_nano >= 0", name="account_reserved"),
        sa.PrimaryKeyConstraint("id", name="account_pk"),
    )
    op.create_table(
        "attempt",
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.Column("list_nano", Int64, nullable=False),
        sa.Column("charge_nano", Int64, nullable=False),
        sa.Column("insured_nano", Int64, nullable=False),
        sa.Column("posted_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("generation", "attempt", name="attempt_pk"),
    )
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
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "topic", "partition", "record_offset", "group_name", name="uq_dead_letter_source"
        ),
    )
    op.create_table(
        "entry",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("ledger_account", Int64, nullable=False),
        sa.Column("amount_nano", Int64, nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", "line", name="entry_pk"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_account",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("balance_nano", Int64, nullable=False),
        sa.CheckConstraint("currency = 'USD'", name="ledger_account_usd"),
        sa.PrimaryKeyConstraint("id", name="ledger_account_pk"),
        sa.UniqueConstraint("name", name="ledger_account_name"),
    )
    op.create_table(
        "ledger_transaction",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("reverses", sa.Text(), nullable=False),
        sa.Column("occurred_at_ms", Int64, nullable=False),
        sa.Column("posted_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="ledger_transaction_pk"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", Int64, autoincrement=True, nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("created_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "unserved_attempt",
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("named_at_ms", Int64, nullable=False),
        sa.PrimaryKeyConstraint("generation", "attempt", "account", name="unserved_attempt_pk"),
    )
    op.create_table(
        "usage_day",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("charge_nano", Int64, nullable=False),
        sa.Column("attempts", Int64, nullable=False),
        sa.PrimaryKeyConstraint("account", "key_hash", "day", name="usage_day_pk"),
    )
    op.create_table(
        "worker_report",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("reported_at_ms", Int64, nullable=False),
        sa.Column("leases", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker", name="worker_report_pk"),
    )
    op.create_table(
        "credit_grant",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("ledger_account", Int64, nullable=False),
        sa.Column("issued_nano", Int64, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("expires_at_ms", Int64, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("granted_at_ms", Int64, nullable=False),
        sa.CheckConstraint("issued_nano > 0", name="credit_grant_issued"),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="credit_grant_account_fk"),
        sa.ForeignKeyConstraint(
            ["ledger_account"], ["ledger_account.id"], name="credit_grant_ledger_account_fk"
        ),
        sa.PrimaryKeyConstraint("id", name="credit_grant_pk"),
        sa.UniqueConstraint("ledger_account", name="credit_grant_ledger_account"),
    )
    op.create_index("credit_grant_account", "credit_grant", ["account"])

    op.create_table(
        "lease",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("edge", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("amount_nano", Int64, nullable=False),
        sa.Column("spent_nano", Int64, nullable=False),
        sa.Column("excess_nano", Int64, nullable=False),
        sa.Column("returned_nano", Int64, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("granted_at_ms", Int64, nullable=False),
        sa.Column("expires_at_ms", Int64, nullable=False),
        sa.Column("closed_at_ms", Int64, nullable=False),
        sa.Column("closed_attempts", Int64, nullable=False),
        sa.Column("closed_nano", Int64, nullable=False),
        sa.Column("in_doubt", sa.Text(), nullable=False),
        sa.CheckConstraint("spent_nano + returned_nano <= amount_nano", name="lease_conserved"),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name="lease_account_fk"),
        sa.PrimaryKeyConstraint("id", name="lease_pk"),
    )
    op.create_index("lease_state", "lease", ["state", "expires_at_ms"])

    for table in APPEND_ONLY:
        _refuse_changes(table)


def _refuse_changes(table: str) -> None:
    """Add triggers that refuse UPDATE and DELETE, as each database writes them."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("update", "delete"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change} BEFORE {change.upper()} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
    )


def downgrade() -> None:
    op.drop_table("lease")
    op.drop_table("credit_grant")
    op.drop_table("worker_report")
    op.drop_table("usage_day")
    op.drop_table("unserved_attempt")
    op.drop_table("outbox")
    op.drop_table("ledger_transaction")
    op.drop_table("ledger_account")
    op.drop_table("entry")
    op.drop_table("dead_letter")
    op.drop_table("consumer_offset")
    op.drop_table("attempt")
    op.drop_table("account")
    if op.get_bind().dialect.name != "sqlite":
        for table in APPEND_ONLY:
            op.execute(f"DROP FUNCTION {table}_append_only()")
