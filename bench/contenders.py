"""The contenders: this project and its peers, each installed separately, as in a plain zip for Lambda."""

import compileall
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from py_compile import PycInvalidationMode
from zipfile import ZipFile

import chalice.app

from chalicelib.settings.table import SETTINGS
from local.issuer import CLIENT_ID, USER_POOL_ARN

PROJECT = Path(__file__).parent.parent
PEERS = PROJECT / "bench" / "peers"
INSTALLED = PROJECT / "build" / "bench"
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""Lambda's name of this machine's architecture."""
CHALICE = Path(chalice.app.__file__).parent
CHALICE_RUNTIME = ("__init__.py", "app.py")
"""The files that Chalice's packager adds to a zip."""


@dataclass(frozen=True)
class Contender:
    """An implementation of the contract, and how its process is started."""

    key: str
    name: str
    module: str = "main"
    attribute: str = "handler"
    role: str = "bench_peer"
    """The database role: peers bypass row-level security and filter by tenant themselves."""
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    """The folder of its trees, where two contenders share them; empty: `key`."""

    @property
    def trees(self) -> "Trees":
        return Trees(INSTALLED / (self.folder or self.key))


@dataclass(frozen=True)
class Trees:
    """The installed files of a contender. Read-only while it runs, as on Lambda."""

    folder: Path

    @property
    def with_bytecode(self) -> Path:
        return self.folder / "with-bytecode"

    @property
    def without_bytecode(self) -> Path:
        return self.folder / "without-bytecode"


def _ours(key: str, name: str, prepare: str) -> Contender:
    variables = {
        "COGNITO_USER_POOL_ARN": USER_POOL_ARN,
        "AUTH_AUDIENCE": CLIENT_ID,
        "DB_PREPARE": prepare,
    }
    return Contender(key, name, "app", "app", "orders_app", variables, "ours")


OURS = _ours("ours", "this project", "on")
UNPREPARED = _ours("ours_unprepared", "this project, DB_PREPARE=off", "off")
FLOOR = Contender("floor", "floor: raw psycopg2")
FASTAPI = Contender("fastapi_sqlmodel", "FastAPI + SQLModel, Mangum")
POWERTOOLS = Contender("powertools", "Powertools + psycopg2")
CHALICE_ORM = Contender("chalice_orm", "Chalice + SQLModel ORM")
CONTENDERS = (OURS, UNPREPARED, FLOOR, POWERTOOLS, CHALICE_ORM, FASTAPI)
IMPORTS = Contender("imports", "bare imports and a connect")
"""No service: measures only the import of the stack and a connect, in the cold section."""


def install(contenders: Sequence[Contender], advance: Callable[[str], None]) -> None:
    """Install every contender's two trees, unless they are up to date for this Python, the pins and sources.

    Raises SystemExit with the installer's output when it fails.
    """
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for contender in contenders:
        advance(contender.name)
        folder = contender.trees.folder
        with _locked(folder.with_suffix(".lock")):
            recipe, make = _recipe(contender)
            done = folder / "installed"
            if not done.is_file() or done.read_text() != recipe:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(contender.trees)
                done.write_text(recipe)


def packages(contender: Contender) -> dict[str, str]:
    """Name and version of each package in its tree."""
    installed = distributions(path=[str(contender.trees.without_bytecode)])
    return dict(sorted((package.metadata["Name"], package.version) for package in installed))


def _recipe(contender: Contender) -> tuple[str, Callable[[Trees], None]]:
    """The fingerprint of its sources, and a function that makes its trees."""
    if contender.trees == OURS.trees:
        sources = [
            PROJECT / name for name in ("app.py", "chalicelib", "deploy", ".chalice", "requirements.txt")
        ]
        return _fingerprint(sources), _build_ours
    source, pins = _source_of(contender)
    return _fingerprint([source, Path(__file__)], pins), lambda trees: _install_peer(trees, source, pins)


def _source_of(contender: Contender) -> tuple[Path, str]:
    """Its main.py or folder, and its requirements."""
    stack = (PEERS / CHALICE_ORM.key / "requirements.txt").read_text()
    if contender is IMPORTS:
        return Path(__file__).with_name("imports.py"), stack
    if contender is FLOOR:
        pins = re.split(r"\n(?! )", stack)
        return Path(__file__).with_name("floor.py"), "\n".join(
            pin for pin in pins if pin.startswith("psycopg2")
        )
    folder = PEERS / contender.key
    return folder, (folder / "requirements.txt").read_text()


def _build_ours(trees: Trees) -> None:
    """The unpacked zip for AWS, which has bytecode; a copy without it is the other tree."""
    built = trees.folder / "build"
    # Settings of this shell must not change the build.
    deploys = ("AWS_", "SECURITY_", "SUBNET_")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS and not name.startswith(deploys)
    }
    command = ["-m", "deploy", "build", "aws", "--into", str(built), "--arch", ARCHITECTURE]
    _run(command, PROJECT, environment)
    with ZipFile(built / "package" / "deployment.zip") as zipped:
        zipped.extractall(trees.with_bytecode)
    shutil.copytree(trees.with_bytecode, trees.without_bytecode, ignore=shutil.ignore_patterns("__pycache__"))


def _install_peer(trees: Trees, source: Path, pins: str) -> None:
    """`pip install --target` and a copy of the sources; and the same with bytecode."""
    plain = trees.without_bytecode
    requirements = trees.folder / "requirements.txt"
    requirements.write_text(pins)
    command = ["-m", "uv", "pip", "install", "--quiet", "--no-config", "--no-deps", "--link-mode", "copy"]
    command += ["--require-hashes"]
    command += ["--python", sys.executable, "--target", str(plain), "--requirement", str(requirements)]
    _run(command, PROJECT, dict(os.environ))
    if source.is_dir():
        not_shipped = shutil.ignore_patterns("__pycache__", "requirements.txt")
        shutil.copytree(source, plain, ignore=not_shipped, dirs_exist_ok=True)
    else:
        shutil.copy(source, plain / "main.py")
    if (plain / "sqlmodel").is_dir() and not (plain / "fastapi").is_dir():
        (plain / "chalice").mkdir()
        for name in CHALICE_RUNTIME:
            shutil.copy(CHALICE / name, plain / "chalice")
    shutil.copytree(plain, trees.with_bytecode)
    unchecked = PycInvalidationMode.UNCHECKED_HASH
    # Errors are ignored: some packages contain files that do not compile, such as templates.
    compileall.compile_dir(trees.with_bytecode, quiet=2, invalidation_mode=unchecked)


def _fingerprint(sources: Sequence[Path], *texts: str) -> str:
    digest = hashlib.sha256(f"{sys.version}\0{platform.machine()}".encode())
    for text in texts:
        digest.update(text.encode())
    for source in sources:
        for path in sorted([source, *source.rglob("*")] if source.is_dir() else [source]):
            if path.is_file() and "__pycache__" not in path.parts and "deployed" not in path.parts:
                digest.update(str(path.relative_to(PROJECT)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _run(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed:\n{done.stdout[-3000:].strip()}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One installation at a time. The system releases the lock when this process ends, even by SIGKILL."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
