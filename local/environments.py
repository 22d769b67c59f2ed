"""Virtual environments that hold what one cloud's host holds, and nothing else.

So a dependency that this project forgot to name is missing here as it would be there.
`python -m local.environments azure` makes one and prints its Python.
"""

import fcntl
import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent
CLOUDS = ("azure", "gcp", "lambda", "oci", "template")


def environment(cloud: str) -> Path:
    """The Python of that cloud's environment, made at the first call, once for this Python and these pins.

    `lambda` has the Runtime Interface Client alone: the dependencies are in the zip. `template` has what
    reads AWS's templates. Raises SystemExit with the installer's words when it cannot be made.
    """
    pins = _pins(cloud)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = PROJECT / f"build/venvs/{cloud}-{version}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    python = folder / "bin/python"
    installed = folder / ".installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (installed.exists() and python.exists()):
            _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
            _uv("pip", "install", "--quiet", "--python", str(python), "--requirements", "-", stdin=pins)
            installed.touch()
    return python


def _pins(cloud: str) -> str:
    """The requirements, one to a line."""
    if cloud not in CLOUDS:
        raise SystemExit(f"There is no environment {cloud!r}: use one of {', '.join(CLOUDS)}")
    if cloud in ("lambda", "template"):
        groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
        return "\n".join(groups[cloud]) + "\n"
    return (PROJECT / "shims" / cloud / "requirements.txt").read_text()


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
