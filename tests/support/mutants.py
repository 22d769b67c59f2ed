"""Builds that forgot something on purpose: what guards behind it must hold alone."""

import runpy
from pathlib import Path
from typing import Any

from tools.soak.sabotage import TENANT_TABLES

MUTANTS = ("no-tenant-filter", "no-row-level-security")
"""What `pytest --mutant` takes away."""
NO_ROW_LEVEL_SECURITY = "; ".join(
    f"alter table {table} no force row level security; alter table {table} disable row level security"
    for table in TENANT_TABLES
)


def forgetful_reads(mutant: Path) -> dict[str, Any]:
    """The statements that such a build reads with, by their names."""
    found = runpy.run_path(str(mutant / "chalicelib/orders/statements.py"))
    return {name: found[name] for name in ("ORDER_BY_ID", "ORDER_BY_KEY", "ORDERS_PAGES")}
