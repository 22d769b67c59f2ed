"""What the function's role may do on AWS: no action by wildcard, no resource wider than AWS makes it."""

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
OWN_LOG = r"arn:\*:logs:\*:\*:log-group:/aws/lambda/order-api-{stage}(:\*)?"


def of_stage(stage: str, **chosen: Any) -> list[Json]:
    checked_in = PROJECT / ".chalice" / f"policy-{stage}.json"
    statements: list[Json] = policy.of_stage(checked_in, {"subnet_ids": [], **chosen})["Statement"]
    return statements


def allowed(statements: list[Json]) -> Iterator[tuple[str, Any]]:
    """Each action that is allowed, and on what."""
    for each in statements:
        assert each["Effect"] in ("Allow", "Deny")
        assert not {"NotAction", "NotResource", "Principal"} & each.keys()
        if each["Effect"] == "Allow":
            for action in each["Action"]:
                yield action, each["Resource"]


def wide(actions: Iterator[tuple[str, Any]]) -> set[str]:
    """The actions that are allowed on everything; none may name more than one action."""
    found = set()
    for action, resource in actions:
        assert re.fullmatch("[a-z0-9]+:[A-Za-z]+", action), action
        if resource == "*" or "*" in resource:
            found.add(action)
    return found


@pytest.fixture(params=["dev", "prod"])
def stage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_chalice_role_has_wildcard_resources_only_where_unavoidable(stage: str) -> None:
    everything = of_stage(stage, subnet_ids=["subnet-1"], environment_variables={"DB_PASSWORD": SECRET})

    assert wide(allowed(everything)) == {*policy.WITHOUT_RESOURCE}
    tracing = {action for action in policy.WITHOUT_RESOURCE if action.startswith("xray:")}
    assert wide(allowed(of_stage(stage))) == tracing


def test_chalice_role_accesses_only_its_log_and_secret(stage: str) -> None:
    found = dict(allowed(of_stage(stage, environment_variables={"DB_PASSWORD": SECRET})))

    assert found["secretsmanager:GetSecretValue"] == SECRET
    for action in ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"):
        assert all(re.fullmatch(OWN_LOG.format(stage=stage), each) for each in found[action])
    assert not any("secretsmanager" in action for action, _ in allowed(of_stage(stage)))


def statements_of(value: Any) -> Iterator[Json]:
    """Every statement of a template, whichever condition it depends on and wherever it stands."""
    if isinstance(value, dict):
        if {"Effect", "Resource"} <= value.keys():
            yield value
        for each in value.values():
            yield from statements_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from statements_of(each)


@pytest.mark.slow
def test_template_roles_are_not_wider_than_chalices(aws_build: AwsBuild) -> None:
    resources = json.loads(aws_build.template.read_text())["Resources"]
    found = [*statements_of(resources)]

    assert wide(allowed(found)) == {*policy.WITHOUT_RESOURCE}
    kinds = {each["Type"] for each in resources.values()}
    assert not kinds & {"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"}
    for each in resources.values():
        assert not each["Properties"].get("ManagedPolicyArns")
        if each["Type"] == "AWS::IAM::Role":
            (trusted,) = each["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            assert (trusted["Action"], trusted["Effect"]) == ("sts:AssumeRole", "Allow")
            assert list(trusted["Principal"]) == ["Service"]
    permission = resources["APIHandlerInvokePermission"]["Properties"]
    assert permission["Action"] == "lambda:InvokeFunction"
    assert "SourceArn" in permission


def test_function_code_is_denied_network_interface_actions(stage: str) -> None:
    """Lambda uses these permissions in the role's name; code that was taken over must not."""
    found = of_stage(stage, subnet_ids=["subnet-1"])
    denied = next(each for each in found if each["Effect"] == "Deny")

    assert {*denied["Action"]} == {action for action, _ in allowed(found) if action.startswith("ec2:")}
    assert denied["Resource"] == "*"
    assert list(denied["Condition"]["ArnLike"]) == ["lambda:SourceFunctionArn"]


def test_every_wildcard_permission_has_a_documented_reason() -> None:
    assert all(reason.strip() for reason in policy.WITHOUT_RESOURCE.values())
    page = Path(PROJECT / "docs/aws.md").read_text()
    assert all(action.partition(":")[2] in page for action in policy.WITHOUT_RESOURCE)
