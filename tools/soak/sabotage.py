"""Removes one guard, to show that a soak run then fails."""

import py_compile
import re
from collections.abc import Mapping
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode

TENANT_TABLES = ("orders", "order_items", "idempotency_keys", "rate_limits")
SABOTAGES: Mapping[str, tuple[str, ...]] = {
    "rls": tuple(f"alter table {table} disable row level security" for table in TENANT_TABLES),
    "idempotency": ("alter table idempotency_keys drop constraint idempotency_keys_pkey",),
    "durability": (
        "alter role orders_app set synchronous_commit = off",
        "alter system set wal_writer_delay = '10s'",
        "select pg_reload_conf()",
    ),
}
"""The SQL that removes each guard; a run then reports crossed, doubled and lost orders, in this order."""
_TENANT_FILTER = re.compile(r"\b(?:\w+\.)?tenant_id = %\(tenant_id\)s")


def without_tenant_filter(build: Path) -> None:
    """Removes the tenant filter from every read of this build: only row-level security separates tenants.

    Inserts keep the tenant: it is a column's value there.
    """
    module = build / "chalicelib" / "orders" / "statements.py"
    text, removed = _TENANT_FILTER.subn("true", module.read_text())
    if not removed or "tenant_id = " in text:
        raise ValueError(f"{module} does not filter by tenant as this function expects")
    module.write_text(text)
    _compile(module)


def _compile(module: Path) -> None:
    """Python uses a build's bytecode without checking its source."""
    py_compile.compile(
        str(module),
        cfile=cache_from_source(str(module)),
        doraise=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
