"""Validates what the migration before brought back, and collects the changed columns' statistics."""

from migrations.steps import execute, outside_transaction

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """One transaction for each constraint; none blocks the API."""
    with outside_transaction():
        execute("analyze orders, order_items, idempotency_keys")
        for table, constraint in (
            ("orders", "orders_tenant_named"),
            ("orders", "orders_status_known"),
            ("orders", "orders_currency_code"),
            ("order_items", "order_items_tenant_named"),
            ("order_items", "order_items_order_fkey"),
            ("idempotency_keys", "idempotency_keys_tenant_named"),
        ):
            execute(f"alter table {table} validate constraint {constraint}")
