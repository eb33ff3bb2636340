"""The tables of ranking's database. README.md says what each is for.

Hours and days are whole numbers since 1970-01-01T00:00Z.
"""

from sqlalchemy import Column, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text

from bourse.database import Int64
from bourse.event_log.tables import tables

metadata = MetaData()

# The inbox and, at once, what is needed to take an attempt's numbers out again when a better
# attempt of its generation comes: (generation, attempt) is what makes an event's id unique.
attempt = Table(
    "attempt",
    metadata,
    Column("generation", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("merit", Integer, nullable=False),
    Column("excluded", Text, nullable=False),  # why it counts on no board; empty: it does
    Column("hour", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("account_hash", Text, nullable=False),  # empty: forgotten
    Column("prompt_tokens", Int64, nullable=False),
    Column("completion_tokens", Int64, nullable=False),
    Column("cost_nano", Int64, nullable=False),
    PrimaryKeyConstraint("generation", "attempt", name="attempt_pk"),
    Index("attempt_hour", "hour"),
)

model_hour = Table(
    "model_hour",
    metadata,
    Column("hour", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("requests", Int64, nullable=False),
    Column("prompt_tokens", Int64, nullable=False),
    Column("completion_tokens", Int64, nullable=False),
    Column("cost_nano", Int64, nullable=False),
    PrimaryKeyConstraint("hour", "model", name="model_hour_pk"),
)

account_model_day = Table(
    "account_model_day",
    metadata,
    Column("day", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("account_hash", Text, nullable=False),
    Column("requests", Int64, nullable=False),
    Column("tokens", Int64, nullable=False),
    PrimaryKeyConstraint("day", "model", "account_hash", name="account_model_day_pk"),
)

OUTCOMES = (
    "completed",
    "client_left",
    "credit_exhausted",
    "hedge_lost",
    "cached",
    "lost",
    "failed",  # 5xx, timeouts, cut, malformed or empty answers
    "denied",  # 401, 402, 404
    "limited",  # 429
    "refused",  # 400, 403, 413, 422
)
"""What became of an attempt; together they are all of its endpoint's attempts."""

endpoint_hour = Table(
    "endpoint_hour",
    metadata,
    Column("hour", Integer, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("provider", Text, nullable=False),
    *(Column(outcome, Int64, nullable=False) for outcome in OUTCOMES),
    Column("prompt_tokens", Int64, nullable=False),
    Column("completion_tokens", Int64, nullable=False),
    Column("charge_nano", Int64, nullable=False),
    Column("insured_nano", Int64, nullable=False),
    PrimaryKeyConstraint("hour", "endpoint", name="endpoint_hour_pk"),
)

endpoint_hour_histogram = Table(
    "endpoint_hour_histogram",
    metadata,
    Column("hour", Integer, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("measure", Text, nullable=False),  # first_token_ms, tokens_per_s
    Column("input_bucket", Integer, nullable=False),  # prompts up to 1K, 10K, 100K, 1M, more
    Column("bucket", Integer, nullable=False),  # of bourse/histogram.py
    Column("count", Int64, nullable=False),
    PrimaryKeyConstraint(
        "hour", "endpoint", "measure", "input_bucket", "bucket", name="endpoint_hour_histogram_pk"
    ),
)

consumer_tables = tables(metadata)
