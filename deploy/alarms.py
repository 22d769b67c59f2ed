"""The alarms of the SAM template. docs/operations.md explains each and what to do."""

from typing import Any

from chalicelib.observability.metrics import DIMENSION, NAMESPACE

Json = dict[str, Any]

TOPIC, HAS_TOPIC = "AlarmTopicArn", "HasAlarmTopic"
SERVER_ERRORS, SLOW, WAITS = "ServerErrorsAlarm", "LatencyAlarm", "PoolWaitAlarm"
MAX_ERRORS = 1
"""Percent of the requests that may fail."""
MAX_LATENCY, MAX_POOL_WAIT = 1500, 500
"""Milliseconds, for the 99th percentile."""
RUNBOOK = "docs/operations.md"


def parameter() -> Json:
    return {
        "Type": "String",
        "Default": "",
        "AllowedPattern": "(arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:.+)?",
        "Description": "SNS topic that receives the alarms; empty: they only show in CloudWatch",
    }


def resources(function: str) -> Json:
    """Each alarm fires after three bad minutes of five, never on one bad request or on none at all."""
    return {
        SERVER_ERRORS: _alarm(
            f"Over {MAX_ERRORS}% of the requests: 5xx, crash, timeout, throttled: {RUNBOOK}#server-errors",
            Threshold=MAX_ERRORS,
            Metrics=[
                _metric("answered", NAMESPACE, "server_errors", DIMENSION, function),
                # Crashes and the function's timeout, which the function cannot log.
                _metric("crashed", "AWS/Lambda", "Errors", "FunctionName", function),
                # API Gateway's 5xx when no instance was free: neither an invocation nor an error.
                _metric("throttled", "AWS/Lambda", "Throttles", "FunctionName", function),
                _metric("all", "AWS/Lambda", "Invocations", "FunctionName", function),
                {
                    "Id": "rate",
                    "Label": "5xx, percent",
                    "Expression": "100 * (FILL(answered, 0) + FILL(crashed, 0) + FILL(throttled, 0))"
                    " / (FILL(all, 0) + FILL(throttled, 0))",
                    "ReturnData": True,
                },
            ],
        ),
        SLOW: _alarm(
            f"One request in a hundred took more than {MAX_LATENCY} ms: {RUNBOOK}#latency",
            Threshold=MAX_LATENCY,
            **_percentile("ms", function),
        ),
        WAITS: _alarm(
            f"One request in a hundred waited over {MAX_POOL_WAIT} ms for a connection: {RUNBOOK}#pool-waits",
            Threshold=MAX_POOL_WAIT,
            **_percentile("pool_ms", function),
        ),
    }


def _alarm(description: str, **more: Any) -> Json:
    topic = {"Fn::If": [HAS_TOPIC, [{"Ref": TOPIC}], {"Ref": "AWS::NoValue"}]}
    properties = {
        "AlarmDescription": description,
        "ActionsEnabled": True,
        "AlarmActions": topic,
        "OKActions": topic,
        "ComparisonOperator": "GreaterThanThreshold",
        "EvaluationPeriods": 5,
        "DatapointsToAlarm": 3,
        "TreatMissingData": "notBreaching",
        **more,
    }
    return {"Type": "AWS::CloudWatch::Alarm", "Properties": properties}


def _percentile(metric: str, function: str) -> Json:
    return {
        "Namespace": NAMESPACE,
        "MetricName": metric,
        "Dimensions": [{"Name": DIMENSION, "Value": {"Ref": function}}],
        "ExtendedStatistic": "p99",
        # With few requests a single one is the 99th percentile.
        "EvaluateLowSampleCountPercentile": "ignore",
        "Period": 60,
    }


def _metric(name: str, namespace: str, metric: str, dimension: str, function: str) -> Json:
    return {
        "Id": name,
        "ReturnData": False,
        "MetricStat": {
            "Metric": {
                "Namespace": namespace,
                "MetricName": metric,
                "Dimensions": [{"Name": dimension, "Value": {"Ref": function}}],
            },
            "Period": 60,
            "Stat": "Sum",
        },
    }
