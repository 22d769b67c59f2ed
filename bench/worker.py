"""Runs in a contender's bare interpreter, like Lambda's runtime: imports the handler, then calls it.

`python -I -S -B worker.py <folder> <module> <attribute> <core or -> <descriptor>`: nothing but the standard
library and the contender's own folder can be imported. Commands are lines of JSON on standard input,
results are lines of JSON on the descriptor. The contender's own output does not mix with them.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Handler = Callable[[Json, Any], Json]


class Context:
    """Lambda's context object."""

    aws_request_id = "00000000-0000-4000-8000-000000000000"
    function_name = "order-api"
    function_version = "$LATEST"
    invoked_function_arn = "arn:aws:lambda:us-east-1:000000000000:function:order-api"
    log_group_name = "/aws/lambda/order-api"
    log_stream_name = "bench"
    memory_limit_in_mb = "512"

    def get_remaining_time_in_millis(self) -> int:
        return 29_000


class Worker:
    """One contender's handler, and the events that it is called with."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._context = Context()
        self._events: dict[str, list[str]] = {}
        self._statuses: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def call(self, event: Json) -> Json:
        """One call; returns the complete answer."""
        answer = self._handler(event, self._context)
        return {"status": answer["statusCode"], "body": answer["body"]}

    def learn(self, operation: str, events: list[Json], status: int) -> Json:
        """Set the events that `batch` sends in turn, and the expected status."""
        self._events[operation] = [json.dumps(event) for event in events]
        self._statuses[operation] = status
        self._calls[operation] = 0
        return {}

    def batch(self, operation: str, calls: int) -> Json:
        """Nanoseconds of each call, as wall time and as this process's CPU time; every status is checked.

        Only the handler is timed: the event is parsed before, as by Lambda's runtime.
        """
        events, status = self._events[operation], self._statuses[operation]
        wall, cpu = [], []
        for number in range(self._calls[operation], self._calls[operation] + calls):
            event = json.loads(events[number % len(events)])
            cpu_before = time.process_time_ns()
            before = time.perf_counter_ns()
            answer = self._handler(event, self._context)
            after = time.perf_counter_ns()
            cpu.append(time.process_time_ns() - cpu_before)
            wall.append(after - before)
            if answer["statusCode"] != status:
                raise ValueError(f"{operation} was answered {answer['statusCode']}: {answer['body'][:500]}")
        self._calls[operation] += calls
        return {"wall": wall, "cpu": cpu}

    def many(self, calls: int) -> Json:
        """That many calls, all operations in turn."""
        for operation in self._events:
            self.batch(operation, calls // len(self._events))
        return {}

    def memory(self) -> Json:
        """Bytes resident now, and at most so far."""
        return {"now": _from_status("VmRSS"), "peak": _from_status("VmHWM") or _peak()}


def _from_status(name: str) -> int | None:
    """From /proc, because Linux's ru_maxrss includes the parent's memory before exec."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
    except OSError:
        return None


def _peak() -> int:
    max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_rss if sys.platform == "darwin" else max_rss * 1024


def main(folder: str, module: str, attribute: str, core: str, descriptor: str) -> None:
    if core != "-":
        os.sched_setaffinity(0, {int(core)})
    with os.fdopen(int(descriptor), "w", buffering=1) as answers:
        sys.path.insert(0, folder)
        before = time.perf_counter_ns()
        worker = Worker(getattr(importlib.import_module(module), attribute))
        print(json.dumps({"import_ns": time.perf_counter_ns() - before}), file=answers)
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps(getattr(worker, command.pop("do"))(**command)), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
