"""Every host gives the same answer to the same request, byte for byte."""

import pytest

from tools.client import Answer
from tools.conform import suite
from tools.conform.cases import CASES, Case

pytestmark = pytest.mark.slow
NAMES = [case.name for case in CASES]


def test_conformance_cases_are_complete_and_uniquely_named() -> None:
    assert len(CASES) >= 60
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(suite.expected()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_host_gives_the_expected_response(answers: dict[str, tuple[Case, Answer]], name: str) -> None:
    case, answer = answers[name]

    assert suite.differences(case, answer, suite.expected()[name]) == []
