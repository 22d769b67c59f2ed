"""The function's IAM permissions: its log, its traces, and what its settings need."""

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
"""What Lambda needs to run a function in a VPC, whose network interfaces have no ARN beforehand."""
NETWORK_BY_CODE = {
    **NETWORK,
    "Effect": "Deny",
    "Condition": {"ArnLike": {"lambda:SourceFunctionArn": "arn:*:lambda:*:*:function:*"}},
}
"""Lambda itself calls these with the role; requests from the function's code are denied."""
WITHOUT_RESOURCE = {
    "ec2:AssignPrivateIpAddresses": "the interface is Lambda's own, and has no ARN beforehand",
    "ec2:CreateNetworkInterface": "the interface has no ARN beforehand",
    "ec2:DeleteNetworkInterface": "Lambda refuses a function whose role names single interfaces here",
    "ec2:DescribeNetworkInterfaces": "EC2 has no resource types for it",
    "ec2:DescribeSubnets": "EC2 has no resource types for it",
    "ec2:UnassignPrivateIpAddresses": "the interface is Lambda's own, and has no ARN beforehand",
    "xray:PutTelemetryRecords": "X-Ray has no resource types for it",
    "xray:PutTraceSegments": "X-Ray has no resource types for it",
}
"""The only actions that may be allowed on `*`, each with the reason."""


def logging_to(group: Any) -> Json:
    return _statement(["logs:CreateLogStream", "logs:PutLogEvents"], group)


def reading(secret: Any) -> Json:
    return _statement(["secretsmanager:GetSecretValue"], secret)


def is_secret(password: str) -> bool:
    """Whether DB_PASSWORD refers to a secret in AWS Secrets Manager."""
    return password.startswith("arn:") and ":secretsmanager:" in password


def of_stage(checked_in: Path, stage: Mapping[str, Any]) -> Json:
    """.chalice/policy-<stage>.json, plus what this configuration needs."""
    policy: Json = json.loads(checked_in.read_text())
    password = stage.get("environment_variables", {}).get("DB_PASSWORD", "")
    if is_secret(password):
        policy["Statement"].append(reading(password))
    if stage["subnet_ids"]:
        policy["Statement"] += [NETWORK, NETWORK_BY_CODE]
    return policy
