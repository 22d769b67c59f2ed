"""The image of the Dockerfile runs as an unprivileged user on a read-only file system.

No container engine is needed: a mount namespace has the same read-only file system, the same empty
/dev/shm, the same user and the same command with the same variables.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import hosts
from local.environments import environment as environment_of
from tests.conftest import NewClient
from tests.support.builds import PROJECT
from tests.support.log_leak_plugin import check_log_text
from tools.client import SEED_BYTES, Client, free_port, over_http

pytestmark = pytest.mark.slow

DOCKERFILE = (PROJECT / "shims/gcp/Dockerfile").read_text().replace("\\\n", " ")
REMOUNT_READ_ONLY = """
set -e
cut -d ' ' -f 2 /proc/self/mounts | sort -u | while read -r target; do
    mount -o remount,bind,ro "$target" 2>/dev/null || true
done
mount -t tmpfs -o size=64m,mode=1777 shm /dev/shm
"""
"""Like `docker run --read-only`; remounting /proc and /sys may fail, they contain no files."""


def _instructions(instruction: str) -> list[str]:
    return re.findall(rf"^(?:{instruction}) (.*)$", DOCKERFILE, re.MULTILINE)


def _image_variables() -> dict[str, str]:
    return dict(part.split("=", 1) for line in _instructions("ENV") for part in shlex.split(line))


def _as_image_user() -> list[str]:
    (user,) = _instructions("USER")
    # Lets it enter private folders of this machine, such as root's home, if Python or the build is in them.
    capabilities = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs", *capabilities]


def _namespace(script: str, folder: Path, variables: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", REMOUNT_READ_ONLY + script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A GCP build in a folder that other users can enter; skips the tests without mount namespaces."""
    permitted = sys.platform == "linux" and all(map(shutil.which, ("unshare", "setpriv")))
    if (
        not permitted
        or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode
    ):
        if os.environ.get("CI"):
            pytest.fail("No mount namespaces here: CI has to run as root on Linux, with util-linux")
        pytest.skip("THE READ-ONLY IMAGE IS NOT TESTED: mount namespaces need root on Linux, and util-linux")
    folder = Path(tempfile.mkdtemp(prefix="order-api-image-"))
    hosts.build("gcp", folder / "gcp")
    yield folder / "gcp"
    shutil.rmtree(folder)


@dataclass
class Container:
    port: int
    process: "subprocess.Popen[str]"


@pytest.fixture(scope="module")
def container(image: Path, environment: dict[str, str]) -> Iterator[Container]:
    *_, command = _instructions("CMD")
    words = json.loads(command)
    words[0] = str(environment_of("gcp").with_name(words[0]))
    port = free_port()
    variables = {**_image_variables(), **environment, "PORT": str(port)}
    process = _namespace(f"exec {shlex.join([*_as_image_user(), *words])}", image, variables)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(
                    f"The container does not start: {process.stdout.read() if process.stdout else None}"
                )
            time.sleep(0.1)
    yield Container(port, process)
    process.send_signal(signal.SIGTERM)
    try:
        check_log_text("the container's output", process.communicate(timeout=20)[0])
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def test_read_only_image_allows_writes_only_to_memory(image: Path) -> None:
    packages = environment_of("gcp").parent.parent
    places = [".", "chalicelib", "chalicelib/__pycache__", "/tmp", "/var/tmp", "/dev/shm", str(packages)]
    paths = " ".join(map(shlex.quote, places))
    script = f"for place in {paths}; do touch $place/written 2>/dev/null && echo $place; done; true"

    as_user = _namespace(shlex.join([*_as_image_user(), "sh", "-c", script]), image, {})
    as_root = _namespace(script, image, {})

    assert as_user.communicate(timeout=30)[0].split() == ["/dev/shm"]
    assert as_root.communicate(timeout=30)[0].split() == ["/dev/shm"]


def test_image_user_cannot_write_the_build(image: Path) -> None:
    result = subprocess.run(
        [*_as_image_user(), "find", image, "-writable"], capture_output=True, text=True, check=True
    )

    assert result.stdout == ""


def test_read_only_image_places_the_readme_order(container: Container, client: NewClient) -> None:
    alice: Client = client(transport=over_http("127.0.0.1", container.port))

    placed = alice.place(raw=SEED_BYTES)

    assert placed.status == 201, placed.body
    assert alice.get(f"/orders/{placed.json['order']['order_id']}").status == 200
    status = Path(f"/proc/{container.process.pid}/status").read_text()
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)


def test_docker_health_check_detects_a_missing_server(container: Container) -> None:
    (check,) = _instructions("HEALTHCHECK")
    words = json.loads(check.partition(" CMD ")[2])
    words[0] = sys.executable

    def healthy(port: int) -> bool:
        return (
            subprocess.run(words, env={"PORT": str(port)}, capture_output=True, check=False).returncode == 0
        )

    assert healthy(container.port)
    assert not healthy(free_port())


def test_base_image_is_pinned_to_a_release() -> None:
    (base,) = _instructions("FROM")

    assert re.fullmatch(r"python:3\.13\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    (install,) = (line for line in _instructions("RUN") if line.startswith("pip "))
    assert "--require-hashes" in install.split()
