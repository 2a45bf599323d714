"""Each case of the gate passes, for a pair of releases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kbuild.archive.required import REQUIRED
from kbuild.gate.cases import CASES
from kbuild.gate.report import PASSED, CaseResult

# In the order in which the round judges them.
NAMES = [name for one in CASES for name in one.names]


@pytest.mark.parametrize("case", NAMES)
def test_the_case_passes(case: str, judged: Callable[[str], CaseResult]) -> None:
    result = judged(case)
    assert result.outcome == PASSED, "\n".join(result.reasons)


def test_every_required_case_is_among_them() -> None:
    assert sorted(NAMES) == sorted(REQUIRED)
