"""`make build-azure`, `build-gcp` and `build-oci`: exactly the files that the cloud needs, ready to run."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import pytest

from chalicelib.orders import statements
from deploy import hosts, pins, sbom, sources
from local.environments import environment
from tests.support.builds import PROJECT, python_m_deploy

pytestmark = pytest.mark.slow

CLOUDS = tuple(hosts.SHIM_FILES)
CLOUD_FILES = {
    "azure": {
        ".funcignore",
        "function_app.py",
        "host.json",
        "local.settings.example.json",
        "requirements.txt",
    },
    "gcp": {"Dockerfile", "main.py", "requirements.txt"},
    "oci": {"func.py", "func.yaml", "requirements.txt"},
}
SHARED = {
    "app.py",
    *(
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "chalicelib").rglob("*.py")
        if path.stem != "tables"
    ),
    "shims/__init__.py",
    "shims/gateway.py",
}
SHARED_MODULES = {
    ".".join(Path(name).with_suffix("").parts) for name in SHARED if not name.endswith("__init__.py")
}
SETTINGS = {
    "DB_HOST": "127.0.0.1",
    "DB_NAME": "orders",
    "DB_USER": "orders_app",
    "AUTH_AUDIENCE": "shops",
    "COGNITO_USER_POOL_ARN": "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI",
}


@pytest.fixture(scope="module", params=CLOUDS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A cloud and its build folder, made under a strict umask."""
    cloud: str = request.param
    folder = tmp_path_factory.mktemp("build") / cloud
    before = os.umask(0o077)
    try:
        hosts.build(cloud, folder)
    finally:
        os.umask(before)
    return cloud, folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bytecode_of(source: str) -> str:
    return str(Path(importlib.util.cache_from_source(source)))


# Contents


def test_build_holds_exactly_its_clouds_files(build: tuple[str, Path]) -> None:
    cloud, folder = build
    shipped = CLOUD_FILES[cloud] | SHARED | {sbom.NAME}

    assert files(folder).keys() == shipped | {bytecode_of(name) for name in shipped if name.endswith(".py")}


def test_built_files_equal_the_project_files(build: tuple[str, Path]) -> None:
    cloud, folder = build

    for name, content in files(folder).items():
        if name.endswith("/statements.py"):
            assert content.decode() == sources.compiled(Path(name))
        elif name in SHARED:
            assert content == (PROJECT / name).read_bytes()
        elif name != sbom.NAME and not name.endswith(".pyc"):
            assert content == (PROJECT / "shims" / cloud / name).read_bytes()


def test_build_has_statement_texts_without_their_compiler() -> None:
    source = sources.compiled(Path("chalicelib/orders/statements.py"))
    built: dict[str, object] = {}
    exec(source, built)

    for name in ("INSERT_KEY", "INSERT_ORDER", "INSERT_ITEMS", "ORDER_BY_ID", "ORDER_BY_KEY", "ORDERS_PAGES"):
        assert repr(built[name]) == repr(getattr(statements, name))
    assert "sql" not in "\n".join(re.findall("^.*import .*$", source, re.MULTILINE))


@pytest.mark.parametrize("module", sources.statement_modules(), ids=str)
def test_compiled_statements_keep_every_public_name(module: Path) -> None:
    source = ".".join(module.with_suffix("").parts)
    text = (PROJECT / module).read_text()
    public_names = re.findall(r"^(?:def |class )?([A-Za-z]\w*)(?: = |: |\()", text, re.MULTILINE)
    built: dict[str, object] = {}
    exec(sources.compiled(module), built)

    assert "MAX_ROWS" in public_names
    for name in public_names:
        assert repr(built[name]) == repr(getattr(importlib.import_module(source), name))


def test_a_name_without_text_fails_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "MAX_ROWS", object())

    with pytest.raises(SystemExit, match=r"orders/statements\.py: a build cannot represent MAX_ROWS"):
        sources.compiled(Path("chalicelib/orders/statements.py"))


def test_build_has_unchecked_hash_based_bytecode(build: tuple[str, Path]) -> None:
    """PEP 552: flags 1 mean hash-based and unchecked."""
    contents = files(build[1])

    for name, content in contents.items():
        if name.endswith(".pyc"):
            source = contents[str(Path(importlib.util.source_from_cache(name)))]
            assert content[:16] == MAGIC_NUMBER + b"\x01\0\0\0" + source_hash(source), name


def test_build_holds_no_path_of_this_machine(build: tuple[str, Path]) -> None:
    for name, content in files(build[1]).items():
        for path in (build[1], PROJECT, Path.home()):
            assert str(path).encode() not in content, name


def test_rebuild_elsewhere_is_byte_identical_without_old_files(
    build: tuple[str, Path], tmp_path: Path
) -> None:
    cloud, folder = build
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    (older / "chalicelib/left.py").write_text("left over")
    (older / "app.py").write_text("changed")
    (older / "__pycache__/app.cpython-399.pyc").touch()

    hosts.build(cloud, older)

    assert files(older) == files(folder)


@pytest.mark.parametrize("subfolder", [".", "chalicelib", "shims/{cloud}", "{home}"])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_build_refuses_a_folder_without_a_build(tmp_path: Path, cloud: str, subfolder: str) -> None:
    """Runs in a copy of the project, because a build empties its folder first."""
    project, home = tmp_path / "project", tmp_path / "home"
    for name in ("chalicelib", "shims"):
        shutil.copytree(PROJECT / name, project / name)
    shutil.copy(PROJECT / "app.py", project)
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    before = files(tmp_path).keys()
    target = project / subfolder.format(cloud=cloud, home=home)

    with pytest.raises(
        SystemExit, match="is not a build of this project: empty it, or choose another folder"
    ):
        hosts.build(cloud, target)

    assert {name for name in before if "__pycache__" not in name} <= files(tmp_path).keys()


def test_builds_exclude_local_settings_and_stale_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A working copy can contain settings, bytecode of other Pythons and editor files."""
    project = tmp_path / "project"
    monkeypatch.setattr(hosts, "PROJECT", project)
    monkeypatch.setattr(sources, "PROJECT", project)
    for name in ("chalicelib", "shims"):
        shutil.copytree(PROJECT / name, project / name)
    shutil.copy(PROJECT / "app.py", project)
    for cloud in CLOUDS:
        (project / f"shims/{cloud}/__pycache__").mkdir(exist_ok=True)
        (project / f"shims/{cloud}/__pycache__/old.cpython-39.pyc").touch()
        for name in ("local.settings.json", ".env"):
            (project / f"shims/{cloud}/{name}").write_text("DB_PASSWORD=hunter2")

        hosts.build(cloud, tmp_path / cloud)

        built = files(tmp_path / cloud)
        assert not any(b"hunter2" in content for content in built.values())
        assert not any("cpython-39" in name for name in built)


def test_build_is_world_readable_under_any_umask(build: tuple[str, Path]) -> None:
    """On Cloud Run another user than the owner of the files runs them."""
    folder = build[1]

    paths = (folder, *folder.rglob("*"))
    assert {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in paths} == {
        (True, "0o755"),
        (False, "0o644"),
    }


@pytest.mark.parametrize("cloud", CLOUDS)
def test_folder_with_another_app_is_not_overwritten(tmp_path: Path, cloud: str) -> None:
    for name in ("app.py", hosts.SHIM_FILES[cloud][0], "thesis.txt"):
        (tmp_path / name).touch()

    result = python_m_deploy("build", cloud, "--into", tmp_path)

    assert (result.returncode, (tmp_path / "thesis.txt").exists()) == (1, True)


# The files of each cloud


def test_shims_have_equal_functions_and_no_branches() -> None:
    trees = {
        cloud: ast.parse((PROJECT / "shims" / cloud / hosts.SHIM_FILES[cloud][0]).read_text())
        for cloud in CLOUDS
    }

    for cloud, tree in trees.items():
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert [function.name for function in functions][:3] == ["orders_api", "incoming", "outgoing"], cloud
        decisions = (ast.If, ast.IfExp, ast.Match, ast.For, ast.While, ast.Try, ast.BoolOp, ast.Compare)
        assert not [node for node in ast.walk(tree) if isinstance(node, decisions)], cloud


def test_shims_do_not_import_database_clouds_or_tools() -> None:
    cloud_packages = {"azure": "azure", "gcp": "functions_framework", "oci": "fdk"}
    for cloud in CLOUDS:
        source = (PROJECT / "shims" / cloud / hosts.SHIM_FILES[cloud][0]).read_text()
        imported = imported_names(ast.parse(source))
        others = {name for other, name in cloud_packages.items() if other != cloud}
        assert not imported & (others | {"tests", "local", "deploy", "chalicelib", "psycopg2", "sqlmodel"})
    gateway = imported_names(ast.parse((PROJECT / "shims/gateway.py").read_text()))
    assert not gateway & ({"tests", "local", "deploy"} | set(cloud_packages.values()))


def test_the_app_and_the_shims_import_no_tools() -> None:
    """import-linter does not check these: app.py is not a package, and a shim's folder is a build's root."""
    tools = {"audit", "bench", "deploy", "local", "tests", "tools"}

    assert not imported_names(ast.parse((PROJECT / "app.py").read_text())) & {"shims", *tools}
    for path in (PROJECT / "shims").rglob("*.py"):
        assert not imported_names(ast.parse(path.read_text())) & tools, path


def imported_names(tree: ast.AST) -> set[str]:
    """All imported names, modules and top-level packages of a tree."""
    imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    from_imports = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return {*imports, *from_imports} | {name.partition(".")[0] for name in imports + from_imports}


def test_azure_config_has_no_route_prefix_or_secret() -> None:
    host = json.loads((PROJECT / "shims/azure/host.json").read_text())
    example = json.loads((PROJECT / "shims/azure/local.settings.example.json").read_text())["Values"]
    ignored = (PROJECT / "shims/azure/.funcignore").read_text().split()

    assert host["version"] == "2.0"
    assert host["extensions"]["http"]["routePrefix"] == ""
    assert "local.settings*.json" in ignored
    assert example["DB_PASSWORD"].startswith("https://<vault>.")
    assert example["FUNCTIONS_WORKER_RUNTIME"] == "python"


def test_azure_host_does_not_sample_request_logs() -> None:
    """A log line is a trace in Application Insights; types that are not excluded are sampled under load."""
    host = json.loads((PROJECT / "shims/azure/host.json").read_text())
    sampling = host["logging"]["applicationInsights"]["samplingSettings"]

    assert {"Request", "Trace"} <= set(sampling["excludedTypes"].split(";"))


def test_oracle_func_yaml_matches_the_build() -> None:
    lines = (PROJECT / "shims/oci/func.yaml").read_text().splitlines()
    members = dict(line.split(": ", 1) for line in lines)

    assert members["entrypoint"] == "/python/bin/fdk /function/func.py orders_api"
    assert members["name"] == hosts.NAME
    assert members["runtime"] == "python"
    assert members["build_image"] == f"{members['run_image']}-dev"


def test_dockerfile_runs_production_server_unprivileged_on_any_architecture() -> None:
    lines = (PROJECT / "shims/gcp/Dockerfile").read_text().splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith((" ", "#"))]
    (user,) = [value for name, value in steps if name == "USER"]
    command = next(value for name, value in steps if name == "CMD")

    assert user.isdigit()
    assert int(user) > 0
    assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index("CMD")
    assert json.loads(command) == [
        "functions-framework",
        "--source",
        "main.py",
    ]  # --debug would start Flask's development server
    assert not re.search("--platform|amd64|arm64|x86_64|aarch64", "\n".join(value for _, value in steps))


def test_hadolint_passes_on_the_dockerfile() -> None:
    hadolint = environment("audit").with_name("hadolint")

    result = subprocess.run(
        [hadolint, "shims/gcp/Dockerfile"], cwd=PROJECT, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, ""), result.stderr


# Requirements


@pytest.mark.parametrize(
    "group",
    ["aws", "runtime", *CLOUDS, "lambda", "template", "audit", "dev", "peer-fastapi", "peer-chalice"],
)
def test_make_lock_leaves_the_pins_unchanged(group: str, tmp_path: Path) -> None:
    """`make lock` changes nothing: the pinned versions and hashes are exactly those of the index."""
    recipe = (PROJECT / "Makefile").read_text()
    (command,) = re.findall(rf"\$\(LOCK\) (--group {group} .*)-o (\S+)\n", recipe)
    options = re.search(r"^LOCK .*?uv (pip compile .*)$", recipe, re.MULTILINE)
    assert options
    pinned = command[1]
    (tmp_path / "pins").write_text(pins.without_hashes((PROJECT / pinned).read_text()))

    subprocess.run(
        [sys.executable, "-m", "uv", *options[1].split(), *command[0].split(), "-o", tmp_path / "pins"],
        cwd=PROJECT,
        check=True,
    )

    assert (tmp_path / "pins").read_text() == (PROJECT / pinned).read_text()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_pin_the_same_versions_as_lambda(cloud: str) -> None:
    lambda_pins = {*map(str, pins.read(PROJECT / "deploy" / "requirements.txt"))}

    assert lambda_pins <= {*map(str, pins.read(PROJECT / "shims" / cloud / "requirements.txt"))}
    assert lambda_pins < {*map(str, pins.read(PROJECT / "requirements.txt"))}


def test_clouds_install_no_development_packages() -> None:
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["dependency-groups"]
    direct = {
        re.split("[=\\[]", requirement)[0] for requirement in groups["dev"] if isinstance(requirement, str)
    }
    host_packages = {"azure-functions", "functions-framework"}
    required = {"gunicorn", "packaging", "pytest", "pyyaml"}  # by functions-framework, fdk and chalice

    for cloud in CLOUDS:
        pinned = {pin.name for pin in pins.read(PROJECT / "shims" / cloud / "requirements.txt")}
        assert not pinned & (direct - host_packages - required), cloud


# Imports


@dataclass(frozen=True)
class Loaded:
    """The modules that a build loads in its cloud's virtual environment."""

    at_startup: set[str]
    after_all_imports: set[str]


@pytest.fixture(scope="module")
def loaded(build: tuple[str, Path]) -> Loaded:
    """Starts the cloud's entry point, and then imports every module of the build."""
    cloud, folder = build
    start = {
        "azure": "import function_app",
        # As in a gunicorn worker: main.py needs an app context.
        "gcp": "import functions_framework; functions_framework.create_app('orders_api', 'main.py')",
        "oci": "import func",
    }[cloud]
    code = f"import sys; sys.path.insert(0, '.'); {start}; print(*sys.modules)"
    imports = "".join(f"; import {name}" for name in SHARED_MODULES)
    result = subprocess.run(
        [environment(cloud), "-I", "-c", f"{code}{imports}; print(*sys.modules)"],
        cwd=folder,
        env=SETTINGS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    at_startup, after_all_imports = result.stdout.splitlines()
    return Loaded({*at_startup.split()}, {*after_all_imports.split()})


def test_built_modules_import_with_the_builds_requirements_alone(loaded: Loaded) -> None:
    assert loaded.after_all_imports >= SHARED_MODULES


def test_startup_loads_no_secret_store_and_no_tools(loaded: Loaded) -> None:
    assert "app" in loaded.at_startup
    assert not loaded.at_startup & {
        "boto3",
        "chalice.local",
        "chalice.cli",
        "chalice.deploy",
        "chalicelib.settings.secret_stores",
        "chalicelib.openapi.document",
        "azure.identity",
        "azure.keyvault",
        "google.cloud.secretmanager",
        "oci",
    }
    assert not {name for name in loaded.at_startup if name.startswith(("tests", "local.", "deploy"))}
