"""Out of threads or file descriptors: 503 until it ends, and no leaked state."""

import os
import threading
from typing import Any

import pytest

from chalicelib.composition import connections
from local.database import Urls
from tests.support.refusals import assert_unavailable
from tests.support.servers import api_on
from tools.client import Client


def test_no_query_runs_without_a_read_timeout_thread(alice: Client, database: Urls) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    assert alice.get("/orders").status == 200  # fetches the token keys
    with api_on(database.app):
        with pytest.MonkeyPatch.context() as exhausted:
            exhausted.setattr(threading.Thread, "start", refuse)
            for _ in range(3):
                assert_unavailable(alice.place())
        assert not connections().read_timeout._due

        assert alice.place().status == 201


def test_file_descriptor_exhaustion_is_503_until_it_ends(alice: Client, database: Urls) -> None:
    def refuse(_: int) -> Any:
        raise OSError(24, "Too many open files")

    with api_on(database.app, DB_POOL_MAX="2", DB_POOL_SIZE="2"):
        with pytest.MonkeyPatch.context() as exhausted:
            exhausted.setattr(os, "dup", refuse)
            for _ in range(4):
                assert_unavailable(alice.get("/orders"))

        assert alice.get("/orders").status == 200
