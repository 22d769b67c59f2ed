"""The OpenAPI document is valid, and matches the routes, the models and real HTTP responses."""

from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator, meta

from chalicelib import errors
from chalicelib.openapi import health as health_operations
from chalicelib.orders import operations as order_operations
from chalicelib.orders.new_order import NewItem, NewOrder
from chalicelib.orders.tables import Order, OrderItem
from tests.support.cognito import UserPool
from tools.client import Client, Transport, item, seed

Json = dict[str, Any]
NUMBERS = count()


@pytest.fixture(scope="module")
def document(in_process: Transport) -> Json:
    document: Json = in_process("GET", "/openapi.json", {}, b"").json
    return document


@pytest.fixture(scope="module")
def schemas(document: Json) -> Json:
    schemas: Json = document["components"]["schemas"]
    return schemas


@pytest.mark.slow
def test_document_is_valid_openapi(document: Json) -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes seconds to import

    assert document["openapi"].startswith("3.1.")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_its_schemas_are_valid(schemas: Json) -> None:
    for schema in schemas.values():
        meta.validate(schema)


def test_document_lists_exactly_the_apps_routes(document: Json, app: Any) -> None:
    documented = {path: {method.upper() for method in methods} for path, methods in document["paths"].items()}

    assert documented == {path: set(app.allowed_methods(path)) for path in list(app.routes)}


def test_document_requires_a_token_where_the_app_does(document: Json, app: Any) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needs_token = bool(operation.get("security", document["security"]))
            assert needs_token == (app.routes[path][method.upper()].authorizer is not None), (method, path)


def test_every_operation_accepts_a_traceparent_header(document: Json) -> None:
    for methods in document["paths"].values():
        for operation in methods.values():
            trace = {"$ref": "#/components/parameters/traceparent"}
            assert trace in operation.get("parameters", []), operation["operationId"]
    assert document["components"]["parameters"]["traceparent"]["in"] == "header"


def test_a_header_is_described_once() -> None:
    """The document has one description per header name, so that two would overwrite each other."""
    operations = [*order_operations.OPERATIONS, *health_operations.OPERATIONS]
    headers = {
        header
        for operation in operations
        for response in operation.all_responses()
        for header in response.headers
    }

    assert [
        name for name, occurrences in Counter(header.name for header in headers).items() if occurrences > 1
    ] == []


def test_document_describes_every_problem(document: Json) -> None:
    documented = {
        slug
        for _, content in contents(document, "application/problem+json")
        for slug in content.get("examples", {})
    }

    defined = {
        problem.slug
        for problem in vars(errors).values()
        if isinstance(problem, type) and issubclass(problem, errors.Problem)
    }
    assert documented == defined - {"method-not-allowed"}


def test_examples_match_their_schemas(document: Json, schemas: Json) -> None:
    for media_type in ("application/json", "application/problem+json"):
        for location, content in contents(document, media_type):
            for example in examples(content):
                assert schema_errors(schemas, content["schema"], example) == [], location


def test_example_order_is_the_seed_request(document: Json, schemas: Json) -> None:
    body = document["paths"]["/orders"]["post"]["requestBody"]["content"]["application/json"]

    assert body["example"] == seed()
    assert schema_errors(schemas, body["schema"], seed()) == []


def test_order_schemas_have_the_models_fields(schemas: Json) -> None:
    for name, model in (("NewOrder", NewOrder), ("NewItem", NewItem)):
        required = {field for field, info in model.model_fields.items() if info.is_required()}
        assert members(schemas, name) == set(model.model_fields)
        assert set(schemas[name]["required"]) == required
        assert schemas[name]["additionalProperties"] is False
    assert members(schemas, "PlacedOrder") == {*Order.model_fields, "items"}
    assert members(schemas, "PlacedItem") == {*OrderItem.model_fields} - {"tenant_id", "order_id"}


def test_responses_have_exactly_the_documented_members(
    schemas: Json, alice: Client, anonymous: Client
) -> None:
    placed = alice.place()

    assert placed.json.keys() == members(schemas, "OrderCreated")
    assert placed.json["order"].keys() == members(schemas, "PlacedOrder")
    assert placed.json["order"]["items"][0].keys() == members(schemas, "PlacedItem")
    assert alice.get(f"/{placed.headers['location']}").json.keys() == members(schemas, "OneOrder")
    assert alice.get("/orders").json.keys() == members(schemas, "OrderPage")
    assert alice.get("/orders?limit=0").json.keys() == members(schemas, "ProblemDetails")
    assert alice.get("/orders?limit=0").json["errors"][0].keys() == members(schemas, "FieldError")
    assert anonymous.get("/health").json.keys() == members(schemas, "Health")


@pytest.mark.parametrize("docs", ["", "off"])
def test_document_is_served_only_with_docs_on(
    anonymous: Client, monkeypatch: pytest.MonkeyPatch, docs: str
) -> None:
    monkeypatch.setenv("DOCS", docs)

    assert anonymous.get("/openapi.json").slug == "not-found"
    for method in ("HEAD", "POST", "DELETE"):
        assert anonymous.send(method, "/openapi.json").status == 404


@pytest.mark.parametrize(
    "change",
    [
        {"customer_name": ""},
        {"customer_name": " \u00a0"},
        {"customer_name": "x" * 256},
        {"customer_name": "a\0b"},
        {"customer_name": "a\nb"},
        {"customer_name": "a\x9fb"},
        {"customer_name": "a\ufffdb"},
        {"customer_name": None},
        {"customer_email": "john"},
        {"customer_email": "a@b@c"},
        {"customer_email": "john doe@example.com"},
        {"shipping_address": "x" * 2001},
        {"total_amount": -1},
        {"total_amount": 1_000_000_000_000},
        {"total_amount": "1000000000000"},
        {"total_amount": "1e2"},
        {"total_amount": "0.12345"},
        {"total_amount": True},
        {"currency": "usd"},
        {"currency": None},
        {"items": []},
        {"items": None},
        {"items": [item()] * 501},
        {"items": [item(quantity=0)]},
        {"items": [item(quantity=1.5)]},
        {"items": [item(line_no=1)]},
        {"status": "pending"},
    ],
)
def test_schema_rejects_orders_that_the_api_rejects(schemas: Json, alice: Client, change: Json) -> None:
    assert alice.place(seed(**change)).status == 422
    assert schema_errors(schemas, schemas["NewOrder"], seed(**change)) != []


@pytest.mark.parametrize(
    "change",
    [
        {"customer_name": " Zoë\u00a0李 "},
        {"customer_name": "\U0001f600" * 255},
        {"customer_email": "a@" + "b" * 252},
        {"customer_email": "zoë@bücher.example"},
        {"customer_phone": None},
        {"shipping_address": "x" * 2000},
        {"total_amount": 0},
        {"total_amount": "99.990000"},
        {"total_amount": 999999999999.999, "currency": "KWD"},
        {"items": [item(quantity=2.0)] * 500},
    ],
)
def test_schema_accepts_orders_that_the_api_accepts(schemas: Json, alice: Client, change: Json) -> None:
    assert alice.place(seed(**change)).status == 201
    assert schema_errors(schemas, schemas["NewOrder"], seed(**change)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("adjust_generated_requests")
def test_every_response_conforms_to_the_document(
    server: tuple[str, int], user_pool: UserPool, tenant: str
) -> None:
    import schemathesis
    from schemathesis import engine
    from schemathesis.engine import events

    host, port = server
    config = schemathesis.Config.from_dict(
        {
            "seed": 7,
            "continue-on-failure": True,
            "headers": {"Authorization": f"Bearer {user_pool.token(tenant)}"},
            "generation": {"max-examples": 40, "deterministic": True, "database": "none"},
            "phases": {
                "coverage": {
                    "generate-duplicate-query-parameters": True,
                    "unexpected-methods": ["get", "post", "put", "patch", "delete"],
                },
                "stateful": {"generation": {"max-examples": 10}},
            },
        }
    )
    schema = schemathesis.openapi.from_url(f"http://{host}:{port}/openapi.json", config=config)
    answers: Counter[str] = Counter()
    problems: set[str] = set()

    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            record = event.recorder
            answers.update(
                f"{call.request.method} {call.response.status_code if call.response else 'none'}"
                for call in record.interactions.values()
            )
            failures = [check.failure_info for checks in record.checks.values() for check in checks]
            problems.update(
                f"{event.label}: {failure.failure}\n{failure.code_sample[:1000]}"
                for failure in failures
                if failure
            )
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems.add(repr(event))
    assert not problems, f"{len(problems)} failures:\n\n" + "\n\n".join(sorted(problems)[:10])
    assert answers.keys() >= {"POST 201", "POST 422", "GET 200", "GET 304", "GET 404", "HEAD 200", "PUT 405"}
    assert answers["POST 201"] > 100


@pytest.fixture
def adjust_generated_requests() -> Iterator[None]:
    """Adjusts generated requests to rules that JSON Schema cannot express."""
    import schemathesis

    for hook in (before_call, filter_failure):
        schemathesis.hook(hook)
    yield
    for hook in (before_call, filter_failure):
        schemathesis.hooks.unregister(hook)


def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Makes amounts whole, which every currency allows, and each Idempotency-Key unique."""
    if case.meta.generation.mode.is_positive:
        case.body = whole_amounts(case.body)
        if "Idempotency-Key" in (case.headers or {}):
            case.headers["Idempotency-Key"] = f"key-{next(NUMBERS)}"


def filter_failure(_context: Any, failure: Any, case: Any, _response: Any) -> bool:
    """Ignores rejected cursors: a generated one is never valid."""
    return not (type(failure).__name__ == "RejectedPositiveData" and "cursor" in (case.query or {}))


def whole_amounts(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {name: whole_amounts(member, name) for name, member in value.items()}
    if isinstance(value, list):
        return [whole_amounts(member) for member in value]
    return int(float(value)) if name in ("total_amount", "unit_price") else value


def contents(document: Json, media_type: str) -> Iterator[tuple[str, Json]]:
    """Each response's content of a media type, with its location."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if media_type in response.get("content", {}):
                    yield f"{method} {path} {status}", response["content"][media_type]


def examples(content: Json) -> list[Any]:
    single = [content["example"]] if "example" in content else []
    return single + [example["value"] for example in content.get("examples", {}).values()]


def members(schemas: Json, name: str) -> set[str]:
    return set(schemas[name]["properties"])


def schema_errors(schemas: Json, schema: Json, value: Any) -> list[str]:
    whole = {**schema, "components": {"schemas": schemas}}
    return [error.message for error in Draft202012Validator(whole).iter_errors(value)]
