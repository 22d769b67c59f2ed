"""The owner sees no rows any more: what migration 6 needed is removed."""

from migrations.steps import hide_rows_from_owner, lock

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    lock("idempotency_keys", "orders", "order_items")
    for table in ("idempotency_keys", "orders", "order_items"):
        hide_rows_from_owner(table)
