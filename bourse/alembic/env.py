"""Alembic's entry, shared by all services; `bourse/migrate.py` says for which."""

from alembic import context
from sqlalchemy import Connection

from bourse import migrate

config = context.config
target = migrate.metadata(config.attributes["service"])


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=target,
        render_as_batch=True,
        compare_type=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


run(config.attributes["connection"])
