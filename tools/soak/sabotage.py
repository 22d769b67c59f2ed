"""Takes one guard away, so that a soak run can be seen to fail."""

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
    """Removes the tenant from every read of this build: row-level security alone separates tenants.

    Its inserts keep it: without it they would write another tenant's row, or none.
    """
    module = build / "chalicelib" / "orders" / "statements.py"
    forgetful, forgotten = _TENANT_FILTER.subn("true", module.read_text())
    if not forgotten or "tenant_id = " in forgetful:
        raise ValueError(f"{module} does not name the tenant as this function expects")
    module.write_text(forgetful)
    _compile(module)


def _compile(module: Path) -> None:
    """Bytecode of a build is used without a look at its source."""
    py_compile.compile(
        str(module),
        cfile=cache_from_source(str(module)),
        doraise=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
