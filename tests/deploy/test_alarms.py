"""The alarms of the SAM template use metrics that the function writes, and link to the runbook."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.builds import AwsBuild
from tests.support.log_lines import Line, lines

pytestmark = pytest.mark.slow

Json = dict[str, Any]
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"
ALARMS = ("ServerErrorsAlarm", "LatencyAlarm", "PoolWaitAlarm")
FUNCTION = {"Ref": "APIHandler"}


@pytest.fixture(scope="module")
def template(aws_build: AwsBuild) -> Json:
    document: Json = json.loads(aws_build.template.read_text())
    return document


@pytest.fixture
def log_line_on_lambda(
    app: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Line]:
    """Sends a GET and returns its log line in Lambda's format."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "order-api-dev")
    monkeypatch.delitem(sys.modules, "chalice.local", raising=False)  # imported by an earlier test

    def get(path: str) -> Line:
        request = {"resourcePath": path, "httpMethod": "GET", "requestId": uuid4().hex}
        app(
            {
                "requestContext": request,
                "headers": {},
                "pathParameters": None,
                "multiValueQueryStringParameters": None,
                "stageVariables": None,
                "body": None,
            },
            None,
        )
        (line,) = lines(capsys.readouterr().out)
        return line

    return get


def metrics_of(alarm: Json) -> list[Json]:
    """The metrics that an alarm uses."""
    stats = [query["MetricStat"]["Metric"] for query in alarm.get("Metrics", []) if "MetricStat" in query]
    return stats or [alarm]


def test_alarms_use_only_metrics_that_are_written(
    template: Json, log_line_on_lambda: Callable[[str], Line]
) -> None:
    line = log_line_on_lambda("/health/ready")
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    logged_metrics = {metric["Name"] for metric in directive["Metrics"]}

    alarms = {
        name: resource for name, resource in template["Resources"].items() if "Alarm" in resource["Type"]
    }

    assert alarms.keys() == {*ALARMS}
    names = set()
    for alarm in alarms.values():
        assert alarm["Type"] == "AWS::CloudWatch::Alarm"
        for metric in metrics_of(alarm["Properties"]):
            ((dimension, value),) = ((entry["Name"], entry["Value"]) for entry in metric["Dimensions"])
            assert value == FUNCTION
            if metric["Namespace"] == directive["Namespace"]:
                assert [[dimension]] == directive["Dimensions"]
                assert metric["MetricName"] in logged_metrics
                names.add(metric["MetricName"])
            else:
                assert (metric["Namespace"], dimension) == ("AWS/Lambda", "FunctionName")
    assert names == {"server_errors", "ms", "pool_ms"}
    assert line["function"] == "order-api-dev"


@pytest.mark.parametrize(
    ("sums", "percent"),
    [
        ({"answered": 3, "crashed": 1, "all": 200}, 2),
        ({"answered": 1, "throttled": 100, "all": 100}, 50.5),
        ({"throttled": 7}, 100),
    ],
    ids=["answered and crashed", "out of concurrency", "nothing got through"],
)
def test_error_rate_includes_crashes_and_throttles(
    template: Json, sums: dict[str, int], percent: float
) -> None:
    """A throttled request is not an invocation; a metric without values in a minute is missing."""
    *metrics, rate = template["Resources"]["ServerErrorsAlarm"]["Properties"]["Metrics"]

    assert {query["Id"]: query["MetricStat"]["Metric"]["MetricName"] for query in metrics} == {
        "answered": "server_errors",
        "crashed": "Errors",
        "throttled": "Throttles",
        "all": "Invocations",
    }
    assert not any(query["ReturnData"] for query in metrics)
    assert rate["ReturnData"]

    def fill(value: int | None, default: int) -> int:
        return default if value is None else value

    values = {**dict.fromkeys(("answered", "crashed", "throttled", "all")), **sums}
    assert eval(rate["Expression"], {"FILL": fill, **values}) == percent


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_notifies_the_configured_topic(template: Json, name: str) -> None:
    properties = template["Resources"][name]["Properties"]

    topic = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
    assert properties["AlarmActions"] == properties["OKActions"] == topic
    assert template["Conditions"]["HasAlarmTopic"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmTopicArn"}, ""]}]
    }
    assert template["Parameters"]["AlarmTopicArn"]["Default"] == ""
    assert (properties["DatapointsToAlarm"], properties["EvaluationPeriods"]) == (3, 5)
    assert properties["TreatMissingData"] == "notBreaching"


@pytest.mark.parametrize("name", ALARMS)
def test_alarm_description_links_to_its_runbook_section(template: Json, name: str) -> None:
    properties = template["Resources"][name]["Properties"]
    (anchor,) = re.findall(r"docs/operations\.md#([\w-]+)$", properties["AlarmDescription"])
    parts = re.split(r"^## (.+)$", OPERATIONS.read_text(), flags=re.MULTILINE)[1:]
    sections = {
        title.lower().replace(" ", "-"): text for title, text in zip(parts[::2], parts[1::2], strict=True)
    }

    assert sections[anchor].lstrip().startswith(f"`{name}`")
    assert re.search(rf"\b{properties['Threshold']} (percent|milliseconds)\b", sections[anchor])
