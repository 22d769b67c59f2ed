"""The virtual environments with the packages of one cloud's host."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy import pins
from local import environments

PROJECT = environments.PROJECT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without any virtual environments."""
    (tmp_path / "shims/gcp").mkdir(parents=True)
    (tmp_path / "local/requirements").mkdir(parents=True)
    shutil.copy(environments.PROJECT / "local/requirements/lambda.txt", tmp_path / "local/requirements")
    monkeypatch.setattr(environments, "PROJECT", tmp_path)
    return tmp_path


def pinned_lines(*names: str) -> str:
    """Requirement lines of these packages, as pinned for development."""
    pins_by_name = {pin.name: pin for pin in pins.read(PROJECT / "requirements-dev.txt")}
    return "".join(f"{pins_by_name[name].line}\n" for name in names)


def importable(python: Path, *names: str) -> list[bool]:
    """For each module, whether this Python can import it."""
    code = f"from importlib.util import find_spec; print(*(bool(find_spec(name)) for name in {names}))"
    output = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    return [word == "True" for word in output.split()]


@pytest.mark.slow
def test_concurrent_callers_get_one_isolated_environment(project: Path) -> None:
    def call(_: int) -> tuple[Path, list[bool]]:
        python = environments.environment("lambda")
        return python, importable(python, "awslambdaric", "chalice", "pytest")

    with ThreadPoolExecutor(6) as pool:
        results = [*pool.map(call, range(6))]

    assert results == [(results[0][0], [True, False, False])] * 6
    assert [*project.glob("build/venvs/*/bin/python")] == [results[0][0]]


@pytest.mark.slow
def test_interrupted_environment_is_rebuilt(project: Path) -> None:
    requirements = project / "shims/gcp/requirements.txt"
    requirements.write_text(pinned_lines("six"))
    python = environments.environment("gcp")
    (python.parent.parent / ".installed").unlink()
    shutil.rmtree(next(python.parent.parent.glob("lib/*/site-packages")) / "six-1.17.0.dist-info")
    next(python.parent.parent.glob("lib/*/site-packages/six.py")).unlink()

    assert importable(environments.environment("gcp"), "six") == [True]

    requirements.write_text(pinned_lines("six", "idna"))
    assert importable(environments.environment("gcp"), "idna") == [True]
    assert environments.environment("gcp") != python


@pytest.mark.slow
def test_failed_install_is_explained(project: Path) -> None:
    (project / "shims/gcp/requirements.txt").write_text(f"six==0.0.0.1 --hash=sha256:{'0' * 64}\n")

    with pytest.raises(SystemExit, match=r"(?s)Is the package index reachable\?.*six"):
        environments.environment("gcp")
    with pytest.raises(SystemExit, match="one of audit, azure, gcp, lambda, oci, template"):
        environments.environment("heroku")
