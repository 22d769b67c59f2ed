"""Serves a built Azure function app on this machine, in place of the Functions host's Python worker.

Runs in an environment that contains only the function app's requirements. HTTP is handled by
local/azure_front.py in another process, as by the Functions host. Requests and answers go through the
converters of the real azure-functions package; functions run on as many threads as the worker has.
"""

import logging
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Listener
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import azure.functions
from azure.functions.http import HttpRequestConverter, HttpResponseConverter
from azure.functions.meta import Datum

Call = tuple[str, str, Mapping[str, str], bytes]
"""Method, URL, headers and body of a request: names in lower case, repeated headers joined."""
Reply = tuple[int, list[tuple[str, str]], bytes]


def main(address: str) -> None:
    """Serves one call for each connection to the unix socket at `address`."""
    # Like the worker, which sends the root logger's records to the host and does not collect other output.
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    function = _function()
    workers = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4))
    with Listener(address, "AF_UNIX", backlog=128) as listener:
        while True:
            workers.submit(_serve, function, listener.accept())


def _serve(function: Any, connection: Connection) -> None:
    with connection, suppress(EOFError, OSError):  # the front closed the connection
        connection.send(_invoke(function, *connection.recv()))


def _function() -> Any:
    """The one function of function_app.py; as the worker does, looks for an instance of FunctionApp."""
    module = import_module("function_app")
    (app,) = [value for value in vars(module).values() if isinstance(value, azure.functions.FunctionApp)]
    (function,) = app.get_functions()
    trigger: Any = function.get_trigger()
    if (trigger.route, trigger.auth_level.name) != ("{*path}", "ANONYMOUS"):
        raise SystemExit("function_app.py: the one function must take every path, anonymously")
    return function.get_user_function()


def _invoke(call: Any, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
    request = HttpRequestConverter.decode(_datum(method, url, headers, body), trigger_metadata={})
    try:
        answer = call(req=request, context=SimpleNamespace(invocation_id=str(uuid4())))
        http = HttpResponseConverter.encode(answer, expected_type=None).value
    except Exception as error:
        print(f"the function failed: {error!r}", file=sys.stderr)
        return 500, [], b""
    pairs = [(name, value.value) for name, value in http["headers"].items()]
    return int(http["status_code"].value), pairs, http["body"].value


def _datum(method: str, url: str, headers: Mapping[str, str], body: bytes) -> Datum:
    """The invocation's input as the host sends it."""
    texts = {name: Datum(value, "string") for name, value in headers.items()}
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
    main(sys.argv[1])
