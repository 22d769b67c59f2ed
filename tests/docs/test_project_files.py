"""Files for external tools: the CI workflow, the hooks, the devcontainer and [project]."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import chalicelib

PROJECT = Path(__file__).parents[2]
YAML = [*(PROJECT / ".github").rglob("*.yml"), PROJECT / ".pre-commit-config.yaml"]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
MAKE = re.compile(r"^make [\w -]+$", re.MULTILINE)


def yaml_in(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_a_yaml_file_is_a_mapping(path: Path) -> None:
    assert isinstance(yaml_in(path), dict)


def test_the_workflow_calls_the_targets_of_ci_run() -> None:
    (job,) = yaml_in(PROJECT / ".github/workflows/ci.yml")["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]

    assert commands == MAKE.findall((PROJECT / ".ci/run").read_text())
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_workflow_tests_every_python_that_the_project_requires() -> None:
    (job,) = yaml_in(PROJECT / ".github/workflows/ci.yml")["jobs"].values()
    first, after = map(int, re.findall(r"3\.(\d+)", PYPROJECT["project"]["requires-python"]))

    versions = job["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(first, after)]


def test_hooks_run_local_commands_only() -> None:
    repositories = yaml_in(PROJECT / ".pre-commit-config.yaml")["repos"]

    assert [repository["repo"] for repository in repositories] == ["local"]
    assert {hook["language"] for hook in repositories[0]["hooks"]} == {"system"}


def test_the_devcontainer_is_json() -> None:
    assert (
        "make" in json.loads((PROJECT / ".devcontainer/devcontainer.json").read_text())["postCreateCommand"]
    )


def test_the_version_is_declared_once() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "chalicelib.__version__"}
    assert f"## [{chalicelib.__version__}]" in (PROJECT / "CHANGELOG.md").read_text()
