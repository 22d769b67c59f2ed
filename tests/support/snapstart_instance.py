"""An instance of the function that obeys: each line that it reads names a step, and gets a line of JSON back.

Its memory can be copied, as Lambda restores the instances of one snapshot: by the system's own fork, of which
Python and its libraries are not told, and with --alone under the process id that it has itself.
"""

import ctypes
import json
import os
import random
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

from psycopg2 import _psycopg

CLONE_NEWPID, CLONE_NEWUSER = 0x20000000, 0x10000000
LIBC = ctypes.PyDLL(None)  # it keeps the GIL: a copy has no other thread to wait for


def snapshot() -> None:
    from app import app
    from chalicelib.snapstart import hooks

    hooks.before_snapshot(app)


def restore() -> float:
    """How many seconds it took."""
    from chalicelib.snapstart import hooks

    before = time.monotonic()
    hooks.after_restore()
    return time.monotonic() - before


def create() -> Any:
    """The answer's status, and the order's id."""
    from app import app
    from chalicelib.snapstart import hooks

    claims = {"custom:tenant_id": sys.argv[1], "sub": "alice"}
    body = json.dumps({**hooks.INVALID_ORDER, "currency": "USD"})
    answer = app(hooks.event("POST", "/orders", claims, body=body), None)
    return answer["statusCode"], json.loads(answer["body"]).get("order", {}).get("order_id")


def draw() -> dict[str, Any]:
    """Something of each generator whose state is memory."""
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
    """What a copy of this process draws, that has not been told that it is one."""
    return _said(_copy, draw)


def restored() -> Any:
    """What a copy draws as an instance of the snapshot."""
    return _said(_copy, lambda: (restore(), draw())[1])


def forked() -> Any:
    """What a child draws, as a server forks its workers."""
    return _said(os.fork, draw)


def _said(fork: Callable[[], int], what: Callable[[], Any]) -> Any:
    read, write = os.pipe()
    if fork() == 0:
        os.write(write, json.dumps(what()).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as said:
        return json.load(said)


def _copy() -> int:
    """A fork that nobody is told of, in a space of process ids of its own: 0 in the copy."""
    if child := LIBC.fork():
        return int(child)
    _in_a_space_of_its_own()
    if LIBC.fork():
        os.wait()
        os._exit(0)
    return 0


def _in_a_space_of_its_own() -> None:
    """The next child is process 1 there. It stays as it is where the kernel refuses."""
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
        _in_a_space_of_its_own()
        if os.fork():
            os.wait()
            sys.exit()
    main()
