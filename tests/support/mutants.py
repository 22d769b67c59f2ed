"""Builds that forgot something on purpose: what guards behind it must hold alone."""

import py_compile
import re
import runpy
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

MUTANTS = ("no-tenant-filter", "no-row-level-security")
"""What `pytest --mutant` takes away."""
NO_ROW_LEVEL_SECURITY = "; ".join(
    f"alter table {table} no force row level security; alter table {table} disable row level security"
    for table in ("orders", "order_items", "idempotency_keys", "rate_limits")
)
_TENANT_FILTER = re.compile(r"\b(?:\w+\.)?tenant_id = %\(tenant_id\)s")


def without_tenant_filter(build: Path) -> None:
    """No read of this build names the tenant any more: row-level security alone tells tenants apart.

    Its inserts go on to name it: they would write somebody else's row, or none.
    """
    module = build / "chalicelib" / "orders" / "statements.py"
    forgetful, forgotten = _TENANT_FILTER.subn("true", module.read_text())
    if not forgotten or "tenant_id = " in forgetful:
        raise ValueError(f"{module} does not name the tenant in the way that was to be forgotten")
    module.write_text(forgetful)
    _compile(module)


def forgetful_reads(mutant: Path) -> dict[str, Any]:
    """The statements that such a build reads with, by their names."""
    found = runpy.run_path(str(mutant / "chalicelib/orders/statements.py"))
    return {name: found[name] for name in ("ORDER_BY_ID", "ORDER_BY_KEY", "ORDERS_PAGES")}


def _compile(module: Path) -> None:
    """Bytecode of a build is used without a look at its source."""
    py_compile.compile(
        str(module),
        cfile=cache_from_source(str(module)),
        doraise=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
