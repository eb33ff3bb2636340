"""The tables of billing's database. README.md says what each is for.

Those in `APPEND_ONLY` are: the migration adds triggers that refuse UPDATE and DELETE. Everything
else is a projection or a loan.
"""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

from bourse.database import Int64
from bourse.event_log.tables import tables

metadata = MetaData()

account = Table(
    "account",
    metadata,
    Column("id", Text, nullable=False),
    Column("granted_nano", Int64, nullable=False),  # all credit ever given
    Column("used_nano", Int64, nullable=False),  # all charges ever posted, less reversals
    Column("reserved_nano", Int64, nullable=False),  # on loan to edges: the leases' live sum
    Column("credit_epoch", Int64, nullable=False),  # grows with every credit
    Column("refused", Boolean, nullable=False),  # an edge was told "insufficient" at this epoch
    Column("frozen", Boolean, nullable=False),
    Column("opened_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("id", name="account_pk"),
    CheckConstraint("reserved_nano >= 0", name="account_reserved"),
)

ledger_account = Table(
    "ledger_account",
    metadata,
    Column("id", Int64, nullable=False, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),  # asset, customer, provider, revenue, expense
    Column("owner", Text, nullable=False),  # account or provider; empty: the operator's own
    Column("currency", Text, nullable=False),
    Column("balance_nano", Int64, nullable=False),  # projection: the sum of its entries
    PrimaryKeyConstraint("id", name="ledger_account_pk"),
    UniqueConstraint("name", name="ledger_account_name"),
    CheckConstraint("currency = 'USD'", name="ledger_account_usd"),
)

credit_grant = Table(
    "credit_grant",
    metadata,
    Column("id", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("kind", Text, nullable=False),  # paid, promo
    Column("ledger_account", Int64, nullable=False),
    Column("issued_nano", Int64, nullable=False),
    Column("priority", Integer, nullable=False),  # lower is drawn first
    Column("expires_at_ms", Int64, nullable=False),  # 0: never
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("granted_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("id", name="credit_grant_pk"),
    UniqueConstraint("ledger_account", name="credit_grant_ledger_account"),
    ForeignKeyConstraint(["account"], ["account.id"], name="credit_grant_account_fk"),
    ForeignKeyConstraint(
        ["ledger_account"], ["ledger_account.id"], name="credit_grant_ledger_account_fk"
    ),
    CheckConstraint("issued_nano > 0", name="credit_grant_issued"),
    Index("credit_grant_account", "account"),
)

# The dedupe row IS the attempt row: event id "{generation}:attempt:{attempt}", for ever.
attempt = Table(
    "attempt",
    metadata,
    Column("generation", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("account", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),  # SHA-256 of `event`
    Column("event", LargeBinary, nullable=False),  # the AttemptFinished as it came
    Column("list_nano", Int64, nullable=False),
    Column("charge_nano", Int64, nullable=False),
    Column("insured_nano", Int64, nullable=False),
    Column("posted_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("generation", "attempt", name="attempt_pk"),
)

# Attempts that their edge saw no end of: were they charged, the platform pays instead.
unserved_attempt = Table(
    "unserved_attempt",
    metadata,
    Column("generation", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("account", Text, nullable=False),
    Column("named_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("generation", "attempt", "account", name="unserved_attempt_pk"),
)

ledger_transaction = Table(
    "ledger_transaction",
    metadata,
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),  # settle, insure, reverse, grant, cover
    Column("account", Text, nullable=False),  # the customer it is about
    Column("reverses", Text, nullable=False),  # the transaction it unwinds; empty: none
    Column("occurred_at_ms", Int64, nullable=False),
    Column("posted_at_ms", Int64, nullable=False),
    PrimaryKeyConstraint("id", name="ledger_transaction_pk"),
)

entry = Table(
    "entry",
    metadata,
    Column("transaction_id", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("ledger_account", Int64, nullable=False),
    Column("amount_nano", Int64, nullable=False),  # credit positive, debit negative
    PrimaryKeyConstraint("transaction_id", "line", name="entry_pk"),
    sqlite_with_rowid=False,  # half the writes; other databases ignore it
)

lease = Table(
    "lease",
    metadata,
    Column("id", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("edge", Text, nullable=False),
    Column("state", Text, nullable=False),  # open, closed, reclaimed
    Column("amount_nano", Int64, nullable=False),
    Column("spent_nano", Int64, nullable=False),  # posted under it, within its amount
    Column("excess_nano", Int64, nullable=False),  # posted under it beyond what it still lent
    Column("returned_nano", Int64, nullable=False),
    Column("attempts", Integer, nullable=False),  # charged attempts posted under it
    Column("granted_at_ms", Int64, nullable=False),
    Column("expires_at_ms", Int64, nullable=False),  # by billing's clock, grace included
    Column("closed_at_ms", Int64, nullable=False),  # 0: not closed by its edge
    Column("closed_attempts", Int64, nullable=False),
    Column("closed_nano", Int64, nullable=False),
    Column("in_doubt", Text, nullable=False),  # event ids, one a line
    PrimaryKeyConstraint("id", name="lease_pk"),
    ForeignKeyConstraint(["account"], ["account.id"], name="lease_account_fk"),
    CheckConstraint("spent_nano + returned_nano <= amount_nano", name="lease_conserved"),
    Index("lease_state", "state", "expires_at_ms"),
)

worker_report = Table(
    "worker_report",
    metadata,
    Column("worker", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("reported_at_ms", Int64, nullable=False),
    Column("leases", Text, nullable=False),  # ids, one a line
    PrimaryKeyConstraint("worker", name="worker_report_pk"),
)

usage_day = Table(
    "usage_day",
    metadata,
    Column("account", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("day", Integer, nullable=False),  # days since 1970-01-01, UTC
    Column("charge_nano", Int64, nullable=False),
    Column("attempts", Int64, nullable=False),
    PrimaryKeyConstraint("account", "key_hash", "day", name="usage_day_pk"),
)

consumer_tables = tables(metadata)

APPEND_ONLY = (attempt, unserved_attempt, credit_grant, ledger_transaction, entry)
