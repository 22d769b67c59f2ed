"""Adds to the SAM template what `chalice package` leaves out: parameters, network, permissions, errors."""

from collections.abc import Mapping
from typing import Any

from app import app
from chalicelib.settings.parameter import Parameter
from chalicelib.settings.table import SETTINGS, Setting
from deploy import alarms, gateway_responses, policy

Json = dict[str, Any]

API, FUNCTION, ROLE, LOGS = "RestAPI", "APIHandler", "ApiHandlerRole", "ApiHandlerLogGroup"
PERMISSION = "APIHandlerInvokePermission"
NOTHING = {"Ref": "AWS::NoValue"}
PUBLISHED = {"Ref": f"{FUNCTION}.Alias"}
"""SAM's name for the alias that it creates."""
PARAMETERS = [(setting, setting.parameter) for setting in SETTINGS.values() if setting.parameter]


def additions(stage: Mapping[str, Any], *, snapstart: bool) -> Json:
    """The template that `chalice package --merge-template` merges over its own.

    `stage` is the stage of config.json; its values become the parameters' defaults.
    """
    template: Json = {
        "Description": "order-api: a multi-tenant API for e-commerce orders",
        "Parameters": _parameters(stage),
        "Rules": _rules(),
        "Conditions": {
            "HasSecret": _is_set("DBPasswordSecretArn"),
            alarms.HAS_TOPIC: _is_set(alarms.TOPIC),
            "InVpc": {"Fn::Not": [{"Fn::Equals": [{"Fn::Join": ["", {"Ref": "SubnetIds"}]}, ""]}]},
        },
        "Resources": {
            API: {"Properties": _api()},
            FUNCTION: {"Properties": _function()},
            ROLE: {"Properties": {"Policies": [_policy()]}},
            LOGS: {"Properties": {"LogGroupName": {"Fn::Sub": "/aws/lambda/${AWS::StackName}"}}},
            **alarms.resources(FUNCTION),
        },
        "Outputs": {
            "OrderApiUrl": {
                "Description": "Where the API answers: GET {OrderApiUrl}health",
                "Value": {"Fn::Sub": _url(stage["api_gateway_stage"])},
            }
        },
    }
    if snapstart:
        _publish_versions(template)
    return template


def _publish_versions(template: Json) -> None:
    """SnapStart takes snapshots of published versions: publish one, with an alias that the API calls."""
    resources = template["Resources"]
    resources[FUNCTION]["Properties"] |= {
        "SnapStart": {"ApplyOn": "PublishedVersions"},
        "AutoPublishAlias": "live",
        # SAM would keep old versions, and each version's snapshot costs money.
        "VersionDeletionPolicy": "Delete",
    }
    resources[PERMISSION] = {"Properties": {"FunctionName": PUBLISHED}}
    arn = (
        "arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/${Live}/invocations"
    )
    integration = {"x-amazon-apigateway-integration": {"uri": {"Fn::Sub": [arn, {"Live": PUBLISHED}]}}}
    for path, operations in resources[API]["Properties"]["DefinitionBody"]["paths"].items():
        operations |= {method.lower(): integration for method in app.routes[path]}


def _url(api_stage: str) -> str:
    return f"https://${{{API}}}.execute-api.${{AWS::Region}}.${{AWS::URLSuffix}}/{api_stage}/"


def _parameters(stage: Mapping[str, Any]) -> Json:
    variables = stage.get("environment_variables", {})
    return {
        **{parameter.name: _parameter(setting, parameter, variables) for setting, parameter in PARAMETERS},
        "DBPassword": _text("Its password; better: DBPasswordSecretArn", Default="", NoEcho=True),
        "SubnetIds": _list(stage, "subnet_ids", "Private subnets of the function; empty: outside any VPC"),
        "SecurityGroupIds": _list(stage, "security_group_ids", "Security groups of the function in them"),
        alarms.TOPIC: alarms.parameter(),
    }


def _parameter(setting: Setting, parameter: Parameter, variables: Mapping[str, str]) -> Json:
    """The parameter for a variable; the build's value is its default, except for a password in plain text."""
    value = variables.get(setting.name, setting.default)
    if setting.name == "DB_PASSWORD" and not policy.is_secret(value):
        value = ""
    default = {} if parameter.is_required and not value else {"Default": value}
    pattern = {"AllowedPattern": parameter.pattern} if parameter.pattern else {}
    return _text(parameter.description, **default, **pattern)


def _text(description: str, **more: Any) -> Json:
    return {"Type": "String", "Description": description, **more}


def _list(stage: Mapping[str, Any], name: str, description: str) -> Json:
    default = ",".join(stage.get(name, []))
    return {"Type": "CommaDelimitedList", "Default": default, "Description": description}


def _rules() -> Json:
    """CloudFormation checks these before it creates anything, and shows what to set."""
    plain, secret = _is_set("DBPassword"), _is_set("DBPasswordSecretArn")
    exactly_one = {
        "Fn::Or": [
            {"Fn::And": [plain, {"Fn::Not": [secret]}]},
            {"Fn::And": [{"Fn::Not": [plain]}, secret]},
        ]
    }
    named = {"Fn::And": [_is_set("DBHost"), _is_set("DBName"), _is_set("DBUser")]}
    return {
        "OnePassword": _rule(exactly_one, "Set exactly one of DBPassword and DBPasswordSecretArn"),
        "DatabaseIsNamed": {
            "RuleCondition": plain,
            **_rule(named, "With DBPassword set DBHost, DBName and DBUser too"),
        },
    }


def _rule(condition: Json, description: str) -> Json:
    return {"Assertions": [{"Assert": condition, "AssertDescription": description}]}


def _is_set(parameter: str) -> Json:
    return {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, ""]}]}


def _function() -> Json:
    password = {"Fn::If": ["HasSecret", {"Ref": "DBPasswordSecretArn"}, {"Ref": "DBPassword"}]}
    network = {
        "SubnetIds": {"Ref": "SubnetIds"},
        "SecurityGroupIds": {"Ref": "SecurityGroupIds"},
    }
    return {
        # Without it Lambda creates a group that keeps logs for ever.
        "LoggingConfig": {"LogGroup": {"Ref": LOGS}},
        "VpcConfig": {"Fn::If": ["InVpc", network, NOTHING]},
        "Environment": {
            "Variables": {
                **{setting.name: {"Ref": parameter.name} for setting, parameter in PARAMETERS},
                "DB_PASSWORD": password,
            }
        },
    }


def _policy() -> Json:
    return {
        "PolicyName": "OrderApi",
        "PolicyDocument": {
            "Version": "2012-10-17",
            "Statement": [
                policy.logging_to({"Fn::GetAtt": [LOGS, "Arn"]}),
                policy.TRACING,
                {"Fn::If": ["HasSecret", policy.reading({"Ref": "DBPasswordSecretArn"}), NOTHING]},
                {"Fn::If": ["InVpc", policy.NETWORK, NOTHING]},
                {"Fn::If": ["InVpc", policy.NETWORK_BY_CODE, NOTHING]},
            ],
        },
    }


def _api() -> Json:
    authorizer = {"providerARNs": [{"Ref": "CognitoUserPoolArn"}]}
    return {
        "TracingEnabled": True,
        "GatewayResponses": {
            kind: {
                "StatusCode": response.status,
                "ResponseParameters": {"Headers": response.headers},
                "ResponseTemplates": {"application/json": response.body},
            }
            for kind, response in gateway_responses.gateway_responses().items()
        },
        "DefinitionBody": {
            "securityDefinitions": {"customers": {"x-amazon-apigateway-authorizer": authorizer}},
            "paths": {path: {"options": _preflight()} for path in app.routes},
        },
    }


def _preflight() -> Json:
    """Adds the headers of every other answer to Chalice's answer to OPTIONS."""
    headers = gateway_responses.mapped(app.common_headers)
    return {
        "responses": {"200": {"headers": {name: {"type": "string"} for name in headers}}},
        "x-amazon-apigateway-integration": {
            "responses": {
                "default": {
                    "responseParameters": {
                        f"method.response.header.{name}": value for name, value in headers.items()
                    }
                }
            }
        },
    }
