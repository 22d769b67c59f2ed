"""Alembic's environment: runs migrations on a connection, or prints them as SQL."""

import time
from typing import Any

from alembic import context

attributes = context.config.attributes
began = time.monotonic()
if "connection" not in attributes and not context.is_offline_mode():
    raise SystemExit("Migrations run with: make migrate OWNER_DATABASE_URL=...")


def report(step: Any, **_: Any) -> None:
    """Runs after each migration."""
    if context.is_offline_mode():
        return
    global began
    seconds, began = time.monotonic() - began, time.monotonic()
    notices: list[str] = attributes["connection"].connection.notices
    for line in (f"Version {int(step.up_revision_id)} in {seconds:.2f} s: {step.up_revision.doc}", *notices):
        attributes["progress"].say(line.strip())
    notices.clear()


options: dict[str, Any] = {"on_version_apply": report}  # which Alembic types more narrowly than it calls it
context.configure(
    connection=attributes.get("connection"),
    dialect_name="postgresql",
    dialect_opts={"paramstyle": "named"},  # else % is printed twice
    version_table="schema_version",
    transaction_per_migration=True,
    **options,
)
with context.begin_transaction():
    context.run_migrations()
