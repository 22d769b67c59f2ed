"""Virtual environments that contain exactly the packages of one cloud's host.

A dependency that is not declared is missing here too, as it would be on the host.
`python -m local.environments azure` creates one and prints the path of its Python.
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
"""The requirements file of each; `audit`, `lambda` and `template` are used on this machine only."""


def environment(cloud: str) -> Path:
    """The Python of that cloud's environment. Created at the first call for this Python and these pins.

    `lambda` has only the Runtime Interface Client: the dependencies are in the zip. `template` has SAM's
    translator, `audit` has pip-audit. Raises SystemExit with the installer's output when it fails.
    """
    pins = _pins(cloud)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Resolved, because the scripts of an environment contain its path.
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
    """The requirements file's text: pins with the hashes of their files."""
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
