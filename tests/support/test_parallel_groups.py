"""The scheduler of `make test` keeps each group of tests in one process."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TESTS = """
import os, time, pytest

@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("door", ["gcp", "oci"])
def test_of_a_door(door, number):
    record("door-" + door)

@pytest.mark.parametrize("number", range(3))
def test_of_the_file(number):
    record(__name__)

def record(group):
    time.sleep(0.1)  # so that an idle process could take the next test
    print("ran", group, os.environ["PYTEST_XDIST_WORKER"])
"""


@pytest.mark.slow
def test_each_group_runs_in_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "conformance"
    folder.mkdir(parents=True)
    for name in ("test_one.py", "test_two.py"):
        (folder / name).write_text(TESTS)
    options = ["-rP", "-n", "3", "--dist", "loadscope", "--no-loadscope-reorder"]
    plugins = ["-p", "xdist", "-p", "tests.support.parallel_groups"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", tmp_path, *plugins, *options, tmp_path],
        env={"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout
    processes = defaultdict(set)
    for line in run.stdout.splitlines():
        if line.startswith("ran "):
            _, group, process = line.split()
            processes[group].add(process)
    assert {group: len(of) for group, of in processes.items()} == dict.fromkeys(
        ["door-gcp", "door-oci", "test_one", "test_two"], 1
    )
    assert len(set.union(*processes.values())) > 1
