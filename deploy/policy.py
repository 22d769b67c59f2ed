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
        policy["Statement"].append(NETWORK)
    return policy
