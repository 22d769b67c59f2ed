"""`make soak` checks its variables before it starts anything."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "values", "advice"),
    [
        ("MINUTES", ["abc", "nan", "inf", "0", "-1"], "a number above 0, such as 10 or 0.5"),
        ("SEED", ["x", "1.5", "-1"], "a whole number"),
        ("SABOTAGE", ["rsl"], "one of "),
    ],
)
def test_malformed_soak_variable_is_explained(name: str, values: list[str], advice: str) -> None:
    for value in values:
        result = subprocess.run(
            [sys.executable, "-m", "tools.soak"],
            env={**os.environ, name: value},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"{name} is {value!r}: use {advice}")
        assert result.stderr.count("\n") == 1
