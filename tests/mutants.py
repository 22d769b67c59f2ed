"""Builds that forgot something on purpose: what guards behind it must hold alone."""

import py_compile
import re
from importlib.util import cache_from_source
from pathlib import Path
from py_compile import PycInvalidationMode

_TENANT_FILTER = re.compile(r"\b(?:\w+\.)?tenant_id = %\(tenant_id\)s")


def without_tenant_filter(build: Path) -> None:
    """No read of this build names the tenant any more: row-level security alone tells tenants apart.

    Its inserts go on to name it: they would write somebody else's row, or none.
    """
    module = build / "chalicelib" / "statements.py"
    forgetful, forgotten = _TENANT_FILTER.subn("true", module.read_text())
    if not forgotten or "tenant_id = " in forgetful:
        raise ValueError(f"{module} does not name the tenant in the way that was to be forgotten")
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
