"""Serves a built Azure function app: what the Functions host and its Python worker do, on this machine.

Runs in an environment that holds the function app's requirements and nothing else. Requests and answers
pass the converters of the real azure-functions package; functions run on as many threads as the worker has.
"""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import azure.functions
from azure.functions.http import HttpRequestConverter, HttpResponseConverter
from azure.functions.meta import Datum

from local import front


def main(host: str, port: int) -> None:
    # Like the worker's, which hands records of the root logger to the host, and collects nothing else.
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    call = _function()
    workers = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4))

    def exchange(method: str, target: str, headers: front.Pairs, body: bytes) -> front.Reply:
        url = f"http://{host}:{port}{target}"
        return workers.submit(_invoke, call, method, url, headers, body).result()

    front.serve(exchange, host, port).serve_forever()


def _function() -> Any:
    """The one function of function_app.py, found as the worker finds it: by the FunctionApp's type."""
    module = import_module("function_app")
    (found,) = [each for each in vars(module).values() if isinstance(each, azure.functions.FunctionApp)]
    (function,) = found.get_functions()
    trigger: Any = function.get_trigger()
    if (trigger.route, trigger.auth_level.name) != ("{*path}", "ANONYMOUS"):
        raise SystemExit("function_app.py: the one function must take every path, anonymously")
    return function.get_user_function()


def _invoke(call: Any, method: str, url: str, headers: front.Pairs, body: bytes) -> front.Reply:
    request = HttpRequestConverter.decode(_datum(method, url, headers, body), trigger_metadata={})
    try:
        answer = call(req=request, context=SimpleNamespace(invocation_id=str(uuid4())))
        http = HttpResponseConverter.encode(answer, expected_type=None).value
    except Exception as error:
        print(f"the function failed: {error!r}", file=sys.stderr)
        return 500, [], b""
    found = {name: value.value for name, value in http["headers"].items()}
    return int(http["status_code"].value), found.items(), http["body"].value


def _datum(method: str, url: str, headers: front.Pairs, body: bytes) -> Datum:
    """The invocation's input as the host sends it: header names in lower case, repeats joined."""
    texts = {name: Datum(value, "string") for name, value in front.joined(headers).items()}
    query = {name: Datum(value, "string") for name, value in parse_qsl(urlsplit(url).query)}
    return Datum(
        {
            "method": Datum(method, "string"),
            "url": Datum(url, "string"),
            "headers": texts,
            "query": query,
            "params": {},
            "body": Datum(body, "bytes"),
        },
        "http",
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
