"""Runs the steps on the connection, and in the transaction, that `tocsin.store.migrate` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from tocsin.store.access import close_to_the_public
from tocsin.store.migrate import VERSION_TABLE
from tocsin.store.schema import SCHEMA, metadata

connection = context.config.attributes["connection"]
is_postgres = connection.dialect.name == "postgresql"

if is_postgres:  # before Alembic makes its own table in it
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))

context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=SCHEMA if is_postgres else None,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
    if is_postgres:  # whatever a step has made
        close_to_the_public(connection)
