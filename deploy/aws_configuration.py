"""The configuration that an AWS build is made with: .chalice/config.json and the environment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chalicelib.settings.currency import default_currency
from chalicelib.settings.environment import SettingsError, text
from chalicelib.settings.http import cors_origin
from chalicelib.settings.identity_provider import user_pools
from chalicelib.settings.table import PASSED_TO_LAMBDA

Json = dict[str, Any]

PROJECT = Path(__file__).parent.parent
NO_USER_POOL = "arn:aws:cognito-idp:us-east-1:000000000000:userpool/us-east-1_none"
"""A placeholder while a template is packaged without a user pool: there it is a parameter."""


def configuration(stage: str, architecture: str) -> Json:
    """config.json reduced to this stage, with the variables of the environment. Raises SystemExit."""
    _refuse_other_providers()
    config: Json = json.loads((PROJECT / ".chalice" / "config.json").read_text())
    if stage not in config["stages"]:
        raise SystemExit(f"STAGE is {stage!r}: .chalice/config.json has {', '.join(config['stages'])}")
    chosen = {**config["stages"][stage], **_network(config["stages"][stage])}
    variables = {name: os.environ[name] for name in PASSED_TO_LAMBDA if os.environ.get(name)}
    if variables:
        chosen["environment_variables"] = variables
    return {**config, "lambda_architecture": architecture, "stages": {stage: chosen}}


def _refuse_other_providers() -> None:
    provider = text("AUTH_PROVIDER")
    if provider != "cognito":
        raise SystemExit(
            f"AUTH_PROVIDER is {provider!r}: on AWS API Gateway checks the tokens, and it accepts Cognito's "
            "only. Unset it, or deploy to another cloud"
        )


def _network(stage: Mapping[str, Any]) -> Json:
    """Subnets and security groups: the environment's, else the stage's."""
    subnets = _comma_separated("SUBNET_IDS") or stage["subnet_ids"]
    groups = _comma_separated("SECURITY_GROUP_IDS") or stage["security_group_ids"]
    if bool(subnets) != bool(groups):
        raise SystemExit(
            "SUBNET_IDS and SECURITY_GROUP_IDS go together: set both, comma-separated, or neither"
        )
    return {"subnet_ids": subnets, "security_group_ids": groups}


def refuse_without_snapstart(python: tuple[int, int]) -> None:
    """Raises SystemExit for a Python version for which Lambda has no SnapStart."""
    if python < (3, 12):
        raise SystemExit(
            "SNAPSTART=on needs Python 3.12 or later, and the Python that builds is the runtime that is "
            f"deployed: this is {python[0]}.{python[1]}. For another: make clean, then make PYTHON=python3.12"
        )


def configure_app(chosen: Mapping[str, Any]) -> None:
    """Set the variables that app.py reads at import to the build's: `chosen` is a stage of config.json.

    Raises SystemExit for a malformed value.
    """
    variables: dict[str, str] = chosen.get("environment_variables", {})
    os.environ["COGNITO_USER_POOL_ARN"] = variables.get("COGNITO_USER_POOL_ARN", NO_USER_POOL)
    os.environ["CORS_ORIGIN"] = variables.get("CORS_ORIGIN", "")
    try:
        user_pools()
        cors_origin()
        default_currency()
    except SettingsError as error:
        raise SystemExit(str(error)) from None


def _comma_separated(name: str) -> list[str]:
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
