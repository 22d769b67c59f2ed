"""`make soak` checks its variables before it starts anything."""

import os
import subprocess
import sys

import pytest

from tools.soak.__main__ import main

CASES = [
    *[
        ("MINUTES", value, "a number above 0, such as 10 or 0.5")
        for value in ("abc", "nan", "inf", "0", "-1")
    ],
    *[("SEED", value, "a whole number") for value in ("x", "1.5", "-1")],
    ("SABOTAGE", "rsl", "one of "),
]


@pytest.mark.parametrize(("name", "value", "advice"), CASES)
def test_malformed_soak_variable_is_explained(
    name: str, value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tools.soak"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert str(stopped.value.code).startswith(f"{name} is {value!r}: use {advice}")
    assert "\n" not in str(stopped.value.code)


@pytest.mark.slow
def test_malformed_soak_variable_ends_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tools.soak"],
        env={**os.environ, "MINUTES": "abc"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("MINUTES is 'abc': use a number above 0")
    assert result.stderr.count("\n") == 1
