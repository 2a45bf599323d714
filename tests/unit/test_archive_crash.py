"""A kill at each step of a writer: what servers see stays whole, and the same command finishes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.archive import operations, snapshots, verify
from kbuild.core import fs
from kbuild.core.model import Settings
from tests.unit import releases
from tests.unit.releases import release

# Each step that changes a name; a kill between them leaves the same as one of these.
STEPS = ("rename", "link", "symlink", "unlink", "rmdir")
# Few steps in a scratch directory are tried; the next writer removes it anyway.
SAMPLED = 30
OLD, NEW = (release(number, small=True) for number in (1, 2))


def stage_new(given: Settings) -> None:
    operations.stage(given, NEW, releases.files(given.build, NEW))


def prepare_first(given: Settings) -> None:
    """Leave no archive at all."""


def prepare_old(given: Settings) -> None:
    operations.stage(given, OLD, releases.files(given.build, OLD))
    operations.promote(given, OLD.id, 100)


def prepare_staged(given: Settings) -> None:
    prepare_old(given)
    stage_new(given)


def prepare_promoted(given: Settings) -> None:
    prepare_staged(given)
    operations.promote(given, NEW.id, 100)


def prepare_many(given: Settings) -> None:
    """Leave an archive from which the next promotion removes packages and snapshots."""
    for number in (1, 3, 4, 5, 6, 7):
        one = release(number, small=True)
        operations.stage(given, one, releases.files(given.build, one))
        operations.promote(given, one.id, 100)
    last = release(8, small=True)
    operations.stage(given, last, releases.files(given.build, last))


def stage_with_new_evidence(given: Settings) -> None:
    verdict = releases.verdict(NEW, when="2026-12-01T12:00:00+00:00")
    operations.stage(given, NEW, releases.files(given.build, NEW, verdict))


Action = Callable[[Settings], object]
CASES: dict[str, tuple[Action, Action]] = {
    "stage, the first": (prepare_first, stage_new),
    "stage": (prepare_old, stage_new),
    "new evidence": (prepare_promoted, stage_with_new_evidence),
    "promote": (prepare_staged, lambda given: operations.promote(given, NEW.id, 10)),
    "promote to all": (
        prepare_many,
        lambda given: operations.promote(given, release(8, small=True).id, 100),
    ),
    "rollback": (prepare_promoted, lambda given: operations.rollback(given, NEW.id, "bad")),
}


def killed(given: Settings, action: Action, step: int) -> bool:
    """Run an action in a process that is killed before its ``step``; return if it was."""
    child = os.fork()
    if child == 0:
        counted = {True: 0, False: 0}

        def watched(name: str) -> Callable[..., object]:
            function = getattr(os, name)

            def call(*names: str | Path, **options: object) -> object:
                paths = [Path(one) for one in names if isinstance(one, str | Path)]
                inside = [one for one in paths if one.is_relative_to(given.archive)]
                # rmtree uses names relative to an open directory.
                if inside or "dir_fd" in options:
                    last = inside[-1].relative_to(given.archive) if inside else Path(".x")
                    hidden = any(part.startswith(".") for part in last.parts)
                    counted[hidden] += 1
                    steps = counted[False] + counted[True] // SAMPLED
                    if steps == step and not (hidden and counted[True] % SAMPLED):
                        os.kill(os.getpid(), signal.SIGKILL)
                return function(*names, **options)

            return call

        status = 1
        try:
            for name in STEPS:
                setattr(os, name, watched(name))
            action(given)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def result(given: Settings) -> dict[str, object]:
    """Return what must not depend on a kill: what servers see, the records and the pool."""
    links = snapshots.linked(given.archive)
    return {
        "plan": {
            name: snapshots.read(given.archive, one).plan[name] for name, one in links.items()
        },
        "records": [
            dataclasses.replace(
                one,
                history=tuple(dataclasses.replace(each, when="") for each in one.history),
            )
            for one in operations.releases(given)
        ],
        "pool": {
            path.relative_to(given.archive): fs.sha256_file(path)
            for path in (given.archive / "pool").rglob("*")
            if path.is_file()
        },
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_a_kill_at_each_step(name: str, tmp_path: Path) -> None:
    prepare, action = CASES[name]
    before, after = (releases.settings(tmp_path / part) for part in ("before", "after"))
    prepare(before)
    if before.archive.exists():
        shutil.copytree(before.archive, after.archive, symlinks=True)
    action(after)
    expected = result(after)
    step = 0
    was_killed = True
    while was_killed:
        step += 1
        given = releases.settings(tmp_path / str(step))
        if before.archive.exists():
            shutil.copytree(before.archive, given.archive, symlinks=True)
        was_killed = killed(given, action, step)
        if (given.archive / "dists").exists():
            # An index may lag behind the records, and nobody has seen the packages of a rollback.
            late = ("as the records say", "it does not belong here")
            found = [one for one in verify.check(given).findings if not one.what.endswith(late)]
            assert not found, (name, step, found)
        if step % 2:
            # A release begins so, and finds nothing wrong then.
            operations.refresh(given)
            if given.archive.exists():
                assert verify.check(given).findings == (), (name, step)
        action(given)
        assert result(given) == expected, (name, step)
        assert verify.check(given).findings == (), (name, step)
        fs.remove_tree(tmp_path / str(step))
    assert step > 2
