"""An instance of the function for tests: each line of input names a step, each line of output is its JSON.

Its memory can be copied, as Lambda restores the instances of one snapshot: by the system call fork,
which Python and its libraries do not notice, and with --alone under the same process id.
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
LIBC = ctypes.PyDLL(None)  # keeps the GIL: a copy has no other thread to wait for


def snapshot() -> None:
    from app import app
    from chalicelib.snapstart import hooks

    hooks.before_snapshot(app)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()  # a copy made while a thread ends would inherit threading's lock, held for ever


def restore() -> float:
    """Returns the seconds that it took."""
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
    of_psycopg2 = ctypes.create_string_buffer(16)
    ctypes.CDLL(_psycopg.__file__).RAND_bytes(of_psycopg2, len(of_psycopg2))
    return {
        "process": os.getpid(),
        "order": create(),
        "psycopg2's OpenSSL": of_psycopg2.raw.hex(),
        "Python's OpenSSL": ssl.RAND_bytes(16).hex(),
        "random": random.random(),
    }


def copied() -> Any:
    """The values of a copy of this process, without the hook for restores."""
    return _output(_copy, draw)


def restored() -> Any:
    """The values of a copy after the hook, as an instance of the snapshot."""
    return _output(_copy, lambda: (restore(), draw())[1])


def forked() -> Any:
    """The values of a child, as a server forks its workers."""
    return _output(os.fork, draw)


def _output(fork: Callable[[], int], what: Callable[[], Any]) -> Any:
    read, write = os.pipe()
    if fork() == 0:
        os.write(write, json.dumps(what()).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as said:
        return json.load(said)


def _copy() -> int:
    """A fork that Python and its libraries do not notice, in a new process id namespace: 0 in the copy."""
    if child := LIBC.fork():
        return int(child)
    _enter_new_namespace()
    if LIBC.fork():
        os.wait()
        os._exit(0)
    return 0


def _enter_new_namespace() -> None:
    """Makes the next child process 1 of a new namespace. Has no effect where the kernel refuses."""
    LIBC.unshare(CLONE_NEWPID if os.geteuid() == 0 else CLONE_NEWPID | CLONE_NEWUSER)


STEPS = (snapshot, restore, create, draw, copied, restored, forked)


def main() -> None:
    known = {step.__name__: step for step in STEPS}
    answers, sys.stdout = sys.stdout, sys.stderr  # the API logs there
    for line in sys.stdin:
        answers.write(json.dumps(known[line.strip()]()) + "\n")
        answers.flush()


if __name__ == "__main__":
    if "--alone" in sys.argv:
        _enter_new_namespace()
        if os.fork():
            os.wait()
            sys.exit()
    main()
