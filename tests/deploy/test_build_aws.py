"""`make build-aws`: the zip runs on Lambda without changes, or the build fails."""

import importlib.util
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest

from deploy import archive, aws, aws_configuration, pins, sbom, sources
from tests.support.builds import ARCHITECTURE, PROJECT, AwsBuild, build_aws, copy_of_project, python_m_deploy
from tests.support.certificates import certify

pytestmark = pytest.mark.slow

REQUIREMENTS = PROJECT / "deploy" / "requirements.txt"
SECRET_ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders-AbCdEf"
POOL_ARN = "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI"
PYC = f"cpython-{sys.version_info.major}{sys.version_info.minor}.pyc"
Json = dict[str, Any]
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of the database's authority."""
    return certify(tmp_path_factory.mktemp("elsewhere-on-this-machine"))


@pytest.fixture(scope="module")
def production_build(tmp_path_factory: pytest.TempPathFactory, authority: Path) -> AwsBuild:
    """A production build for the other architecture: VPC, password in Secrets Manager, database authority."""
    return build_aws(
        tmp_path_factory.mktemp("configured") / "build",
        other_architecture(),
        "prod",
        COGNITO_USER_POOL_ARN=POOL_ARN,
        CORS_ORIGIN="https://shop.example",
        DB_HOST="db.example",
        DB_PASSWORD=SECRET_ARN,
        DB_SSLROOTCERT=str(authority),
        DATABASE_URL="postgresql://orders_app:hunter2@db.example/orders",
        SUBNET_IDS="subnet-1, subnet-2",
        SECURITY_GROUP_IDS="sg-1",
    )


@pytest.fixture(scope="module")
def rebuilt(production_build: AwsBuild, tmp_path_factory: pytest.TempPathFactory) -> AwsBuild:
    """A build over a production build, under a strict umask and with a password in plain text."""
    folder = tmp_path_factory.mktemp("rebuilt") / "build"
    shutil.copytree(production_build.folder, folder, symlinks=True)
    before = os.umask(0o077)
    try:
        return build_aws(folder, DB_PASSWORD="hunter2")
    finally:
        os.umask(before)


def other_architecture() -> str:
    (other,) = set(archive.MACHINES) - {ARCHITECTURE}
    return other


@pytest.fixture(scope="module")
def members(aws_build: AwsBuild) -> Members:
    with ZipFile(aws_build.zip) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def write_zip(folder: Path, members: Members, compression: int = ZIP_STORED) -> Path:
    path = folder / "deployment.zip"
    with ZipFile(path, "w", compression) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def config_of(build: AwsBuild) -> Json:
    config: Json = json.loads((build.folder / ".chalice" / "config.json").read_text())
    return config


def test_zip_holds_only_the_app_and_its_packages(members: Members) -> None:
    top_level = {
        name.partition("/")[0] for name in members if not name.partition("/")[0].endswith(".dist-info")
    }

    assert top_level == {
        "app.py",
        "chalice",
        "chalicelib",
        "__pycache__",
        "annotated_types",
        "psycopg2",
        "psycopg2_binary.libs",
        "pydantic",
        "pydantic_core",
        "typing_extensions.py",
        "typing_inspection",
        "uuid_utils",
    }


def test_every_module_in_the_zip_has_unchecked_bytecode(members: Members) -> None:
    modules = [name for name in members if name.endswith(".py")]

    for name in modules:
        folder, _, file = name.rpartition("/")
        compiled = f"{folder}/__pycache__/{file[:-3]}.{PYC}".lstrip("/")
        assert struct.unpack("<I", members[compiled][4:8]) == (1,), name
    assert {"app.py", "chalice/app.py", "chalicelib/orders/repository.py", "pydantic/__init__.py"} <= set(
        modules
    )


def test_build_folder_is_ready_for_chalice_deploy(aws_build: AwsBuild) -> None:
    """The packages are in vendor/; entries in requirements.txt would be installed again, uncompiled."""
    assert (aws_build.folder / "requirements.txt").read_text() == ""
    assert (aws_build.folder / "vendor" / "pydantic").is_dir()
    (cached,) = (aws_build.folder / ".chalice" / "deployments").iterdir()
    assert cached.read_bytes() == aws_build.zip.read_bytes()


def test_chalice_deployment_records_stay_outside_the_build(aws_build: AwsBuild) -> None:
    deployed = (aws_build.folder / ".chalice" / "deployed").resolve()

    assert deployed == PROJECT / ".chalice" / "deployed"


def test_zip_bundles_the_authority_without_its_path(
    production_build: AwsBuild, authority: Path, members: Members
) -> None:
    with ZipFile(production_build.zip) as zipped:
        assert zipped.read(sources.AUTHORITY) == authority.read_bytes()
        contents = [zipped.read(name) for name in zipped.namelist()]
    assert sources.AUTHORITY not in members
    contents += [path.read_bytes() for path in production_build.folder.rglob("*") if path.is_file()]
    assert not any(str(authority.parent).encode() in content for content in contents)
    assert b"SSLROOTCERT" not in production_build.template.read_bytes()
    components = json.loads((production_build.zip.parent / sbom.NAME).read_text())["components"]
    assert sources.AUTHORITY in [component["name"] for component in components]


def test_rebuild_of_a_zip_leaves_no_old_files(aws_build: AwsBuild, rebuilt: AwsBuild) -> None:
    assert rebuilt.zip.read_bytes() == aws_build.zip.read_bytes()
    assert json.loads(rebuilt.template.read_text()) == json.loads(aws_build.template.read_text())


def test_build_for_another_architecture_has_its_binaries(production_build: AwsBuild) -> None:
    assert archive.faults(production_build.zip, REQUIREMENTS, other_architecture()) == []
    faults = archive.faults(production_build.zip, REQUIREMENTS, ARCHITECTURE)
    assert len(faults) > 3
    assert all(f"compiled for another machine than {ARCHITECTURE}" in fault for fault in faults)
    assert config_of(production_build)["lambda_architecture"] == other_architecture()


def without(prefix: str) -> Callable[[Members], Members]:
    return lambda members: {name: body for name, body in members.items() if not name.startswith(prefix)}


def with_member(name: str, body: bytes) -> Callable[[Members], Members]:
    return lambda members: {**members, name: body}


TIMESTAMPED_BYTECODE = b"".join((importlib.util.MAGIC_NUMBER, struct.pack("<I", 0), bytes(8)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("uuid_utils"), "uuid-utils==1.2.0 is pinned in requirements.txt but not in the zip"),
        (without("psycopg2_binary-"), "is pinned in requirements.txt but not in the zip"),
        (without("pydantic_core/_pydantic_core"), "of pydantic-core==2.50.4 is missing"),
        (without("typing_extensions.py"), "typing_extensions.py of typing-extensions==4.16.0 is missing"),
        (with_member("jwt/__init__.py", b""), "jwt is of no package that requirements.txt pins"),
        (with_member("boto3/session.py", b""), "boto3 is of no package that requirements.txt pins"),
        (without("__pycache__/app."), "app.py is not compiled"),
        (without("chalice/__pycache__/"), "chalice/app.py is not compiled"),
        (
            with_member(f"chalicelib/orders/__pycache__/repository.{PYC}", TIMESTAMPED_BYTECODE),
            "chalicelib/orders/repository.py is not compiled",
        ),
        (with_member("chalicelib/x.so", b"\x7fELF" + bytes(40)), "chalicelib/x.so is compiled for another"),
        (with_member("chalicelib/x.pyd", b"MZ"), "chalicelib/x.pyd is compiled for another system"),
    ],
)
def test_damaged_zip_is_reported(
    members: Members, tmp_path: Path, damage: Callable[[Members], Members], message: str
) -> None:
    damaged = write_zip(tmp_path, damage(members))

    assert any(message in fault for fault in archive.faults(damaged, REQUIREMENTS, ARCHITECTURE))


def test_valid_zip_has_no_faults(members: Members, tmp_path: Path) -> None:
    assert archive.faults(write_zip(tmp_path, members, ZIP_DEFLATED), REQUIREMENTS, ARCHITECTURE) == []


def test_zip_over_lambdas_size_limit_is_reported(members: Members, tmp_path: Path) -> None:
    (fault,) = archive.faults(
        write_zip(tmp_path, {**members, "chalicelib/large": bytes(archive.MAX_ZIP_BYTES)}),
        REQUIREMENTS,
        ARCHITECTURE,
    )

    assert "more than Lambda's 52,428,800" in fault


def test_zip_fault_fails_the_build(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    module = project / "deploy" / "archive.py"
    module.write_text(module.read_text().replace("MAX_ZIP_BYTES = 50 * 1024 * 1024", "MAX_ZIP_BYTES = 1024"))
    (smallest,) = (pin for pin in pins.read(REQUIREMENTS) if pin.name == "annotated-types")
    (project / "deploy" / "requirements.txt").write_text(smallest.line)

    result = python_m_deploy("build", "aws", "--arch", ARCHITECTURE, project=project)

    assert result.returncode == 1
    assert "more than Lambda's 1,024" in result.stderr


def test_pin_without_a_lambda_wheel_fails_the_build(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    (project / "deploy" / "requirements.txt").write_text(f"psycopg2==2.9.11 --hash=sha256:{'0' * 64}\n")

    result = python_m_deploy("build", "aws", project=project)

    assert result.returncode != 0
    assert "Wheels are required for `psycopg2`" in result.stderr


@pytest.mark.parametrize("architecture", aws.ARCHITECTURES)
@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 13)], ids=str)
def test_every_pin_has_a_wheel_for_lambda(architecture: str, python: tuple[int, int], tmp_path: Path) -> None:
    version = f"{python[0]}.{python[1]}"
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--no-config", "--no-deps"]
    command += ["--target", str(tmp_path), "--requirement", str(REQUIREMENTS), "--python-version", version]

    result = subprocess.run(
        [*command, *aws.wheels(architecture, python)], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr
    assert "Would install" in result.stderr


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({"AUTH_PROVIDER": "entra"}, [], "AUTH_PROVIDER is 'entra'"),
        ({"SUBNET_IDS": "subnet-1"}, [], "SUBNET_IDS and SECURITY_GROUP_IDS go together"),
        ({"SECURITY_GROUP_IDS": "sg-1"}, [], "SUBNET_IDS and SECURITY_GROUP_IDS go together"),
        ({"CORS_ORIGIN": "shop.example"}, [], "CORS_ORIGIN is 'shop.example'"),
        ({"DEFAULT_CURRENCY": "EURO"}, [], "DEFAULT_CURRENCY is 'EURO'"),
        ({"COGNITO_USER_POOL_ARN": "shops"}, [], "COGNITO_USER_POOL_ARN is 'shops'"),
        ({}, ["--stage", "staging"], "STAGE is 'staging': .chalice/config.json has dev, prod"),
    ],
)
def test_invalid_setting_is_reported_before_building(
    variables: dict[str, str], arguments: list[str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "build"

    result = python_m_deploy("build", "aws", "--into", folder, *arguments, variables=variables)

    assert result.returncode == 1
    assert message in result.stderr
    assert not folder.exists()


@pytest.mark.parametrize("python", [(3, 11), (3, 10)], ids=str)
def test_snapstart_is_refused_before_python_3_12(python: tuple[int, int]) -> None:
    with pytest.raises(SystemExit, match=r"SNAPSTART=on needs Python 3\.12 or later.* this is 3\.1[01]\."):
        aws_configuration.refuse_without_snapstart(python)

    for newer in ((3, 12), (3, 13)):
        aws_configuration.refuse_without_snapstart(newer)


def test_snapstart_builds_only_on_a_supported_python(tmp_path: Path) -> None:
    folder = tmp_path / "build"

    result = python_m_deploy("build", "aws", "--into", folder, "--arch", ARCHITECTURE, "--snapstart", "on")

    if sys.version_info < (3, 12):
        assert (result.returncode, folder.exists()) == (1, False)
        assert "SNAPSTART=on needs Python 3.12 or later" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        function = json.loads(AwsBuild(folder).template.read_text())["Resources"]["APIHandler"]["Properties"]
        assert function["SnapStart"] == {"ApplyOn": "PublishedVersions"}


def test_chalice_deploy_refuses_a_snapstart_build(aws_build: AwsBuild, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    template = json.loads(aws_build.template.read_text())
    template["Resources"]["APIHandler"]["Properties"]["SnapStart"] = {"ApplyOn": "PublishedVersions"}
    (package / "sam.json").write_text(json.dumps(template))

    result = python_m_deploy("deploy", "aws", "--from", tmp_path)

    assert result.returncode == 1
    assert "SNAPSTART=on needs VIA=sam" in result.stderr


def test_zip_is_world_readable_under_any_umask(rebuilt: AwsBuild) -> None:
    """On Lambda another user than the owner of the files runs them."""
    with ZipFile(rebuilt.zip) as zipped:
        assert {oct(member.external_attr >> 16) for member in zipped.infolist()} == {"0o644"}
    (deployed,) = (rebuilt.folder / ".chalice/deployments").glob("*.zip")
    assert deployed.read_bytes() == rebuilt.zip.read_bytes()


def test_empty_requirements_file_does_not_mark_a_build(tmp_path: Path) -> None:
    for name in ("requirements.txt", "thesis.txt"):
        (tmp_path / name).touch()

    result = python_m_deploy("build", "aws", "--into", tmp_path)

    assert (result.returncode, (tmp_path / "thesis.txt").exists()) == (1, True)


def test_aws_build_refuses_a_folder_without_a_build(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    before = sorted(project.iterdir())

    result = python_m_deploy("build", "aws", "--into", project)

    assert result.returncode == 1
    assert f"{project} is not a build of this project" in result.stderr
    assert sorted(project.iterdir()) == before


def test_build_environment_becomes_the_stage_configuration(production_build: AwsBuild) -> None:
    stages = config_of(production_build)["stages"]

    assert list(stages) == ["prod"]
    assert stages["prod"]["subnet_ids"] == ["subnet-1", "subnet-2"]
    assert stages["prod"]["security_group_ids"] == ["sg-1"]
    assert stages["prod"]["environment_variables"] == {
        "COGNITO_USER_POOL_ARN": POOL_ARN,
        "CORS_ORIGIN": "https://shop.example",
        "DB_HOST": "db.example",
        "DB_PASSWORD": SECRET_ARN,
    }


def test_build_environment_becomes_the_template_defaults(production_build: AwsBuild) -> None:
    text = production_build.template.read_text()
    template = json.loads(text)

    defaults = {name: parameter.get("Default") for name, parameter in template["Parameters"].items()}

    assert defaults == {
        "AlarmTopicArn": "",
        "CognitoUserPoolArn": POOL_ARN,
        "DBHost": "db.example",
        "DBName": "",
        "DBPassword": "",
        "DBPasswordSecretArn": SECRET_ARN,
        "DBPort": "5432",
        "DBUser": "",
        "SecurityGroupIds": "sg-1",
        "SubnetIds": "subnet-1,subnet-2",
    }
    assert template["Resources"]["ApiHandlerLogGroup"]["Properties"]["RetentionInDays"] == 90
    assert "hunter2" not in text
    assert "'https://shop.example'" in text
    assert "\"'*'\"" not in text


def test_role_policy_allows_secret_network_and_log(
    production_build: AwsBuild,
) -> None:
    policy = json.loads((production_build.folder / ".chalice" / "policy-prod.json").read_text())

    allowed = {
        action: statement["Resource"] for statement in policy["Statement"] for action in statement["Action"]
    }

    assert allowed["secretsmanager:GetSecretValue"] == SECRET_ARN
    group = "arn:*:logs:*:*:log-group:/aws/lambda/order-api-prod"
    assert allowed["logs:PutLogEvents"] == [group, f"{group}:*"]
    assert "ec2:CreateNetworkInterface" in allowed


def test_plain_password_stays_in_an_owner_only_file(aws_build: AwsBuild, rebuilt: AwsBuild) -> None:
    assert "hunter2" in (rebuilt.folder / ".chalice" / "config.json").read_text()
    for build in (aws_build, rebuilt):  # under the usual umask and a strict one
        assert stat.S_IMODE((build.folder / ".chalice" / "config.json").stat().st_mode) == 0o600
    assert "hunter2" not in rebuilt.template.read_text()
    assert b"hunter2" not in rebuilt.zip.read_bytes()
    policy = (rebuilt.folder / ".chalice" / "policy-dev.json").read_text()
    assert "secretsmanager" not in policy
    assert "ec2" not in policy


def test_chalice_can_package_the_unbuilt_project(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    (project / "requirements.txt").write_text("")  # only the configuration is tested

    result = subprocess.run(
        [aws.chalice_command(), "package", "--stage", "prod", "out"],
        cwd=project,
        env={"PATH": "", "AWS_DEFAULT_REGION": "eu-west-1", "COGNITO_USER_POOL_ARN": POOL_ARN},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    template = json.loads((project / "out" / "sam.json").read_text())
    assert template["Resources"]["APIHandler"]["Properties"]["Architectures"] == ["arm64"]
