"""Indexes in byte order, beside those in the order of the database's locale.

The next migration replaces the old ones. These are built from the rows, not from the old indexes, while the
API reads and writes. A key that exists twice, because a changed locale hid it from the old index, fails here.
"""

from migrations.steps import build_index, outside_transaction

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Repeatable: an index left over from a run that failed is dropped first."""
    with outside_transaction():
        build_index("orders_pkey_c", "unique", 'orders (tenant_id collate "C", order_id)')
        build_index(
            "orders_created_by_idx_c", "", 'orders (tenant_id collate "C", created_by collate "C", order_id)'
        )
        build_index("order_items_pkey_c", "unique", 'order_items (tenant_id collate "C", order_id, line_no)')
        build_index(
            "idempotency_keys_pkey_c",
            "unique",
            'idempotency_keys (tenant_id collate "C", created_by collate "C", idempotency_key collate "C")',
        )
