"""`make bench-scale`: the orders it loads, and a run from end to end."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from bench import load
from bench.contenders import PROJECT
from bench.scale_report import Step, tables
from bench.scale_requests import CREATES, DEEP_BY_CURSOR, EMPTY, GETS, PAGE_1, few_orders, samples


def test_generated_orders_are_deterministic() -> None:
    assert load.block(7_000) == load.block(7_000)
    assert [order.number for order in load.block(7_000)] == list(range(7_000, 8_000))


def test_generated_order_ids_increase_over_time() -> None:
    last, first = load.block(6_000)[-1], load.block(7_000)[0]
    ids = [order.order_id for order in (last, first, *load.block(7_000)[1:])]

    assert ids == sorted(ids)
    assert {UUID(order_id).version for order_id in ids} == {7}
    assert ids[-1] < load.id_after_all()


def test_generated_tenants_are_skewed_and_none_is_empty() -> None:
    orders = Counter(order.rank for first in range(0, 50_000, load.BLOCK) for order in load.block(first))

    assert orders[load.HUGE] == pytest.approx(0.51 * 50_000, rel=0.02)
    assert set(orders) == set(range(load.tenants_at(50_000)))
    assert orders[1] > 20 * orders[100] > 0


def test_samples_exist_for_each_tenant_size() -> None:
    sampled = samples(100_000)

    assert all(len(placed) > 100 for placed in sampled.values())
    assert {order.rank for order in sampled["huge"]} == {load.HUGE}
    assert min(order.rank for order in sampled["small"]) > max(order.rank for order in sampled["middle"])


def test_empty_database_baseline_has_one_page_of_orders() -> None:
    few = few_orders()

    assert len({order.order_id for order in few}) == EMPTY
    assert Counter(order.user for order in few)[few[0].user] == load.ORDERS_A_USER


def test_scale_target_is_reported_as_met_or_not() -> None:
    step = Step(10_000_000, 100_000, 2_000_000, 10_000, 1, 1, 1)
    step.few = {request.key: timing(1.0) for request in (*GETS, *CREATES, PAGE_1)}
    step.many = {
        **step.few,
        GETS[0].key: timing(1.2),
        CREATES[0].key: timing(1.3),
        DEEP_BY_CURSOR.key: timing(1.1),
    }

    rows = {row[0]: row[2:] for row in tables([step])[0].rows}

    assert rows["get, small shops, against an empty table"] == ["1.20x", "met"]
    assert rows["create, small shops, against an empty table"] == ["1.30x", "NOT MET"]
    assert rows["page 10,000 of the huge shop, by cursor, against page 1"] == ["1.10x", "met"]


def timing(milliseconds: float) -> dict[str, float]:
    return {"median_ms": milliseconds, "p99_ms": 2 * milliseconds, "calls": 1}


@pytest.mark.parametrize("orders", ["1500", "0", "20000000", "many"])
def test_invalid_number_of_orders_is_rejected(orders: str, tmp_path: Path) -> None:
    result = bench_scale("--orders", orders, "--results", str(tmp_path))

    assert result.returncode == 1
    assert f"ORDERS is '{orders}': use a multiple of 1000 up to 10000000" in result.stderr


@pytest.mark.slow
def test_scale_run_reports_every_step(tmp_path: Path) -> None:
    result = bench_scale("--orders", "2000", "--rounds", "1", "--results", str(tmp_path))

    assert result.returncode == 0, result.stdout + result.stderr
    steps = json.loads((tmp_path / "scale.json").read_text())["steps"]
    assert [step["orders"] for step in steps] == [1_000, 2_000]
    assert all(request.key in step[side] for step in steps for side in ("many", "few") for request in CREATES)
    assert "### Scale: at 2,000 orders" in (tmp_path / "scale.md").read_text()
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def bench_scale(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORDERS", "SCALE_DATA")}
    return subprocess.run(
        [sys.executable, "-m", "bench.scale", *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
