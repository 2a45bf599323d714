"""A few days of unattended watching with a signed loopback archive: each ends as it should.

``python -m tests.unit.watched_days CHAPTER`` tells a chapter of the whole story, which the tests
in tests/gate tell.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import simulated, watched_days


@pytest.mark.timeout(300)
def test_a_few_days_of_watching(tmp_path: Path) -> None:
    assert not simulated.lacking()
    told = watched_days.run(tmp_path, ["short"])
    assert [one.status for one in told] == [3, 65, 0, 0]
