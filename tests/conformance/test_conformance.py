"""Every host gives the same answer to the same request, byte for byte."""

import pytest

from tools.client import Answer
from tools.conform import suite
from tools.conform.cases import CASES, Case

pytestmark = pytest.mark.slow
NAMES = [case.name for case in CASES]


def test_the_list_is_long_and_its_names_are_unique() -> None:
    assert len(CASES) >= 60
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(suite.expected()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_request_is_answered_alike_everywhere(answers: dict[str, tuple[Case, Answer]], name: str) -> None:
    case, answer = answers[name]

    assert suite.differences(case, answer, suite.expected()[name]) == []
