"""A function instance for tests: each input line names a step, each output line is the step's JSON result.

Its memory can be copied, as Lambda restores instances from one snapshot: with the system call fork, of
which Python and its libraries get no notice, and with --alone under the same process id.
"""

import ctypes
import json
import os
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from psycopg2 import _psycopg

CLONE_NEWPID, CLONE_NEWUSER = 0x20000000, 0x10000000
LIBC = ctypes.PyDLL(None)  # PyDLL keeps the GIL: a copy has only this thread


def snapshot() -> None:
    from app import app
    from chalicelib.snapstart import hooks

    hooks.before_snapshot(app)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()  # otherwise a copy could inherit a threading lock that is held and never released


def restore() -> float:
    """Returns the seconds taken."""
    from chalicelib.snapstart import hooks

    before = time.monotonic()
    hooks.after_restore()
    return time.monotonic() - before


def create() -> Any:
    """Returns the answer's status and the order's id."""
    from app import app
    from chalicelib.snapstart import hooks

    claims = {"custom:tenant_id": sys.argv[1], "sub": "alice"}
    body = json.dumps({**hooks.INVALID_ORDER, "currency": "USD"})
    answer = app(hooks.event("POST", "/orders", claims, body=body), None)
    return answer["statusCode"], json.loads(answer["body"]).get("order", {}).get("order_id")


def draw() -> dict[str, Any]:
    """One value of each generator with state in memory."""
    psycopg2_bytes = ctypes.create_string_buffer(16)
    ctypes.CDLL(_psycopg.__file__).RAND_bytes(psycopg2_bytes, len(psycopg2_bytes))
    return {
        "process": os.getpid(),
        "order": create(),
        "psycopg2's OpenSSL": psycopg2_bytes.raw.hex(),
        "Python's OpenSSL": ssl.RAND_bytes(16).hex(),
        "random": random.random(),
    }


def copied() -> Any:
    """Values from a copy of this process, without the restore hook."""
    return _output(_copy, draw)


def restored() -> Any:
    """Values from a copy after the restore hook, like an instance of the snapshot."""
    return _output(_copy, lambda: (restore(), draw())[1])


def forked() -> Any:
    """Values from a child made by os.fork, as servers fork workers."""
    return _output(os.fork, draw)


def _output(fork: Callable[[], int], function: Callable[[], Any]) -> Any:
    read, write = os.pipe()
    if fork() == 0:
        os.write(write, json.dumps(function()).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as pipe:
        return json.load(pipe)


def _copy() -> int:
    """Forks without Python's fork hooks, in a new process id namespace. Returns 0 in the copy."""
    if child := LIBC.fork():
        return int(child)
    _enter_new_namespace()
    if LIBC.fork():
        os.wait()
        os._exit(0)
    return 0


def _enter_new_namespace() -> None:
    """Makes the next child process 1 of a new namespace. No effect if the kernel refuses."""
    LIBC.unshare(CLONE_NEWPID if os.geteuid() == 0 else CLONE_NEWPID | CLONE_NEWUSER)


STEPS = (snapshot, restore, create, draw, copied, restored, forked)


def main() -> None:
    steps = {step.__name__: step for step in STEPS}
    answers, sys.stdout = sys.stdout, sys.stderr  # the API logs there
    for line in sys.stdin:
        answers.write(json.dumps(steps[line.strip()]()) + "\n")
        answers.flush()


if __name__ == "__main__":
    if "--alone" in sys.argv:
        _enter_new_namespace()
        if os.fork():
            os.wait()
            sys.exit()
    main()
