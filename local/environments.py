"""Virtual environments that hold what one cloud's host holds, and nothing else.

So a dependency that this project forgot to name is missing here as it would be there.
`python -m local.environments azure` makes one and prints its Python.
"""

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
REQUIREMENTS = {
    "audit": "local/requirements/audit.txt",
    "azure": "shims/azure/requirements.txt",
    "gcp": "shims/gcp/requirements.txt",
    "lambda": "local/requirements/lambda.txt",
    "oci": "shims/oci/requirements.txt",
    "template": "local/requirements/template.txt",
}
"""What each holds; `audit`, `lambda` and `template` are for this machine alone."""


def environment(cloud: str) -> Path:
    """The Python of that cloud's environment, made at the first call, once for this Python and these pins.

    `lambda` has the Runtime Interface Client alone: the dependencies are in the zip. `template` has what
    reads AWS's templates, `audit` what `make audit` runs. Raises SystemExit with the installer's words when
    it cannot be made.
    """
    pins = _pins(cloud)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Resolved: the scripts of an environment name its path.
    venvs = (PROJECT / "build/venvs").resolve()
    folder = venvs / f"{cloud}-{version}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    python = folder / "bin/python"
    installed = folder / ".installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (installed.exists() and python.exists()):
            _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
            hashed = ["--quiet", "--require-hashes", "--requirements", "-"]
            _uv("pip", "install", "--python", str(python), *hashed, stdin=pins)
            installed.touch()
    return python


def _pins(cloud: str) -> str:
    """Each with the hashes of its files; nothing else is installed."""
    if cloud not in REQUIREMENTS:
        raise SystemExit(f"There is no environment {cloud!r}: use one of {', '.join(REQUIREMENTS)}")
    return (PROJECT / REQUIREMENTS[cloud]).read_text()


def _uv(*arguments: str, stdin: str | None = None) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "uv", *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"uv {arguments[0]} failed. Is the package index reachable? A proxy: HTTPS_PROXY, a mirror: "
            f"UV_DEFAULT_INDEX\n{done.stderr.strip()}"
        )


if __name__ == "__main__":
    print(environment(*sys.argv[1:2] or ["?"]))
