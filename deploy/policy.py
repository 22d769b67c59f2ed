"""What the function may do in the account: write its log and traces, and what its settings need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def _statement(actions: list[str], resource: Any) -> Json:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}


TRACING = _statement(["xray:PutTraceSegments", "xray:PutTelemetryRecords"], "*")
NETWORK = _statement(
    [
        "ec2:AssignPrivateIpAddresses",
        "ec2:CreateNetworkInterface",
        "ec2:DeleteNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:UnassignPrivateIpAddresses",
    ],
    "*",
)
"""What Lambda needs to put a function into a VPC; its interfaces have no names beforehand."""
NETWORK_BY_CODE = {
    **NETWORK,
    "Effect": "Deny",
    "Condition": {"ArnLike": {"lambda:SourceFunctionArn": "arn:*:lambda:*:*:function:*"}},
}
"""Lambda calls them in the role's name, never the function's code: requests from inside of it are refused."""
UNNAMED = {
    "ec2:AssignPrivateIpAddresses": "the interface is Lambda's own, and has no name beforehand",
    "ec2:CreateNetworkInterface": "the interface has no name beforehand",
    "ec2:DeleteNetworkInterface": "Lambda refuses a function whose role names single interfaces here",
    "ec2:DescribeNetworkInterfaces": "EC2 knows no resources for it",
    "ec2:DescribeSubnets": "EC2 knows no resources for it",
    "ec2:UnassignPrivateIpAddresses": "the interface is Lambda's own, and has no name beforehand",
    "xray:PutTelemetryRecords": "X-Ray knows no resources for it",
    "xray:PutTraceSegments": "X-Ray knows no resources for it",
}
"""The only actions that may be allowed on `*`, and why AWS has nothing narrower."""


def logging_to(group: Any) -> Json:
    return _statement(["logs:CreateLogStream", "logs:PutLogEvents"], group)


def reading(secret: Any) -> Json:
    return _statement(["secretsmanager:GetSecretValue"], secret)


def is_secret(password: str) -> bool:
    """Whether DB_PASSWORD names a secret of Secrets Manager."""
    return password.startswith("arn:") and ":secretsmanager:" in password


def of_stage(checked_in: Path, stage: Mapping[str, Any]) -> Json:
    """.chalice/policy-<stage>.json, and what this configuration needs on top."""
    policy: Json = json.loads(checked_in.read_text())
    password = stage.get("environment_variables", {}).get("DB_PASSWORD", "")
    if is_secret(password):
        policy["Statement"].append(reading(password))
    if stage["subnet_ids"]:
        policy["Statement"] += [NETWORK, NETWORK_BY_CODE]
    return policy
