"""The function role's permissions: no wildcard actions, wildcard resources only where AWS requires them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import policy
from tests.support.builds import PROJECT, AwsBuild

Json = dict[str, Any]
SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:orders-AbCdEf"
FUNCTION_LOG = r"arn:\*:logs:\*:\*:log-group:/aws/lambda/order-api-{stage}(:\*)?"


def statements_of_stage(stage: str, **settings: Any) -> list[Json]:
    checked_in = PROJECT / ".chalice" / f"policy-{stage}.json"
    statements: list[Json] = policy.of_stage(checked_in, {"subnet_ids": [], **settings})["Statement"]
    return statements


def allowed(statements: list[Json]) -> Iterator[tuple[str, Any]]:
    """Pairs of an allowed action and its resource."""
    for statement in statements:
        assert statement["Effect"] in ("Allow", "Deny")
        assert not {"NotAction", "NotResource", "Principal"} & statement.keys()
        if statement["Effect"] == "Allow":
            for action in statement["Action"]:
                yield action, statement["Resource"]


def wildcard_actions(actions: Iterator[tuple[str, Any]]) -> set[str]:
    """The actions that are allowed on wildcard resources; fails if an action has a wildcard."""
    wildcards = set()
    for action, resource in actions:
        assert re.fullmatch("[a-z0-9]+:[A-Za-z]+", action), action
        if resource == "*" or "*" in resource:
            wildcards.add(action)
    return wildcards


@pytest.fixture(params=["dev", "prod"])
def stage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_chalice_role_has_wildcard_resources_only_where_unavoidable(stage: str) -> None:
    full_role = statements_of_stage(
        stage, subnet_ids=["subnet-1"], environment_variables={"DB_PASSWORD": SECRET}
    )

    assert wildcard_actions(allowed(full_role)) == {*policy.WITHOUT_RESOURCE}
    tracing = {action for action in policy.WITHOUT_RESOURCE if action.startswith("xray:")}
    assert wildcard_actions(allowed(statements_of_stage(stage))) == tracing


def test_chalice_role_accesses_only_its_log_and_secret(stage: str) -> None:
    resources = dict(allowed(statements_of_stage(stage, environment_variables={"DB_PASSWORD": SECRET})))

    assert resources["secretsmanager:GetSecretValue"] == SECRET
    for action in ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"):
        assert all(re.fullmatch(FUNCTION_LOG.format(stage=stage), resource) for resource in resources[action])
    assert not any("secretsmanager" in action for action, _ in allowed(statements_of_stage(stage)))


def statements_of(value: Any) -> Iterator[Json]:
    """Every policy statement of a template, at any depth and under any condition."""
    if isinstance(value, dict):
        if {"Effect", "Resource"} <= value.keys():
            yield value
        for child in value.values():
            yield from statements_of(child)
    elif isinstance(value, list):
        for child in value:
            yield from statements_of(child)


@pytest.mark.slow
def test_template_roles_are_not_wider_than_chalices(aws_build: AwsBuild) -> None:
    resources = json.loads(aws_build.template.read_text())["Resources"]
    statements = [*statements_of(resources)]

    assert wildcard_actions(allowed(statements)) == {*policy.WITHOUT_RESOURCE}
    kinds = {resource["Type"] for resource in resources.values()}
    assert not kinds & {"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"}
    for resource in resources.values():
        assert not resource["Properties"].get("ManagedPolicyArns")
        if resource["Type"] == "AWS::IAM::Role":
            (trusted,) = resource["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            assert (trusted["Action"], trusted["Effect"]) == ("sts:AssumeRole", "Allow")
            assert list(trusted["Principal"]) == ["Service"]
    permission = resources["APIHandlerInvokePermission"]["Properties"]
    assert permission["Action"] == "lambda:InvokeFunction"
    assert "SourceArn" in permission


def test_function_code_is_denied_network_interface_actions(stage: str) -> None:
    """Lambda itself uses these permissions of the role; the function's code must not."""
    statements = statements_of_stage(stage, subnet_ids=["subnet-1"])
    denied = next(statement for statement in statements if statement["Effect"] == "Deny")

    assert {*denied["Action"]} == {action for action, _ in allowed(statements) if action.startswith("ec2:")}
    assert denied["Resource"] == "*"
    assert list(denied["Condition"]["ArnLike"]) == ["lambda:SourceFunctionArn"]


def test_every_wildcard_permission_has_a_documented_reason() -> None:
    assert all(reason.strip() for reason in policy.WITHOUT_RESOURCE.values())
    page = Path(PROJECT / "docs/aws.md").read_text()
    assert all(action.partition(":")[2] in page for action in policy.WITHOUT_RESOURCE)
