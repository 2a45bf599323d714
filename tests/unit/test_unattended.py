"""The actions of a real round: release, judge and clean as the tasks do, without waiting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from kbuild import unattended
from kbuild.archive import operations
from kbuild.archive.release import State
from kbuild.core import errors, fs, places
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Policy
from kbuild.gate.report import GateError
from kbuild.watch import page, rounds, state
from kbuild.watch.rounds import HealthError, Work
from kbuild.watch.state import Against
from tests.unit import releases
from tests.unit.test_releasing import Line, line

__all__ = ["line"]


def work(line: Line) -> Work:
    return unattended.real_work(line.settings, [line.packaged.target], modules="auto", accel=None)


def test_a_release_is_that_of_the_task(line: Line) -> None:
    assert work(line).release(line.packaged.target) == line.packaged.id
    assert line.states() == {line.packaged.id: State.STAGED}


def test_a_release_of_a_person_is_not_waited_for(line: Line) -> None:
    with (
        places.held(line.settings),
        fs.lock(line.settings.build / ".release.lock"),
        pytest.raises(InfrastructureError, match="another run"),
    ):
        work(line).release(line.packaged.target)
    assert line.ran == []


def test_a_release_is_judged_again_by_the_gate(line: Line) -> None:
    with places.held(line.settings):
        line.run()
        first, line.packaged = line.packaged, releases.release(2)
        line.run()
    operations.promote(line.settings, first.id, 100)
    assert operations.complaints(line.settings, line.packaged.id)
    line.refuses = ("install",)
    with pytest.raises(GateError):
        work(line).judge(line.packaged.id)
    assert operations.complaints(line.settings, line.packaged.id)
    line.refuses = ()
    work(line).judge(line.packaged.id)
    assert not operations.complaints(line.settings, line.packaged.id)


def test_room_is_made_unless_a_run_uses_the_directories(line: Line) -> None:
    made = work(line)
    with places.held(line.settings), pytest.raises(InfrastructureError, match="another run"):
        made.clean()
    made.clean()


def test_a_whole_round_releases_and_shows_its_page(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = line.packaged.target
    found = Against(target.suite, target.flavour, target.variant, "", newest="6.1.192-3")
    actions = dataclasses.replace(
        work(line),
        ask=lambda *_: dataclasses.replace(found, asked=unattended.now().isoformat()),
    )
    status = rounds.run(line.settings, [target], actions, modules="auto")
    answer = unattended.answer(status)
    assert (answer.status, answer.summary) == (0, f"staged {line.packaged.id}")
    home = line.settings.archive / state.HOME
    assert line.packaged.kernel in (home / page.PAGE).read_text()
    assert "6.1.192-3" in answer.text


def test_the_health_command_is_asked_only_if_it_is_set(line: Line) -> None:
    assert work(line).healthy is None
    policy = Policy(health_command=("test", "id", "="))
    line.settings = dataclasses.replace(line.settings, policy=policy)
    healthy = work(line).healthy
    assert healthy is not None
    healthy("id")
    with pytest.raises(HealthError):
        healthy("other")


def test_the_health_command_is_given_the_id() -> None:
    unattended.check_health(["test", "id", "="], "id")
    with pytest.raises(HealthError, match="about other") as bad:
        unattended.check_health(["sh", "-c", "echo $0 panics >&2; exit 4"], "other")
    assert bad.value.found == "exit status 4\nother panics"
    with pytest.raises(InfrastructureError):
        unattended.check_health(["no-such-program"], "id")


def test_free_space_is_asked_where_a_build_writes(tmp_path: Path) -> None:
    made = releases.settings(tmp_path)
    # None exists yet.
    assert 0 < unattended.free(made) < 10**18


@pytest.mark.parametrize("fullest", ["build", "cache", "archive"])
def test_the_fullest_place_of_a_release_counts(
    fullest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = releases.settings(tmp_path)
    for path in (made.build, made.cache, made.archive):
        path.mkdir(parents=True, exist_ok=True)

    def room(places: Iterable[Path]) -> list[tuple[int, str]]:
        return [(1 if one == getattr(made, fullest) else 9, str(one)) for one in places]

    monkeypatch.setattr(errors, "room", room)
    assert unattended.free(made) == 1
