"""The SAM template, checked with AWS's translator and linters; and the OpenAPI document."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy import aws
from local.environments import environment
from tests.support.builds import PROJECT, AwsBuild
from tools.client import Client

pytestmark = pytest.mark.slow

VARIABLE_HEADERS = ("x-request-id", "content-length", "date", "server")
REDOCLY = "@redocly/cli@2.77.0"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def template(aws_build: AwsBuild) -> Json:
    document: Json = json.loads(aws_build.template.read_text())
    return document


@pytest.fixture(scope="module")
def translations(aws_build: AwsBuild, with_snapstart: AwsBuild) -> list[Json]:
    """The CloudFormation templates of the build on demand and of that with SnapStart."""
    return translate_with_sam(aws_build.template.read_text(), with_snapstart.template.read_text())


@pytest.fixture(scope="module")
def translated(translations: list[Json]) -> Json:
    return translations[0]


@pytest.fixture(scope="module")
def with_snapstart(
    aws_build: AwsBuild,
    app: Any,  # noqa: ARG001 (packaging reads it)
    tmp_path_factory: pytest.TempPathFactory,
) -> AwsBuild:
    """The build packaged with SNAPSTART=on, with a runtime that supports SnapStart."""
    build = AwsBuild(tmp_path_factory.mktemp("snapstart") / "build")
    shutil.copytree(aws_build.folder, build.folder, symlinks=True)
    package_with_snapstart(build)
    if sys.version_info < (3, 12):
        build.template.write_text(build.template.read_text().replace('"python3.11"', '"python3.12"'))
    return build


def package_with_snapstart(build: AwsBuild, **variables: str) -> str:
    """Packages the build again with SnapStart and these settings; returns the template's text."""
    config = json.loads((build.folder / ".chalice" / "config.json").read_text())
    config["stages"]["dev"]["environment_variables"] = variables
    (build.folder / ".chalice" / "config.json").write_text(json.dumps(config))
    aws.package(build.folder, "dev", config, snapstart=True)
    return build.template.read_text()


def translate_with_sam(*templates: str) -> list[Json]:
    """The CloudFormation templates that SAM makes from these."""
    result = subprocess.run(
        [environment("template"), PROJECT / "tests" / "support" / "sam_translated.py"],
        input="[" + ",".join(templates) + "]",
        env={**os.environ, "AWS_DEFAULT_REGION": "eu-west-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    documents: list[Json] = json.loads(result.stdout)
    return documents


@pytest.fixture(scope="module")
def api(translated: Json) -> Json:
    """The OpenAPI document that API Gateway imports."""
    body: Json = translated["Resources"]["RestAPI"]["Properties"]["Body"]
    return body


@pytest.fixture(scope="module")
def gateway_responses(api: Json) -> Json:
    responses: Json = api["x-amazon-apigateway-gateway-responses"]
    return responses


def resource(template: Json, kind: str) -> Json:
    (match,) = (candidate for candidate in template["Resources"].values() if candidate["Type"] == kind)
    properties: Json = match["Properties"]
    return properties


def run_checker(*command: str | Path) -> str:
    """Runs a checker, which must succeed; returns its output."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_cfn_lint_passes_on_the_translated_templates(translations: list[Json], tmp_path: Path) -> None:
    """On demand and from snapshots. In SAM's own templates cfn-lint finds less."""
    paths = [tmp_path / "on-demand.json", tmp_path / "from-snapshots.json"]
    for path, template in zip(paths, translations, strict=True):
        path.write_text(json.dumps(template))

    run_checker(Path(sys.executable).with_name("cfn-lint"), *paths)


def test_checkov_fails_only_checks_skipped_with_a_reason(
    aws_build: AwsBuild, with_snapstart: AwsBuild, tmp_path: Path
) -> None:
    lines = (PROJECT / ".checkov.yaml").read_text().splitlines()
    skipped = {line.split()[1] for line in lines if line.startswith("  - ")}
    checkov = environment("template").with_name("checkov")
    templates = {str(build.template) for build in (aws_build, with_snapstart)}

    report = subprocess.run(
        [checkov, "-f", *templates, "--framework", "cloudformation", "-o", "json", "--skip-download"],
        cwd=tmp_path,  # in the project's folder it would read .checkov.yaml
        capture_output=True,
        check=False,
    )

    failed = {
        (check["file_abs_path"], check["check_id"])
        for check in json.loads(report.stdout)["results"]["failed_checks"]
    }
    assert failed == {(template, check) for template in templates for check in skipped}
    for before, line in pairwise(lines):
        assert not line.startswith("  - ") or before.startswith("  # ")


def test_redocly_passes_on_the_openapi_document(alice: Client, tmp_path: Path) -> None:
    npx = shutil.which("npx")
    if npx is None:
        assert not os.environ.get("CI"), "npx is missing: make system-packages"
        pytest.skip("npx is missing: the OpenAPI document is not linted (make system-packages)")
    document = tmp_path / "openapi.json"
    document.write_bytes(alice.get("/openapi.json").body)

    output = run_checker(npx, "--yes", REDOCLY, "lint", "--config", "redocly.yaml", document)

    assert "Warning was generated" not in output


def test_template_has_database_and_user_pool_parameters(template: Json) -> None:
    parameters = template["Parameters"]

    assert {"DBHost", "DBName", "DBUser", "DBPassword", "DBPasswordSecretArn", "CognitoUserPoolArn"} <= set(
        parameters
    )
    assert parameters["DBPassword"]["NoEcho"] is True
    assert "Default" not in parameters["CognitoUserPoolArn"]
    assert "OrderApiUrl" in template["Outputs"]


def test_placeholder_user_pool_is_not_in_the_template(aws_build: AwsBuild) -> None:
    assert "userpool/us-east-1_none" not in aws_build.template.read_text()


def test_function_matches_config_json(translated: Json) -> None:
    function = resource(translated, "AWS::Lambda::Function")

    assert function["Timeout"] < 29, "API Gateway waits 29 seconds"
    assert function["TracingConfig"] == {"Mode": "Active"}
    assert function["Runtime"] == f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert resource(translated, "AWS::Logs::LogGroup")["RetentionInDays"] == 14
    assert function["LoggingConfig"] == {"LogGroup": {"Ref": "ApiHandlerLogGroup"}}


def test_function_settings_come_from_the_parameters(translated: Json) -> None:
    function = resource(translated, "AWS::Lambda::Function")

    variables = function["Environment"]["Variables"]

    assert variables.pop("DB_PASSWORD") == {
        "Fn::If": ["HasSecret", {"Ref": "DBPasswordSecretArn"}, {"Ref": "DBPassword"}]
    }
    assert variables == {
        "COGNITO_USER_POOL_ARN": {"Ref": "CognitoUserPoolArn"},
        "DB_HOST": {"Ref": "DBHost"},
        "DB_NAME": {"Ref": "DBName"},
        "DB_PORT": {"Ref": "DBPort"},
        "DB_USER": {"Ref": "DBUser"},
    }
    network = {"SubnetIds": {"Ref": "SubnetIds"}, "SecurityGroupIds": {"Ref": "SecurityGroupIds"}}
    assert function["VpcConfig"] == {"Fn::If": ["InVpc", network, {"Ref": "AWS::NoValue"}]}


DATABASE = {"DBHost": "db.example", "DBName": "orders", "DBUser": "orders_app"}
NO_DATABASE = {"DBHost": "", "DBName": "", "DBUser": ""}
PASSWORD, SECRET = {"DBPassword": "hunter2"}, {"DBPasswordSecretArn": "arn:aws:secretsmanager:..."}


@pytest.mark.parametrize(
    ("parameters", "broken"),
    [
        ({**DATABASE, **PASSWORD}, []),
        ({**DATABASE, **SECRET}, []),
        (SECRET, []),
        (DATABASE, ["OnePassword"]),
        ({**DATABASE, **PASSWORD, **SECRET}, ["OnePassword"]),
        (PASSWORD, ["DatabaseIsNamed"]),
        ({**DATABASE, **PASSWORD, "DBName": ""}, ["DatabaseIsNamed"]),
    ],
)
def test_template_requires_one_password_and_a_database(
    template: Json, parameters: dict[str, str], broken: list[str]
) -> None:
    values = {**NO_DATABASE, "DBPassword": "", "DBPasswordSecretArn": "", **parameters}

    failed_rules = [
        name
        for name, rule in template["Rules"].items()
        if evaluate(rule.get("RuleCondition", True), values)
        and not all(evaluate(assertion["Assert"], values) for assertion in rule["Assertions"])
    ]

    assert failed_rules == broken


@pytest.mark.parametrize(("subnets", "in_vpc"), [([], False), (["subnet-1", "subnet-2"], True)])
def test_function_is_in_a_vpc_with_subnets_only(template: Json, subnets: list[str], in_vpc: bool) -> None:
    assert evaluate(template["Conditions"]["InVpc"], {"SubnetIds": subnets}) is in_vpc


def evaluate(condition: Any, values: Mapping[str, Any]) -> Any:
    """Evaluates a CloudFormation condition."""
    if not isinstance(condition, dict):
        return condition
    ((function, operand),) = condition.items()
    if function == "Ref":
        return values[operand]
    if function == "Fn::Join":
        return operand[0].join(evaluate(operand[1], values))
    operands = [evaluate(part, values) for part in operand]
    return {
        "Fn::And": all(operands),
        "Fn::Or": any(operands),
        "Fn::Not": not operands[0],
        "Fn::Equals": operands[0] == operands[-1],
    }[function]


def test_snapstart_publishes_a_version_and_routes_to_it(translations: list[Json], app: Any) -> None:
    template = translations[1]
    (version, published), (alias, live) = (
        next((name, entry) for name, entry in template["Resources"].items() if entry["Type"] == kind)
        for kind in ("AWS::Lambda::Version", "AWS::Lambda::Alias")
    )
    api = resource(template, "AWS::ApiGateway::RestApi")["Body"]

    assert resource(template, "AWS::Lambda::Function")["SnapStart"] == {"ApplyOn": "PublishedVersions"}
    assert live["Properties"]["FunctionVersion"] == {"Fn::GetAtt": [version, "Version"]}
    assert published["DeletionPolicy"] == "Delete"
    assert resource(template, "AWS::Lambda::Permission")["FunctionName"] == {"Ref": alias}
    for path, methods in app.routes.items():
        for method in methods:
            uri = api["paths"][path][method.lower()]["x-amazon-apigateway-integration"]["uri"]
            text, variables = uri["Fn::Sub"]
            assert list(variables.values()) == [{"Ref": alias}]
            assert re.findall(r"\$\{(\w+)\}", text) == list(variables)


def test_snapstart_publishes_a_new_version_for_changed_settings(
    with_snapstart: AwsBuild, tmp_path: Path
) -> None:
    """The version's name does not depend on a plain password, so it cannot be used to guess one."""
    build = AwsBuild(tmp_path / "build")
    shutil.copytree(with_snapstart.folder, build.folder, symlinks=True)

    def version(template: Json) -> str:
        resources = template["Resources"]
        (logical_id,) = [name for name, entry in resources.items() if entry["Type"] == "AWS::Lambda::Version"]
        return str(logical_id)

    templates = translate_with_sam(
        package_with_snapstart(build, DB_HOST="one.example", DB_PASSWORD="hunter2"),
        package_with_snapstart(build, DB_HOST="one.example", DB_PASSWORD="hunter3"),
        package_with_snapstart(build, DB_HOST="other.example", DB_PASSWORD="hunter2"),
        package_with_snapstart(build, DB_HOST="one.example", DB_PASSWORD="hunter2", DB_POOL_RECYCLE="60"),
    )

    one, other_password, other_host, other_setting = map(version, templates)
    assert other_password == one
    assert len({one, other_host, other_setting}) == 3


def test_no_version_is_published_without_snapstart(translated: Json) -> None:
    kinds = {entry["Type"] for entry in translated["Resources"].values()}

    assert not kinds & {"AWS::Lambda::Version", "AWS::Lambda::Alias"}
    assert "SnapStart" not in resource(translated, "AWS::Lambda::Function")


def test_api_endpoint_is_regional(translated: Json) -> None:
    assert resource(translated, "AWS::ApiGateway::RestApi")["EndpointConfiguration"] == {
        "Types": ["REGIONAL"]
    }


def test_function_role_has_only_the_needed_permissions(translated: Json) -> None:
    (policy,) = resource(translated, "AWS::IAM::Role")["Policies"]
    nothing = {"Ref": "AWS::NoValue"}

    log, trace, secret, network, not_by_code = policy["PolicyDocument"]["Statement"]

    assert log["Resource"] == {"Fn::GetAtt": ["ApiHandlerLogGroup", "Arn"]}
    assert trace["Action"] == ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]
    assert secret["Fn::If"][0] == "HasSecret"
    assert secret["Fn::If"][1]["Action"] == ["secretsmanager:GetSecretValue"]
    assert secret["Fn::If"][1]["Resource"] == {"Ref": "DBPasswordSecretArn"}
    assert network["Fn::If"][0] == "InVpc"
    assert all(action.startswith("ec2:") for action in network["Fn::If"][1]["Action"])
    assert secret["Fn::If"][2] == network["Fn::If"][2] == not_by_code["Fn::If"][2] == nothing
    assert (not_by_code["Fn::If"][0], not_by_code["Fn::If"][1]["Effect"]) == ("InVpc", "Deny")


def test_cognito_authorizer_protects_exactly_the_token_routes(api: Json, app: Any) -> None:
    (authorizer,) = api["securityDefinitions"].values()

    assert authorizer["x-amazon-apigateway-authorizer"]["providerARNs"] == [{"Ref": "CognitoUserPoolArn"}]
    for path, methods in app.routes.items():
        for method, route in methods.items():
            assert bool(api["paths"][path][method.lower()].get("security")) == bool(route.authorizer)
    assert api["paths"]["/orders"]["post"]["security"] == [{"customers": []}]


def rendered(response: Json) -> tuple[str, dict[str, str], str]:
    """Status, headers and body of a gateway response, with the request id replaced."""
    headers = {
        name.removeprefix("gatewayresponse.header.").lower(): value.removeprefix("'").removesuffix("'")
        for name, value in response["responseParameters"].items()
    }
    assert headers.pop("x-request-id") == "context.requestId"
    (body,) = response["responseTemplates"].values()
    return response["statusCode"], headers, body.replace("$context.requestId", "<id>")


@pytest.mark.parametrize(
    ("kind", "method", "target", "body"),
    [
        ("UNAUTHORIZED", "GET", "/orders", b""),
        ("EXPIRED_TOKEN", "POST", "/orders", b"{}"),
        ("MISSING_AUTHENTICATION_TOKEN", "GET", "/nowhere", b""),
        ("RESOURCE_NOT_FOUND", "GET", "/orders/", b""),
        ("DEFAULT_4XX", "GET", "/nowhere", b""),
    ],
)
def test_api_gateway_error_bytes_equal_the_apps(
    gateway_responses: Json, anonymous: Client, kind: str, method: str, target: str, body: bytes
) -> None:
    response = anonymous.send(method, target, body)

    status, headers, template = rendered(gateway_responses[kind])

    assert (int(status), template) == (response.status, masked(response.body.decode()))
    assert headers == {
        name: value for name, value in response.headers.items() if name not in VARIABLE_HEADERS
    }


def test_api_gateway_413_equals_the_apps_413(gateway_responses: Json, alice: Client) -> None:
    response = alice.place(raw=b" " * (1024 * 1024 + 1))

    status, headers, template = rendered(gateway_responses["REQUEST_TOO_LARGE"])

    assert (int(status), template) == (response.status, masked(response.body.decode()))
    assert headers == {
        name: value for name, value in response.headers.items() if name not in VARIABLE_HEADERS
    }


def masked(body: str) -> str:
    return re.sub(r'"request_id":"[^"]*"', '"request_id":"<id>"', body)


@pytest.mark.parametrize(
    ("kind", "status", "slug"),
    [
        ("ACCESS_DENIED", 401, "unauthorized"),
        ("API_CONFIGURATION_ERROR", 500, "internal"),
        ("AUTHORIZER_CONFIGURATION_ERROR", 500, "internal"),
        ("AUTHORIZER_FAILURE", 500, "internal"),
        ("BAD_REQUEST_BODY", 400, "malformed-request"),
        ("BAD_REQUEST_PARAMETERS", 400, "malformed-request"),
        ("EXPIRED_TOKEN", 401, "unauthorized"),
        ("INTEGRATION_FAILURE", 503, "unavailable"),
        ("INTEGRATION_TIMEOUT", 503, "unavailable"),
        ("INVALID_API_KEY", 401, "unauthorized"),
        ("INVALID_SIGNATURE", 404, "not-found"),
        ("MISSING_AUTHENTICATION_TOKEN", 404, "not-found"),
        ("QUOTA_EXCEEDED", 429, "rate-limited"),
        ("REQUEST_TOO_LARGE", 413, "payload-too-large"),
        ("RESOURCE_NOT_FOUND", 404, "not-found"),
        ("THROTTLED", 429, "rate-limited"),
        ("UNAUTHORIZED", 401, "unauthorized"),
        ("UNSUPPORTED_MEDIA_TYPE", 415, "unsupported-media-type"),
        ("WAF_FILTERED", 400, "malformed-request"),
        ("DEFAULT_4XX", 404, "not-found"),
        ("DEFAULT_5XX", 500, "internal"),
    ],
)
def test_every_api_gateway_error_is_a_contract_problem(
    gateway_responses: Json, kind: str, status: int, slug: str
) -> None:
    response = gateway_responses.get(kind) or gateway_responses[f"DEFAULT_{status // 100}XX"]

    rendered_status, headers, body = rendered(response)

    assert (int(rendered_status), json.loads(body)["type"]) == (status, f"urn:order-api:problem:{slug}")
    assert json.loads(body)["status"] == status
    assert headers["content-type"] == "application/problem+json"
    assert headers["access-control-allow-origin"] == "*"
    assert ("retry-after" in headers) == (status in (429, 503))
    assert headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_api_gateway_preflight_has_the_common_headers(api: Json, anonymous: Client, app: Any) -> None:
    ordinary = anonymous.get("/health").headers
    common = set(ordinary) - set(VARIABLE_HEADERS)

    for path in app.routes:
        preflight = api["paths"][path]["options"]
        (response,) = preflight["x-amazon-apigateway-integration"]["responses"].values()
        preflight_headers = {
            name.removeprefix("method.response.header.").lower(): value
            for name, value in response["responseParameters"].items()
        }
        assert preflight_headers.pop("x-request-id") == "context.requestId"
        assert preflight_headers.pop("access-control-allow-methods").strip("'").split(",")[-1] == "OPTIONS"
        assert preflight_headers == {name: f"'{ordinary[name]}'" for name in common}
        assert {name.lower() for name in preflight["responses"]["200"]["headers"]} >= common | {
            "x-request-id"
        }
