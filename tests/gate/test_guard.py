"""The guard brings a server back from each kind of bad kernel, and keeps a good one.

Two stories are told at a time, those of all selected tests.  tests/gate/stories.py has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kbuild.core import table
from kbuild.gate.round import Round
from tests.gate import stories
from tests.gate.conftest import GUARDED
from tests.gate.stories import STORIES, Told

_AT_ONCE = 2


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, round: Round) -> Iterator[Callable[[str], Told]]:
    """The function that waits for the end of a story."""
    asked = {
        item.callspec.params["story"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "story" in getattr(item, "fixturenames", ())
    }
    with stories.scene(round) as scene, ThreadPoolExecutor(_AT_ONCE, "stories") as pool:
        futures = {
            name: pool.submit(stories.tell, scene, name) for name in STORIES if name in asked
        }
        try:
            yield lambda name: futures[name].result()
        except BaseException:
            round.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        done = [(name, one.result()) for name, one in futures.items() if not one.cancelled()]
    rows = [
        (
            name,
            one.happened,
            "" if one.seconds is None else f"{one.seconds:.0f} s",
            f"{one.took_s:.0f} s",
        )
        for name, one in done
    ]
    request.config.stash[GUARDED] = table.text(
        ("story", "what happened", "good after", "in all"),
        rows,
        unbroken=1,
        right=("good after", "in all"),
    )


# One of each kind; GRUB alone shows the power cuts, too.
_USUAL = (
    "check-of-the-user-fails",
    "garbage-as-vmlinuz",
    "good-kernel-overwritten",
    "hang-with-interrupts-off-watchdog",
    "healthy",
    "no-root-file-system",
    "oops-in-probation",
    "power-cut-in-try",
    "removed-and-purged",
)


@pytest.mark.parametrize(
    "story",
    [pytest.param(one, marks=() if one in _USUAL else pytest.mark.long) for one in STORIES],
)
def test_the_server_comes_back(story: str, told: Callable[[str], Told]) -> None:
    reasons = told(story).trial.reasons
    assert not reasons, "\n".join(reasons)
