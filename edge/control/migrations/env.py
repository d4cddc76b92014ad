"""Called by Alembic: runs the migrations on the engine that the caller gave it, all or none."""

from __future__ import annotations

from alembic import context

with context.config.attributes["engine"].execution_options(immediate=True).connect() as connection:
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()
