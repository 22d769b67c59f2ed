"""Deploys build/aws with Chalice or SAM."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chalicelib.settings.currency import default_currency
from chalicelib.settings.database import database_settings
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.rate_limit import rate_limit
from chalicelib.settings.table import SETTINGS
from deploy import alarms, aws, aws_configuration, policy

Json = dict[str, Any]


def deploy(folder: Path, stage: str, via: str) -> None:
    """Deploy the folder with Chalice or SAM. Raises SystemExit before any change if something is missing."""
    if via == "chalice":
        _refuse_snapshots(folder)
    config = _built(folder, stage)
    variables: dict[str, str] = config["stages"][stage].get("environment_variables", {})
    for name, meaning in _required(variables).items():
        if name not in variables:
            raise SystemExit(f"{name} is not set: {meaning}. Set it, and run make deploy-aws STAGE={stage}")
    _check(variables)
    session = _session()
    if via == "sam":
        _sam(folder, stage, config["stages"][stage], session.region_name)
    else:
        _keep_logs(session.client("logs"), stage, config["stages"][stage]["log_retention_in_days"])
        aws.run(
            [aws.chalice_command(), "deploy", "--stage", stage],
            folder,
            AWS_DEFAULT_REGION=session.region_name,
        )
        put_gateway_responses(folder, stage)


def _refuse_snapshots(folder: Path) -> None:
    template = folder / "package" / "sam.json"
    if template.exists() and "SnapStart" in template.read_text():
        raise SystemExit(
            "SNAPSTART=on needs VIA=sam: the snapshots are taken of published versions, and chalice deploy "
            "publishes none. Add VIA=sam, or leave out SNAPSTART=on"
        )


def _check(variables: Mapping[str, str]) -> None:
    """Read the settings as the function will. Raises SystemExit for those with which it would not start."""
    os.environ.pop("DATABASE_URL", None)  # is not passed on to the function
    os.environ.update(variables)
    try:
        secret = database_settings().secret
        default_currency()
        rate_limit()
    except SettingsError as error:
        raise SystemExit(f"The function would not start. {error}") from None
    if secret and not policy.is_secret(secret.text):
        raise SystemExit(f"DB_PASSWORD refers to {secret}: the zip reads secrets of AWS Secrets Manager only")


def _keep_logs(logs: Any, stage: str, days: int) -> None:
    """Create the function's log group: Chalice 1.34 sets the retention of another one."""
    group = f"/aws/lambda/order-api-{stage}"
    with suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=group)
    logs.put_retention_policy(logGroupName=group, retentionInDays=days)


def put_gateway_responses(folder: Path, stage: str) -> None:
    """Give API Gateway's own errors and preflights the API's form, which `chalice deploy` cannot."""
    config = _built(folder, stage)
    gateway = _session().client("apigateway")
    api = os.environ.get("REST_API_ID") or _rest_api_id(folder, stage)
    aws_configuration.configure_app(config["stages"][stage])
    from deploy import gateway_responses

    gateway_responses.put(gateway, api, config["api_gateway_stage"])
    print(f"API {api} answers its own errors as problems", flush=True)


def _built(folder: Path, stage: str) -> Json:
    """The configuration that the folder was built with."""
    try:
        config: Json = json.loads((folder / ".chalice" / "config.json").read_text())
    except FileNotFoundError:
        raise SystemExit(f"{folder} is not there: run make build-aws STAGE={stage} first") from None
    if stage not in config["stages"]:
        built = ", ".join(config["stages"])
        raise SystemExit(f"{folder} was built for {built}: run make build-aws STAGE={stage} first")
    return config


def _required(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without which no request can be served, with their meanings."""
    password = variables.get("DB_PASSWORD", "")
    named = {
        "DB_HOST": "the database's host name",
        "DB_NAME": "the database's name",
        "DB_USER": "the API's role, orders_app",
    }
    return {
        "COGNITO_USER_POOL_ARN": "the ARN of the user pool whose tokens are accepted",
        "DB_PASSWORD": "the ARN of a Secrets Manager secret, or the password itself",
        # A secret in RDS's form holds the others.
        **({} if policy.is_secret(password) else named),
    }


def _session() -> Any:
    import boto3  # takes most of the time that a refused deployment needs

    session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
    if session.region_name is None:
        raise SystemExit("AWS_REGION is not set: the region to deploy to, such as eu-west-1")
    if session.get_credentials() is None:
        raise SystemExit(
            "No AWS credentials: run aws configure, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    return session


def _rest_api_id(folder: Path, stage: str) -> str:
    deployed = folder / ".chalice" / "deployed" / f"{stage}.json"
    if deployed.exists():
        for resource in json.loads(deployed.read_text())["resources"]:
            if "rest_api_id" in resource:
                return str(resource["rest_api_id"])
    raise SystemExit(f"{stage} is not deployed by chalice from here: set REST_API_ID to the API's id")


def _sam(folder: Path, stage: str, chosen: Json, region: str) -> None:
    sam = shutil.which("sam")
    if sam is None:
        raise SystemExit("sam is missing. To get it: pipx install aws-sam-cli; or leave out VIA=sam")
    variables = chosen["environment_variables"]
    if not policy.is_secret(variables["DB_PASSWORD"]):
        raise SystemExit(
            "DB_PASSWORD is the password itself, and VIA=sam would show it in the list of processes: put it "
            "into Secrets Manager and set DB_PASSWORD to the secret's ARN"
        )
    from_variables = {
        setting.parameter.name: variables[name]
        for name, setting in SETTINGS.items()
        if setting.parameter and variables.get(name)
    }
    network = {"SubnetIds": chosen["subnet_ids"], "SecurityGroupIds": chosen["security_group_ids"]}
    overrides = {**from_variables, **{name: ",".join(ids) for name, ids in network.items() if ids}}
    if topic := os.environ.get("ALARM_TOPIC_ARN"):
        overrides[alarms.TOPIC] = topic
    command = [sam, "deploy", "--template-file", "package/sam.json", "--stack-name", f"order-api-{stage}"]
    command += ["--capabilities", "CAPABILITY_IAM", "--resolve-s3", "--no-fail-on-empty-changeset"]
    command += ["--parameter-overrides", *(f"{name}={value}" for name, value in overrides.items())]
    aws.run(command, folder, AWS_DEFAULT_REGION=region)  # SAM reads no AWS_REGION
