"""The sabotaged build has no tenant filter, neither in its source nor in its bytecode."""

import runpy
from pathlib import Path

import pytest

from deploy import hosts
from tools.soak.sabotage import without_tenant_filter

pytestmark = pytest.mark.slow


@pytest.fixture
def build(tmp_path: Path) -> Path:
    hosts.build("gcp", tmp_path / "gcp")
    return tmp_path / "gcp"


def test_mutant_reads_have_no_tenant_filter(build: Path) -> None:
    before = runpy.run_path(str(build / "chalicelib/orders/statements.py"))

    without_tenant_filter(build)

    after = runpy.run_path(str(build / "chalicelib/orders/statements.py"))
    reads = [after["ORDER_BY_ID"], after["ORDER_BY_KEY"], *after["ORDERS_PAGES"].values()]
    for read in reads:
        for text in filter(None, (read.text, read.prepared)):
            assert "%(tenant_id)s" not in text
            assert "WHERE true" in text
    for name in ("INSERT_KEY", "INSERT_ORDER", "INSERT_ITEMS"):
        assert repr(after[name]) == repr(before[name])


def test_mutant_bytecode_has_no_tenant_filter(build: Path) -> None:
    """Hosts load the bytecode, not the source."""
    bytecode = next((build / "chalicelib/orders/__pycache__").glob("statements.*.pyc"))
    assert b"orders.tenant_id = " in bytecode.read_bytes()

    without_tenant_filter(build)

    assert b"orders.tenant_id = " not in bytecode.read_bytes()


def test_mutating_a_build_twice_is_an_error(build: Path) -> None:
    without_tenant_filter(build)

    with pytest.raises(ValueError, match="does not filter by tenant"):
        without_tenant_filter(build)
