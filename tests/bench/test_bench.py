"""The benchmark: its arithmetic, its proxy, and a run from end to end."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench import cost, operations, plots
from bench.contenders import CONTENDERS, FLOOR, PROJECT
from bench.figures import percentile, summary
from bench.report import Table, markdown, ratio
from bench.targets import Target
from bench.warm import Times, rotated
from tools.postgres_proxy import SOCKET, Proxy, hold


def test_a_percentile_is_the_nearest_rank() -> None:
    assert percentile([30, 10, 20, 40], 50) == 20
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1, 201), 99) == 198
    assert percentile([7], 99) == 7


def test_a_summary_is_in_milliseconds() -> None:
    assert summary([1_000_000, 3_000_000, 2_000_000]) == {"median_ms": 2, "p99_ms": 3, "calls": 3}


def test_warm_ratio_compares_the_medians() -> None:
    floor, api = Times(), Times()
    floor.add({"wall": [100, 200, 9_000], "cpu": [50, 50, 50]})
    api.add({"wall": [300, 300, 1_000], "cpu": [100, 120, 900]})

    assert api.summary(floor)["ratio"] == pytest.approx(1.5)
    assert api.summary(floor)["cpu_ms"] == pytest.approx(120 / 1e6)
    assert floor.summary(floor)["ratio"] == 1


def test_contenders_rotate_so_that_each_goes_first() -> None:
    assert [rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated("abc", 2)) == ["a", "b", "c"]


def test_less_memory_lengthens_cpu_time_but_not_waiting() -> None:
    durations = cost.Durations(cpu=2, wait=1.5, cold_import=300, cold_call=100)

    assert durations.warm_billed(1_769) == 4  # 2 + 1.5, in whole milliseconds
    assert durations.warm_billed(128) == 30  # 2 * 1769 / 128 + 1.5 = 29.1
    assert durations.warm_billed(3_538) == 4  # no second CPU for one thread
    assert durations.cold_billed(512) == 646  # 300 + 100 * 1769 / 512 = 645.5


def test_the_cost_of_a_million_orders() -> None:
    durations = cost.Durations(cpu=1, wait=0, cold_import=100, cold_call=0)

    # 99 % of 4 ms and 1 % of 100 ms, at half a GB
    assert durations.warm_billed(512) == 4
    assert cost.gb_seconds(durations, 512) == pytest.approx(1_000_000 * 0.5 * (0.99 * 4 + 0.01 * 100) / 1000)
    assert cost.dollars(durations, 512, "x86_64") == pytest.approx(2_480 * 0.0000166667 + 0.20)
    assert cost.dollars(durations, 512, "arm64") < cost.dollars(durations, 512, "x86_64")


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [(1.6, False, "met"), (1.61, False, "NOT MET"), (1.6, True, "met"), (1.59, True, "NOT MET")],
)
def test_target_is_met_at_exactly_its_limit(value: float, at_least: bool, verdict: str) -> None:
    target = Target("warm create", "warm", lambda section: section["ratio"], 1.6, at_least=at_least)

    row = target.row({"warm": {"ratio": value}})

    assert row is not None
    assert row[-1] == verdict


def test_unmeasured_target_has_no_row() -> None:
    assert Target("warm create", "warm", lambda _: 1.0, 1.6).row({}) is None
    assert Target("warm create", "warm", lambda _: None, 1.6).row({"warm": {}}) is None


def test_a_report_is_markdown() -> None:
    table = Table(
        "Warm", ["contender", "create"], [["floor", ratio(1)], ["other", ratio(12.34)]], ["A note."]
    )

    assert markdown({"date": "today"}, [table]).splitlines()[-8:] == [
        "### Warm",
        "",
        "| contender | create |",
        "| --- | ---: |",
        "| floor | 1.00x |",
        "| other | 12.3x |",
        "",
        "A note.",
    ]


def test_response_comparison_ignores_generated_ids_and_times() -> None:
    order = {"order_id": "1", "created_at": "a", "updated_at": "a", "total_amount": 1}
    other = {"order_id": "2", "created_at": "b", "updated_at": "b", "total_amount": 1}

    creates = [operations.masked("create", json.dumps({"order": value})) for value in (order, other)]
    gets = [operations.masked("get", json.dumps({"order": value})) for value in (order, other)]

    assert creates[0] == creates[1]
    assert gets[0] != gets[1]
    pages = [operations.masked("list", json.dumps({"next_cursor": cursor})) for cursor in ("x", "y", None)]
    assert pages[0] == pages[1] != pages[2]


def test_proxy_counts_traffic_and_adds_latency(tmp_path: Path) -> None:
    upstream, folder = tmp_path / "upstream", tmp_path / "proxy"
    for path in (upstream, folder):
        path.mkdir()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(os.fspath(upstream / SOCKET))
        server.listen()
        threading.Thread(target=_echo, args=[server], daemon=True).start()
        proxy = Proxy(folder, upstream, parses=False)
        client.connect(os.fspath(folder / SOCKET))

        with proxy.watched() as traffic:
            _round_trip(client, b"12345")
            _round_trip(client, b"123")
        seconds = {}
        for delay in (0, 0.002):
            proxy.delay = delay
            before = time.perf_counter()
            for _ in range(20):
                _round_trip(client, b"1")
            seconds[delay] = (time.perf_counter() - before) / 20
        proxy.close()

    assert (traffic.trips, traffic.sent, traffic.received) == (2, 8, 8)
    assert seconds[0.002] - seconds[0] > 0.001


@pytest.mark.parametrize("seconds", [0.0002, 0.0005, 0.001])
def test_injected_delay_is_never_too_short(seconds: float) -> None:
    before = time.perf_counter()
    hold(seconds)

    assert time.perf_counter() - before >= seconds


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)


def _round_trip(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    assert client.recv(100) == data


def test_a_plot_is_written(tmp_path: Path) -> None:
    plots.grouped_bars(tmp_path / "a.png", "Title", "ms", ["get"], {"us": [1.0], "them": [0]}, "{:.1f}")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bench_run_reports_every_contender(tmp_path: Path) -> None:
    result = bench("--size", "smoke", "--only", "warm,cold,trips,cost", "--results", str(tmp_path))

    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    keys = {contender.key for contender in CONTENDERS}
    assert results["sections"]["warm"]["contenders"].keys() == keys
    assert results["sections"]["trips"]["contenders"].keys() == keys
    floor = results["sections"]["warm"]["contenders"][FLOOR.key]["operations"]
    assert {operation["ratio"] for operation in floor.values()} == {1.0}
    report = (tmp_path / "results.md").read_text()
    for contender in CONTENDERS:
        assert f"\n| {contender.name} |" in report
        assert contender.name in result.stdout
    for section in ("Warm", "Cold", "Trips", "Cost", "Targets"):
        assert f"### {section}" in report
    for plot in ("warm", "cold", "trips"):
        assert (tmp_path / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "tepid", "'tepid' is not one of warm, cold, http, trips, cost"),
        ("--only", "cost,warm", "name cold, trips too"),
        ("--contenders", "django", "'django' is not one of ours"),
    ],
)
def test_invalid_bench_option_is_rejected_before_the_run(option: str, value: str, message: str) -> None:
    result = bench(option, value)

    assert result.returncode == 1
    assert message in result.stderr


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )


def published(name: str) -> list[str]:
    """The tables of a published report with their titles and notes, without the one about the machine."""
    report = (PROJECT / "bench" / "results" / name).read_text()
    return [f"### {block.strip()}" for block in report.split("### ")[2:]]


@pytest.mark.parametrize("name", ["results.md", "scale.md", "profile.md"])
def test_performance_page_matches_the_measured_results(name: str) -> None:
    page = (PROJECT / "docs" / "performance.md").read_text()

    assert published(name)
    assert [block for block in published(name) if block not in page] == []


def test_published_results_come_from_one_complete_run() -> None:
    results = json.loads((PROJECT / "bench" / "results" / "results.json").read_text())

    assert results["header"]["command"] == "make bench"
    assert "with changes" not in results["header"]["commit"]
    assert "skipped" not in results["sections"]["http"]
    assert all(results["sections"].values())
    assert {*results["packages"]} == {contender.key for contender in CONTENDERS}
