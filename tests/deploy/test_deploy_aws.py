"""`make deploy-aws` and `make gateway-responses` against moto, which does not support ImportRestApi."""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support import cognito
from tests.support.builds import PROJECT, AwsBuild, python_m_deploy
from tools.client import Client

pytestmark = pytest.mark.slow

REGION = "eu-west-1"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
TOPIC = "arn:aws:sns:eu-west-1:123456789012:on-call"
SETTINGS = {
    "COGNITO_USER_POOL_ARN": "arn:aws:cognito-idp:eu-west-1:123456789012:userpool/eu-west-1_AbCdEfGhI",
    "DB_HOST": "db.example",
    "DB_NAME": "orders",
    "DB_PASSWORD": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders-AbCdEf",
    "DB_USER": "orders_app",
}


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, str]]:
    """Environment variables that point AWS clients to moto's server."""
    server, endpoint = cognito.start()
    yield {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": endpoint}
    server.stop()


def client(aws: dict[str, str], service: str) -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=aws["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@pytest.fixture(scope="module")
def complete_build(aws_build: AwsBuild, tmp_path_factory: pytest.TempPathFactory) -> AwsBuild:
    """The build with all required settings; it keeps deployment records in its own folder."""
    folder = tmp_path_factory.mktemp("deploy") / "build"
    shutil.copytree(aws_build.folder, folder, symlinks=True)
    set_variables(folder, SETTINGS)
    deployed = folder / ".chalice" / "deployed"
    deployed.unlink()
    deployed.mkdir()
    return AwsBuild(folder)


def set_variables(folder: Path, variables: dict[str, str]) -> None:
    """The function's variables, as a build writes them."""
    file = folder / ".chalice" / "config.json"
    config = json.loads(file.read_text())
    config["stages"]["dev"]["environment_variables"] = variables
    file.write_text(json.dumps(config))


def test_chalice_deploy_creates_role_and_function_from_zip(
    complete_build: AwsBuild, aws: dict[str, str]
) -> None:
    result = python_m_deploy("deploy", "aws", "--from", complete_build.folder, variables=aws)

    assert "Creating lambda function: order-api-dev\n" in result.stdout, result.stdout + result.stderr
    assert "Reusing existing deployment package" in result.stdout
    assert "ImportRestApi" in result.stderr, (
        "moto supports Chalice's Swagger now: test the rest of the deployment too"
    )
    assert result.returncode != 0
    function = client(aws, "lambda").get_function(FunctionName="order-api-dev")["Configuration"]
    digest = base64.b64encode(hashlib.sha256(complete_build.zip.read_bytes()).digest()).decode()
    assert function["CodeSha256"] == digest
    assert function["Timeout"] == 28
    assert function["Environment"]["Variables"] == SETTINGS
    assert function["TracingConfig"]["Mode"] == "Active"
    (role,) = client(aws, "iam").list_roles()["Roles"]
    assert function["Role"] == role["Arn"]
    assert role["RoleName"] == "order-api-dev-api_handler"
    policy = client(aws, "iam").get_role_policy(RoleName=role["RoleName"], PolicyName=role["RoleName"])
    group = "/aws/lambda/order-api-dev"
    assert f"arn:*:logs:*:*:log-group:{group}:*" in policy["PolicyDocument"]["Statement"][0]["Resource"]
    (log_group,) = (
        candidate
        for candidate in client(aws, "logs").describe_log_groups()["logGroups"]
        if candidate["logGroupName"] == group
    )
    assert log_group["retentionInDays"] == 14


@pytest.fixture(scope="module")
def rest_api(aws: dict[str, str]) -> str:
    """A REST API with one path and a preflight like Chalice's."""
    gateway = client(aws, "apigateway")
    api: str = gateway.create_rest_api(name="order-api")["id"]
    root = gateway.get_resources(restApiId=api)["items"][0]["id"]
    orders = gateway.create_resource(restApiId=api, parentId=root, pathPart="orders")["id"]
    preflight = {"restApiId": api, "resourceId": orders, "httpMethod": "OPTIONS"}
    gateway.put_method(**preflight, authorizationType="NONE")
    gateway.put_integration(**preflight, type="MOCK", requestTemplates={"application/json": "{}"})
    origin = "method.response.header.Access-Control-Allow-Methods"
    gateway.put_method_response(**preflight, statusCode="200", responseParameters={origin: False})
    gateway.put_integration_response(
        **preflight, statusCode="200", responseParameters={origin: "'POST,OPTIONS'"}, responseTemplates={}
    )
    return api


@dataclass(frozen=True)
class ApiState:
    """A REST API after `make gateway-responses`."""

    gateway_responses: dict[str, Any]
    preflight_headers: dict[str, str]
    deployment: str
    """The id of its stage's deployment."""


def put_gateway_responses(folder: Path, aws: dict[str, str], rest_api: str, **variables: str) -> ApiState:
    result = python_m_deploy("gateway-responses", "--from", folder, variables={**aws, **variables})
    assert result.returncode == 0, result.stderr
    gateway = client(aws, "apigateway")
    return ApiState(
        gateway_responses(gateway, rest_api),
        preflight_headers(gateway, rest_api),
        gateway.get_stage(restApiId=rest_api, stageName="api")["deploymentId"],
    )


@pytest.fixture(scope="module")
def api_state(complete_build: AwsBuild, aws: dict[str, str], rest_api: str) -> ApiState:
    """The API, named by REST_API_ID, after the first call."""
    return put_gateway_responses(complete_build.folder, aws, rest_api, REST_API_ID=rest_api)


def test_gateway_responses_match_the_template_and_are_deployed(
    complete_build: AwsBuild, aws: dict[str, str], rest_api: str, api_state: ApiState
) -> None:
    template = json.loads(complete_build.template.read_text())

    assert api_state.gateway_responses == template["Resources"]["RestAPI"]["Properties"]["GatewayResponses"]
    deployments = client(aws, "apigateway").get_deployments(restApiId=rest_api)["items"]
    assert api_state.deployment in [deployment["id"] for deployment in deployments]


def gateway_responses(gateway: Any, api: str) -> dict[str, Any]:
    return {
        response["responseType"]: {
            "StatusCode": response["statusCode"],
            "ResponseParameters": {
                "Headers": {
                    name.removeprefix("gatewayresponse.header."): value
                    for name, value in response["responseParameters"].items()
                }
            },
            "ResponseTemplates": response["responseTemplates"],
        }
        for response in gateway.get_gateway_responses(restApiId=api)["items"]
    }


def test_gateway_responses_give_preflights_the_common_headers(api_state: ApiState, anonymous: Client) -> None:
    headers = {**api_state.preflight_headers}
    ordinary = anonymous.get("/health").headers

    assert headers.pop("access-control-allow-methods") == "'POST,OPTIONS'"
    assert headers.pop("x-request-id") == "context.requestId"
    assert headers == {
        name: f"'{value}'"
        for name, value in ordinary.items()
        if name not in ("x-request-id", "content-length", "date", "server")
    }


def preflight_headers(gateway: Any, api: str) -> dict[str, str]:
    (orders,) = (
        resource
        for resource in gateway.get_resources(restApiId=api)["items"]
        if resource["path"] == "/orders"
    )
    preflight = {"restApiId": api, "resourceId": orders["id"], "httpMethod": "OPTIONS", "statusCode": "200"}
    mapped = gateway.get_integration_response(**preflight)["responseParameters"]
    declared = gateway.get_method_response(**preflight)["responseParameters"]
    assert set(mapped) == set(declared)
    return {name.removeprefix("method.response.header.").lower(): value for name, value in mapped.items()}


def test_gateway_responses_use_the_api_chalice_deployed_and_are_idempotent(
    complete_build: AwsBuild, aws: dict[str, str], rest_api: str, api_state: ApiState, tmp_path: Path
) -> None:
    folder = tmp_path / "build"
    shutil.copytree(complete_build.folder / ".chalice", folder / ".chalice")
    deployed = {"name": "rest_api", "resource_type": "rest_api", "rest_api_id": rest_api}
    (folder / ".chalice" / "deployed" / "dev.json").write_text(
        json.dumps({"schema_version": "2.0", "resources": [deployed]})
    )

    again = put_gateway_responses(folder, aws, rest_api)

    assert again.deployment != api_state.deployment
    assert again == replace(api_state, deployment=again.deployment)


NO_PROFILE = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
NO_CREDENTIALS = {**NO_PROFILE, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--from", "nowhere"], KEYS, "nowhere is not there: run make build-aws STAGE=dev first"),
        (["--stage", "prod"], KEYS, "was built for dev: run make build-aws STAGE=prod first"),
        ([], KEYS, "AWS_REGION is not set"),
        ([], {"AWS_REGION": REGION}, "No AWS credentials: run aws configure"),
    ],
)
@pytest.mark.parametrize("command", [["deploy", "aws"], ["gateway-responses"]], ids=" ".join)
def test_missing_prerequisite_is_reported_before_deploying(
    complete_build: AwsBuild,
    command: list[str],
    arguments: list[str],
    variables: dict[str, str],
    message: str,
) -> None:
    result = python_m_deploy(
        *command, "--from", complete_build.folder, *arguments, variables={**NO_CREDENTIALS, **variables}
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr


@pytest.mark.parametrize("missing", SETTINGS)
def test_missing_required_setting_stops_the_deploy(
    complete_build: AwsBuild, aws: dict[str, str], tmp_path: Path, missing: str
) -> None:
    """A secret can contain host, database and user; with a plain password they are required."""
    variables = {**SETTINGS, "DB_PASSWORD": "hunter2"}
    del variables[missing]

    result = python_m_deploy(
        "deploy", "aws", "--from", built_with(variables, complete_build, tmp_path), variables=aws
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert f"{missing} is not set" in result.stderr
    assert "hunter2" not in result.stderr


def built_with(variables: dict[str, str], complete_build: AwsBuild, folder: Path) -> Path:
    shutil.copytree(complete_build.folder / ".chalice", folder / ".chalice")
    set_variables(folder, variables)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DB_SSLMODE": "bogus"}, "The function would not start. DB_SSLMODE is 'bogus'"),
        ({"DB_POOL_MAX": "many"}, "The function would not start. DB_POOL_MAX is 'many'"),
        ({"RATE_LIMIT": "lots"}, "The function would not start. RATE_LIMIT is 'lots'"),
        (
            {"DB_PASSWORD": SETTINGS["DB_PASSWORD"][:-7]},
            "The function would not start. DB_PASSWORD looks like",
        ),
        ({"DB_PASSWORD": "projects/p/secrets/s"}, "the zip reads secrets of AWS Secrets Manager only"),
    ],
    ids=str,
)
def test_setting_that_prevents_startup_is_reported(
    complete_build: AwsBuild, aws: dict[str, str], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    folder = built_with({**SETTINGS, **changes}, complete_build, tmp_path / "build")

    result = python_m_deploy(
        "deploy",
        "aws",
        "--via",
        "sam",
        "--from",
        folder,
        variables={**aws, **recording_command("sam", tmp_path)},
    )

    assert result.returncode == 1
    assert message in result.stderr
    assert not (tmp_path / "arguments").exists()


def test_missing_sam_is_reported_before_deploying(
    complete_build: AwsBuild, aws: dict[str, str], tmp_path: Path
) -> None:
    variables = {**aws, "PATH": str(tmp_path)}

    result = python_m_deploy(
        "deploy", "aws", "--via", "sam", "--from", complete_build.folder, variables=variables
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert "sam is missing. To get it: pipx install aws-sam-cli" in result.stderr


def test_sam_gets_the_template_and_its_parameters(
    complete_build: AwsBuild, aws: dict[str, str], tmp_path: Path
) -> None:
    result = python_m_deploy(
        "deploy",
        "aws",
        "--via",
        "sam",
        "--from",
        complete_build.folder,
        variables={**aws, **recording_command("sam", tmp_path), "ALARM_TOPIC_ARN": TOPIC},
    )

    assert result.returncode == 0, result.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:3] == ["deploy", "--template-file", "package/sam.json"]
    assert "--resolve-s3" in arguments
    parameters = dict(
        part.split("=", 1) for part in arguments[arguments.index("--parameter-overrides") + 1 :]
    )
    assert set(parameters.values()) == {*SETTINGS.values(), TOPIC}
    assert parameters["AlarmTopicArn"] == TOPIC
    assert set(parameters) <= set(json.loads(complete_build.template.read_text())["Parameters"])
    assert (tmp_path / "folder").read_text().strip() == str(complete_build.folder)
    assert (tmp_path / "region").read_text().strip() == REGION


def test_sam_deploy_refuses_a_plain_password(
    complete_build: AwsBuild, aws: dict[str, str], tmp_path: Path
) -> None:
    folder = built_with({**SETTINGS, "DB_PASSWORD": "hunter2"}, complete_build, tmp_path / "build")

    result = python_m_deploy(
        "deploy",
        "aws",
        "--via",
        "sam",
        "--from",
        folder,
        variables={**aws, **recording_command("sam", tmp_path)},
    )

    assert result.returncode == 1
    assert "put it into Secrets Manager" in result.stderr
    assert "hunter2" not in result.stderr
    assert not (tmp_path / "arguments").exists()


def recording_command(name: str, folder: Path) -> dict[str, str]:
    """Variables whose PATH has a fake command of this name that records its call; SAM is not installed."""
    command = folder / name
    command.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\npwd > {folder}/folder\n'
        f'echo "$AWS_DEFAULT_REGION" > {folder}/region\n'
    )
    command.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_make_has_the_targets() -> None:
    makefile = (PROJECT / "Makefile").read_text()

    for target in ("build-aws", "deploy-aws", "gateway-responses"):
        assert f"\n{target}:" in makefile
