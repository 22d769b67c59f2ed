"""`make deploy-aws` and `make gateway-responses`, as far as moto goes: it refuses Chalice's ImportRestApi."""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support import cognito
from tests.support.builds import PROJECT, AwsBuild, build_aws, python_m_deploy
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
    """The variables that lead to moto's server."""
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
def ready(tmp_path_factory: pytest.TempPathFactory) -> AwsBuild:
    """A build with everything that a deployment needs, which remembers deployments in itself."""
    build = build_aws(tmp_path_factory.mktemp("deploy") / "build", **SETTINGS)
    deployed = build.folder / ".chalice" / "deployed"
    deployed.unlink()
    deployed.mkdir()
    return build


def test_chalice_deploy_creates_role_and_function_from_zip(ready: AwsBuild, aws: dict[str, str]) -> None:
    done = python_m_deploy("deploy", "aws", "--from", ready.folder, variables=aws)

    assert "Creating lambda function: order-api-dev\n" in done.stdout, done.stdout + done.stderr
    assert "Reusing existing deployment package" in done.stdout
    assert "ImportRestApi" in done.stderr, (
        "moto takes Chalice's Swagger now: prove the rest of the deployment"
    )
    assert done.returncode != 0
    function = client(aws, "lambda").get_function(FunctionName="order-api-dev")["Configuration"]
    digest = base64.b64encode(hashlib.sha256(ready.zip.read_bytes()).digest()).decode()
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
    (found,) = (
        one for one in client(aws, "logs").describe_log_groups()["logGroups"] if one["logGroupName"] == group
    )
    assert found["retentionInDays"] == 14


@pytest.fixture
def rest_api(aws: dict[str, str]) -> str:
    """A REST API with one path, its preflight as Chalice makes it."""
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


def test_gateway_responses_match_the_template_and_are_deployed(
    ready: AwsBuild, aws: dict[str, str], rest_api: str
) -> None:
    gateway = client(aws, "apigateway")
    template = json.loads(ready.template.read_text())

    done = python_m_deploy(
        "gateway-responses", "--from", ready.folder, variables={**aws, "REST_API_ID": rest_api}
    )

    assert done.returncode == 0, done.stderr
    assert (
        as_in_the_template(gateway, rest_api)
        == template["Resources"]["RestAPI"]["Properties"]["GatewayResponses"]
    )
    (deployment,) = gateway.get_deployments(restApiId=rest_api)["items"]
    assert gateway.get_stage(restApiId=rest_api, stageName="api")["deploymentId"] == deployment["id"]


def as_in_the_template(gateway: Any, api: str) -> dict[str, Any]:
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


def test_setting_gateway_responses_twice_is_idempotent(
    ready: AwsBuild, aws: dict[str, str], rest_api: str
) -> None:
    gateway = client(aws, "apigateway")

    def put() -> tuple[Any, Any]:
        done = python_m_deploy(
            "gateway-responses", "--from", ready.folder, variables={**aws, "REST_API_ID": rest_api}
        )
        assert done.returncode == 0, done.stderr
        return as_in_the_template(gateway, rest_api), preflight_headers(gateway, rest_api)

    assert put() == put()


def test_gateway_responses_give_preflights_the_common_headers(
    ready: AwsBuild, aws: dict[str, str], rest_api: str, anonymous: Client
) -> None:
    gateway = client(aws, "apigateway")

    python_m_deploy("gateway-responses", "--from", ready.folder, variables={**aws, "REST_API_ID": rest_api})

    headers = preflight_headers(gateway, rest_api)
    ordinary = anonymous.get("/health").headers
    assert headers.pop("access-control-allow-methods") == "'POST,OPTIONS'"
    assert headers.pop("x-request-id") == "context.requestId"
    assert headers == {
        name: f"'{value}'"
        for name, value in ordinary.items()
        if name not in ("x-request-id", "content-length", "date", "server")
    }


def preflight_headers(gateway: Any, api: str) -> dict[str, str]:
    (orders,) = (one for one in gateway.get_resources(restApiId=api)["items"] if one["path"] == "/orders")
    preflight = {"restApiId": api, "resourceId": orders["id"], "httpMethod": "OPTIONS", "statusCode": "200"}
    mapped = gateway.get_integration_response(**preflight)["responseParameters"]
    declared = gateway.get_method_response(**preflight)["responseParameters"]
    assert set(mapped) == set(declared)
    return {name.removeprefix("method.response.header.").lower(): value for name, value in mapped.items()}


def test_gateway_responses_use_the_api_chalice_deployed(
    ready: AwsBuild, aws: dict[str, str], rest_api: str, tmp_path: Path
) -> None:
    folder = tmp_path / "build"
    shutil.copytree(ready.folder / ".chalice", folder / ".chalice")
    deployed = {"name": "rest_api", "resource_type": "rest_api", "rest_api_id": rest_api}
    (folder / ".chalice" / "deployed" / "dev.json").write_text(
        json.dumps({"schema_version": "2.0", "resources": [deployed]})
    )

    done = python_m_deploy("gateway-responses", "--from", folder, variables=aws)

    assert done.returncode == 0, done.stderr
    assert client(aws, "apigateway").get_gateway_responses(restApiId=rest_api)["items"]


NO_PROFILE = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
ALONE = {**NO_PROFILE, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (["--from", "nowhere"], KEYS, "nowhere is not there: run make build-aws STAGE=dev first"),
        (["--stage", "prod"], KEYS, "was built for dev: run make build-aws STAGE=prod first"),
        ([], KEYS, "AWS_REGION is not set"),
        ([], {"AWS_REGION": REGION}, "No AWS credentials: run aws configure"),
    ],
)
@pytest.mark.parametrize("command", [["deploy", "aws"], ["gateway-responses"]], ids=" ".join)
def test_missing_prerequisite_is_reported_before_deploying(
    ready: AwsBuild, command: list[str], arguments: list[str], variables: dict[str, str], said: str
) -> None:
    done = python_m_deploy(*command, "--from", ready.folder, *arguments, variables={**ALONE, **variables})

    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.parametrize("missing", SETTINGS)
def test_missing_required_setting_stops_the_deploy(
    ready: AwsBuild, aws: dict[str, str], tmp_path: Path, missing: str
) -> None:
    """A secret may name host, database and user; a password does not."""
    variables = {**SETTINGS, "DB_PASSWORD": "hunter2"}
    del variables[missing]

    done = python_m_deploy("deploy", "aws", "--from", built_with(variables, ready, tmp_path), variables=aws)

    assert (done.returncode, done.stdout) == (1, "")
    assert f"{missing} is not set" in done.stderr
    assert "hunter2" not in done.stderr


def built_with(variables: dict[str, str], ready: AwsBuild, folder: Path) -> Path:
    shutil.copytree(ready.folder / ".chalice", folder / ".chalice")
    file = folder / ".chalice" / "config.json"
    config = json.loads(file.read_text())
    config["stages"]["dev"]["environment_variables"] = variables
    file.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
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
    ready: AwsBuild, aws: dict[str, str], tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    folder = built_with({**SETTINGS, **changes}, ready, tmp_path / "build")

    done = python_m_deploy(
        "deploy", "aws", "--via", "sam", "--from", folder, variables={**aws, **recording("sam", tmp_path)}
    )

    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "arguments").exists()


def test_missing_sam_is_reported_before_deploying(
    ready: AwsBuild, aws: dict[str, str], tmp_path: Path
) -> None:
    variables = {**aws, "PATH": str(tmp_path)}

    done = python_m_deploy("deploy", "aws", "--via", "sam", "--from", ready.folder, variables=variables)

    assert (done.returncode, done.stdout) == (1, "")
    assert "sam is missing. To get it: pipx install aws-sam-cli" in done.stderr


def test_sam_gets_the_template_and_its_parameters(
    ready: AwsBuild, aws: dict[str, str], tmp_path: Path
) -> None:
    done = python_m_deploy(
        "deploy",
        "aws",
        "--via",
        "sam",
        "--from",
        ready.folder,
        variables={**aws, **recording("sam", tmp_path), "ALARM_TOPIC_ARN": TOPIC},
    )

    assert done.returncode == 0, done.stderr
    said = (tmp_path / "arguments").read_text().splitlines()
    assert said[:3] == ["deploy", "--template-file", "package/sam.json"]
    assert "--resolve-s3" in said
    parameters = dict(part.split("=", 1) for part in said[said.index("--parameter-overrides") + 1 :])
    assert set(parameters.values()) == {*SETTINGS.values(), TOPIC}
    assert parameters["AlarmTopicArn"] == TOPIC
    assert set(parameters) <= set(json.loads(ready.template.read_text())["Parameters"])
    assert (tmp_path / "folder").read_text().strip() == str(ready.folder)
    assert (tmp_path / "region").read_text().strip() == REGION


def test_sam_deploy_refuses_a_plain_password(ready: AwsBuild, aws: dict[str, str], tmp_path: Path) -> None:
    folder = built_with({**SETTINGS, "DB_PASSWORD": "hunter2"}, ready, tmp_path / "build")

    done = python_m_deploy(
        "deploy", "aws", "--via", "sam", "--from", folder, variables={**aws, **recording("sam", tmp_path)}
    )

    assert done.returncode == 1
    assert "put it into Secrets Manager" in done.stderr
    assert "hunter2" not in done.stderr
    assert not (tmp_path / "arguments").exists()


def recording(name: str, folder: Path) -> dict[str, str]:
    """A PATH on which that command writes down how it was called; SAM's own is not on this machine."""
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
