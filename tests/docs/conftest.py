from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.clone import cloned


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    with cloned() as folder:
        yield folder
