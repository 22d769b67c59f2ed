"""Mutants: builds with one guard removed, where the remaining guards must hold alone."""

import runpy
from pathlib import Path
from typing import Any

from tools.soak.sabotage import TENANT_TABLES

MUTANTS = ("no-tenant-filter", "no-row-level-security")
"""Values of `pytest --mutant`: the guard that is removed."""
NO_ROW_LEVEL_SECURITY = "; ".join(
    f"alter table {table} no force row level security; alter table {table} disable row level security"
    for table in TENANT_TABLES
)


def unfiltered_reads(mutant: Path) -> dict[str, Any]:
    """The mutant's SELECT statements by name."""
    statements = runpy.run_path(str(mutant / "chalicelib/orders/statements.py"))
    return {name: statements[name] for name in ("ORDER_BY_ID", "ORDER_BY_KEY", "ORDERS_PAGES")}
