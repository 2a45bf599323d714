"""Whole rounds on a real archive: only mirror, compile and gate are stand-ins, and the clock."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from kbuild import unattended
from kbuild.archive import evidence, operations, snapshots, verify
from kbuild.archive.release import Record, State
from kbuild.core import fs
from kbuild.core.errors import (
    BuildError,
    FullDiskError,
    InfrastructureError,
    KbuildError,
    SigningError,
    UserError,
)
from kbuild.core.model import Policy, Settings, Target
from kbuild.fetch import roots
from kbuild.ship import mok, versions
from kbuild.watch import asking, inputs, page, rounds, state, summary
from kbuild.watch.rounds import BusyError, HealthError, Work
from kbuild.watch.state import Against, Answer, Failure, Outcome, Status, Step, Told
from tests.unit import releases, secure_boot
from tests.unit.command_line import Here, here
from tests.unit.test_docs import first_column
from tests.unit.test_json import COMMON, asked

__all__ = ["here"]

TARGET = Target("bookworm", "cloud-amd64")
NAME = "bookworm-cloud-amd64"
GB = 1_000_000_000


class Crashed(KbuildError):  # noqa: N818 - the name describes the event
    """The verdict of a guest."""

    exit_status = 21
    kind = "guest"


@dataclass
class Operator:
    """A server that is kept current by rounds, its distro, and what went wrong there."""

    settings: Settings
    newest: str = "6.1.192-3"
    mirror: Failure | None = None
    fails: BaseException | None = None  # raised by each release
    gate_fails: KbuildError | None = None  # when a release is judged again
    bad: set[str] = field(default_factory=set)  # IDs with a bad report
    free: int = 100 * GB
    freed: int = 0  # by cleaning
    channel_fails: KbuildError | None = None
    passed: timedelta = timedelta()
    key_expires: datetime | None = None
    no_key: bool = False
    wrong: timedelta | None = timedelta()  # of our clock, by the mirrors; None: none answers
    did: list[str] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    targets: tuple[Target, ...] = (TARGET,)
    changes: dict[str, Any] = field(default_factory=dict)  # of the work
    code: str = "code"

    def now(self) -> datetime:
        return datetime.now(UTC) + self.passed

    def key(self) -> datetime | None:
        if self.no_key:
            raise SigningError("there is no key")
        return self.key_expires

    def clocks(self) -> list[tuple[str, datetime]]:
        return [] if self.wrong is None else [("http://m.example", self.now() - self.wrong)]

    def later(self, **passed: float) -> None:
        self.passed += timedelta(**passed)

    def policy(self, **policy: Any) -> None:  # noqa: ANN401
        self.settings = dataclasses.replace(self.settings, policy=Policy(**policy))

    def ask(self, target: Target, records: Sequence[Record], with_source: bool) -> Against:
        self.did.append("source" if with_source else "ask")
        promoted, staged = asking.ours(target, records)
        return Against(
            *(target.suite, target.flavour, target.variant, self.now().isoformat()),
            newest="" if self.mirror else self.newest,
            promoted=promoted,
            staged=staged,
            applies=Answer(Told.YES) if with_source else state.UNKNOWN,
            error=self.mirror,
        )

    def release(self, target: Target) -> str:
        self.did.append("release")
        if self.fails is not None:
            raise self.fails
        made = releases.release(
            self.settings.revision, base=self.newest, suite=target.suite, small=True
        )
        files = releases.files(self.settings.build, made, self.verdict(made))
        return operations.stage(self.settings, made, files).id

    def verdict(self, made: Any) -> dict[str, Any]:  # noqa: ANN401
        older = [
            one.id
            for one in operations.releases(self.settings)
            if one.state in (State.PROMOTED, State.SUPERSEDED) and one.id != made.id
        ]
        return releases.verdict(made, older=older, when=self.now().isoformat())

    def judge(self, id: str) -> None:
        self.did.append("judge")
        if self.gate_fails is not None:
            raise self.gate_fails
        record = self.record(id)
        path = self.settings.build / "gate.json"
        path.write_text(json.dumps(self.verdict(record.release(self.settings.archive))))
        operations.judge_again(self.settings, id, path)

    def healthy(self, id: str) -> None:
        self.did.append("health")
        if id in self.bad:
            raise HealthError(f"there is a bad report about {id}")

    def clean(self) -> None:
        self.did.append("clean")
        self.free += self.freed

    def tell(self, message: dict[str, Any]) -> None:
        if self.channel_fails is not None:
            raise self.channel_fails
        self.told.append((message["event"], message["subject"]))

    @property
    def work(self) -> Work:
        made = Work(
            now=self.now,
            clocks=self.clocks,
            key_expires=self.key,
            ask=self.ask,
            release=self.release,
            judge=self.judge,
            promote=functools.partial(operations.promote, self.settings),
            refresh=functools.partial(operations.refresh, self.settings),
            healthy=self.healthy if self.settings.policy.health_command else None,
            free=lambda: self.free,
            clean=self.clean,
            channels={"command": self.tell},
            write=page.write,
        )
        return dataclasses.replace(made, **self.changes)

    def round(self) -> Status:
        """Do a round; what it did is in ``did``, whom it told in ``told``."""
        self.did.clear()
        self.told.clear()
        return rounds.run(self.settings, self.targets, self.work, modules="auto")

    def record(self, id: str) -> Record:
        return next(one for one in operations.releases(self.settings) if one.id == id)

    def states(self) -> dict[str, tuple[State, int]]:
        found = operations.releases(self.settings)
        return {versions.base_version(one.version): (one.state, one.percent) for one in found}

    def installable(self) -> None:
        """Check that the whole archive is as it should be."""
        assert verify.check(self.settings).findings == ()

    def attempt(self, step: Step, subject: str = NAME) -> state.Attempt:
        found = state.read_journal(self.settings.archive).attempt(step, subject)
        assert found is not None
        return found


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    made = Operator(releases.settings(tmp_path))
    made.settings.build.mkdir()
    # The digest of all our code takes a second.
    monkeypatch.setattr(inputs, "code", lambda _: made.code)
    return made


# The usual way.


def test_a_new_version_is_staged_and_then_there_is_nothing_to_do(operator: Operator) -> None:
    status = operator.round()
    assert operator.did == ["ask", "source", "release"]
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}
    assert status.done == (f"staged {NAME}-6.1.192-3+cplayground1",)
    assert operator.round().done == ()
    assert operator.did == ["ask"]
    assert operator.told == []


def test_the_status_tells_everything(operator: Operator) -> None:
    operator.round()
    found = state.read_status(operator.settings.archive)
    assert found is not None
    (target,) = found.targets
    assert target.staged is not None
    # As it was found with the source, which the build needs.
    assert target.applies.told is Told.YES
    assert target.staged.base == "6.1.192-3"
    assert set(found.valid_until) == {"bookworm", "bookworm-staging"}
    (listed,) = found.releases
    assert (listed.base, listed.state, listed.passed) == ("6.1.192-3", "staged", True)
    assert {one.outcome for one in listed.cases} == {evidence.PASSED}
    assert {one.step for one in found.attempts} == {Step.SIGN, Step.CHECK, Step.RELEASE}
    assert (found.version, found.error) == ("0.2.0", None)
    assert found.began <= found.ended


def test_while_it_builds_the_status_has_no_end(operator: Operator) -> None:
    seen: list[Status | None] = []

    def release(target: Target) -> str:
        seen.append(state.read_status(operator.settings.archive))
        return operator.release(target)

    operator.changes["release"] = release
    operator.round()
    (during,) = seen
    assert during is not None
    assert during.ended == ""
    running = [one.key for one in during.attempts if one.outcome is Outcome.RUNNING]
    assert running == [f"release {NAME}"]


def test_a_raised_revision_is_released(operator: Operator) -> None:
    operator.round()
    operator.settings = dataclasses.replace(operator.settings, revision=2)
    assert operator.round().done == (f"staged {NAME}-6.1.192-3+cplayground2",)


def test_two_targets_do_not_wait_for_each_other(operator: Operator) -> None:
    operator.targets = (Target("trixie", "cloud-amd64"), TARGET)

    def release(target: Target) -> str:
        if target.suite == "trixie":
            raise Crashed("the guest crashed")
        return operator.release(target)

    operator.changes["release"] = release
    status = operator.round()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}
    assert unattended.answer(status).status == 21


# Failures.


def test_a_verdict_is_not_asked_for_again_until_something_changes(operator: Operator) -> None:
    operator.fails = Crashed("the guest crashed", log=Path("/log"))
    status = operator.round()
    assert unattended.answer(status).status == 21
    assert operator.told == [("began", f"release {NAME}")]
    for _ in range(2):
        operator.later(days=30)
        status = operator.round()
        assert (operator.did, operator.told) == (["ask"], [])
        assert unattended.answer(status).status == 0
        assert f"still failed: release {NAME}" in unattended.answer(status).summary
    assert operator.attempt(Step.RELEASE).error == Failure(
        "guest", "the guest crashed", 21, log="/log"
    )
    operator.newest = "6.1.193-1"
    operator.round()
    assert "release" in operator.did


def test_our_code_is_an_input(operator: Operator) -> None:
    operator.fails = BuildError("a hunk was refused")
    operator.round()
    operator.code = "mended"
    operator.fails = None
    operator.round()
    assert operator.told == [("over", f"release {NAME}")]
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}


def test_a_person_who_releases_by_hand_ends_the_cause(operator: Operator) -> None:
    operator.fails = Crashed("the guest crashed")
    operator.round()
    operator.fails = None
    operator.release(TARGET)
    status = operator.round()
    assert operator.did == ["ask"]
    assert operator.told == [("over", f"release {NAME}")]
    assert [one.key for one in status.attempts if one.failed] == []


def test_a_machine_is_tried_again_later_and_told_when_it_lasts(operator: Operator) -> None:
    operator.fails = InfrastructureError("QEMU did not start")
    began = []
    for hour in range(6):
        operator.round()
        began += [hour] * operator.did.count("release")
        if operator.told:
            assert operator.told == [("began", f"release {NAME}")]
            assert operator.attempt(Step.RELEASE).tries == 3
        operator.later(minutes=16)
    # After 15, 30 and 60 minutes.
    assert began == [0, 1, 3]
    operator.later(hours=4)
    operator.fails = None
    operator.round()
    assert operator.told == [("over", f"release {NAME}")]


def test_a_mirror_that_is_away_builds_nothing_on_an_old_answer(operator: Operator) -> None:
    operator.fails = InfrastructureError("x")
    operator.round()
    operator.later(hours=1)
    operator.fails, operator.mirror = None, Failure("infrastructure", "no answer", 69)
    status = operator.round()
    assert operator.did == ["ask"]
    (target,) = status.targets
    # The last answer is still shown.
    assert (target.newest, target.error) == ("6.1.192-3", operator.mirror)
    operator.round()
    assert operator.did == []
    operator.later(minutes=16)
    operator.mirror = None
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}
    assert operator.told == []


def test_a_gates_refusal_is_recorded_with_its_cases(operator: Operator) -> None:
    def release(target: Target) -> str:
        made = releases.release(base=operator.newest, small=True)
        verdict = operator.verdict(made) | {"passed": False}
        verdict["cases"][0] |= {"outcome": "failed", "reasons": ["it did not boot"]}
        operations.stage(
            operator.settings, made, releases.files(operator.settings.build, made, verdict)
        )
        raise AssertionError

    operator.changes["release"] = release
    operator.round()
    found = operator.attempt(Step.RELEASE)
    assert found.outcome is Outcome.REFUSED
    assert found.cases[0].reasons == ("it did not boot",)
    assert operator.states() == {"6.1.192-3": (State.REFUSED, 0)}
    # The next attempt does not come as far as the gate.
    del operator.changes["release"]
    operator.code, operator.fails = "other", BuildError("a hunk was refused")
    operator.later(minutes=1)
    operator.round()
    assert operator.attempt(Step.RELEASE).cases == ()


def test_a_defect_of_ours_stops_only_its_step(operator: Operator) -> None:
    operator.fails = KeyError("x")
    status = operator.round()
    assert unattended.answer(status).status == 70
    assert operator.attempt(Step.RELEASE).outcome is Outcome.REFUSED


def test_without_a_key_nothing_is_built(operator: Operator) -> None:
    operator.round()
    operator.newest = "6.1.193-1"

    def refresh() -> None:
        raise SigningError("the key has expired")

    operator.changes["refresh"] = refresh
    operator.round()
    assert operator.did == []
    assert operator.told == [("began", "sign archive")]
    operator.installable()
    del operator.changes["refresh"]
    operator.round()
    assert "6.1.193-1" in operator.states()
    assert operator.told == [("over", "sign archive")]


def test_a_withdrawn_version_is_not_released_again(operator: Operator) -> None:
    operator.round()
    operations.rollback(operator.settings, f"{NAME}-6.1.192-3+cplayground1", "hangs")
    status = operator.round()
    assert operator.did == ["ask"]
    assert "raise 'revision'" in status.done[0]
    assert operator.told == []


# Room.


def test_a_build_makes_room_first(operator: Operator) -> None:
    operator.free, operator.freed = 5 * GB, 40 * GB
    operator.round()
    assert operator.did == ["ask", "clean", "source", "release"]


def test_without_room_nothing_is_built_and_somebody_is_told_at_once(operator: Operator) -> None:
    operator.free = 5 * GB
    status = operator.round()
    assert operator.did == ["ask", "clean"]
    assert operator.told == [("began", f"release {NAME}")]
    assert unattended.answer(status).status == 69
    operator.later(hours=1)
    operator.free = 100 * GB
    operator.round()
    assert operator.told == [("over", f"release {NAME}")]


def test_a_disk_that_is_full_in_the_middle_leaves_the_archive_whole(operator: Operator) -> None:
    operator.round()
    operator.newest, operator.fails = "6.1.193-1", FullDiskError("no room")
    operator.round()
    assert operator.told == [("began", f"release {NAME}")]
    operator.installable()


def test_a_status_that_cannot_be_written_stops_nothing(operator: Operator) -> None:
    def write(status: Status, root: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(root))

    operator.changes["write"] = write
    status = operator.round()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}
    assert status.error is not None
    assert status.error.kind == "full disk"
    assert unattended.answer(status).status == 69


def test_a_page_that_cannot_be_made_does_not_hide_the_status(operator: Operator) -> None:
    def write(status: Status, root: Path) -> None:
        raise KeyError("template")

    operator.changes["write"] = write
    operator.round()
    found = state.read_status(operator.settings.archive)
    assert found is not None
    assert [one.state for one in found.releases] == ["staged"]
    assert found.error is not None
    assert found.error.status == 70


# Promotions.


def staged(operator: Operator, **policy: Any) -> str:  # noqa: ANN401
    operator.policy(promote=((10, 24), (100, 48)), **policy)
    operator.round()
    return f"{NAME}-6.1.192-3+cplayground1"


def test_a_release_is_promoted_by_its_age(operator: Operator) -> None:
    id = staged(operator)
    operator.later(hours=23)
    assert operator.round().done == ()
    operator.later(hours=1.1)
    assert operator.round().done == (f"promoted {id} to 10 %",)
    assert operator.states() == {"6.1.192-3": (State.PROMOTED, 10)}
    # The hours of the next step count from this one, which the archive's own clock dates.
    operator.passed = timedelta(hours=47)
    assert operator.round().done == ()
    operator.passed = timedelta(hours=49)
    assert operator.round().done == (f"promoted {id} to 100 %",)
    assert operator.round().done == ()
    operator.installable()


def test_a_release_is_held_without_its_next_step_and_all_after_it(operator: Operator) -> None:
    steps = ((10, 24), (50, 24), (100, 48))
    operator.policy(promote=steps)
    operator.round()
    operator.later(hours=25)
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.PROMOTED, 10)}
    operator.policy(promote=steps[:1])
    for _ in range(4):
        operator.later(hours=49)
        operator.round()
    assert operator.states() == {"6.1.192-3": (State.PROMOTED, 10)}
    operator.policy(promote=steps)
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.PROMOTED, 50)}


def test_without_a_policy_a_person_promotes(operator: Operator) -> None:
    operator.round()
    operator.later(days=100)
    assert operator.round().done == ()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}


def test_a_bad_report_keeps_a_release_from_more_servers(operator: Operator) -> None:
    id = staged(operator, health_command=("true",))
    operator.later(hours=25)
    operator.bad.add(id)
    status = operator.round()
    assert (status.done, operator.told) == ((), [("began", f"health {id}")])
    assert unattended.answer(status).status == 1
    operator.later(hours=25)
    operator.round()
    assert operator.told == []
    operator.bad.clear()
    assert operator.round().done == ()
    assert operator.told == [("over", f"health {id}")]
    operator.later(hours=23)
    assert operator.round().done == ()
    operator.later(hours=1.1)
    assert operator.round().done == (f"promoted {id} to 10 %",)


def test_without_a_report_nothing_is_promoted(operator: Operator) -> None:
    id = staged(operator, health_command=("true",))
    operator.later(hours=25)

    def away(id: str) -> None:
        raise InfrastructureError("no answer")

    operator.changes["healthy"] = away
    assert operator.round().done == ()
    operator.changes.clear()
    assert operator.round().done == (f"promoted {id} to 10 %",)


def test_a_release_that_was_judged_before_another_was_promoted_is_judged_again(
    operator: Operator,
) -> None:
    first = staged(operator)
    operator.newest = "6.1.193-1"
    operator.round()
    operations.promote(operator.settings, first, 100)
    operator.later(hours=25)
    second = f"{NAME}-6.1.193-1+cplayground1"
    operator.gate_fails = Crashed("the case upgrade failed")
    assert operator.round().done == ()
    assert operator.told == [("began", f"judge {second}")]
    operator.later(hours=1)
    operator.round()
    # The verdict is for the same inputs.
    assert operator.did == ["ask"]
    # Another configuration is another input, and a wrong one is tried again.
    operator.settings = dataclasses.replace(
        operator.settings, archive_url="http://kernels.example/"
    )
    operator.gate_fails = UserError("there are two ways to sign")
    for _ in range(2):
        operator.round()
        assert operator.did == ["ask", "judge"]
        operator.later(hours=1)
    operator.gate_fails = None
    assert operator.round().done == (f"judged {second} again", f"promoted {second} to 10 %")
    assert ("over", f"judge {second}") in operator.told
    operator.installable()


def test_the_status_says_who_promotes_and_when(operator: Operator) -> None:
    def next_of(status: Status) -> list[tuple[int, str]]:
        return [(one.percent, one.at) for one in status.promotions]

    operator.policy(promote=((10, 24), (50, 24)))
    operator.round()
    id = f"{NAME}-6.1.192-3+cplayground1"
    ((percent, at),) = next_of(operator.round())
    since = datetime.fromisoformat(operator.record(id).history[-1].when)
    assert (percent, datetime.fromisoformat(at)) == (10, since + timedelta(hours=24))
    # Without a step it is for a person, before the first one and after the last one.
    operator.policy()
    assert next_of(operator.round()) == [(0, "")]
    operator.policy(promote=((10, 24), (50, 24)))
    operator.later(hours=25)
    assert [percent for percent, _ in next_of(operator.round())] == [50]
    operations.promote(operator.settings, id, 50)
    status = operator.round()
    assert next_of(status) == [(0, "")]
    assert [one.waits for one in summary.summarize(status).kernels] == [True]
    operations.promote(operator.settings, id, 100)
    status = operator.round()
    assert next_of(status) == []
    assert [one.waits for one in summary.summarize(status).kernels] == [False]


def test_an_update_each_day_still_reaches_the_servers(operator: Operator) -> None:
    operator.policy(promote=((100, 24),))
    for day in range(4):
        operator.newest = f"6.1.{200 + day}-1"
        operator.round()
        # The archive's own clock stands still, so each release is as old as the round is late.
        operator.passed = timedelta(hours=25) if day else timedelta(hours=20)
    assert State.SUPERSEDED in {one for one, _ in operator.states().values()}
    operator.installable()


def test_the_newest_of_two_that_are_due_goes_first_and_alone(operator: Operator) -> None:
    operator.policy(promote=((100, 24),))
    for base in ("6.1.192-3", "6.1.193-1"):
        operator.newest = base
        operator.round()
    operator.later(hours=25)
    status = operator.round()
    assert status.done == (f"promoted {NAME}-6.1.193-1+cplayground1 to 100 %",)
    # The older one is not tried: no server could take it any more.
    assert operator.told == []
    assert operator.round().done == ()


def test_a_promotion_that_the_archive_refuses_is_told_once(operator: Operator) -> None:
    id = staged(operator)
    operator.later(hours=25)

    def promote(id: str, percent: int) -> None:
        operator.did.append("promote")
        raise UserError("servers may have another")

    operator.changes["promote"] = promote
    operator.round()
    assert operator.told == [("began", f"promote {id}")]
    operator.later(hours=25)
    operator.round()
    assert (operator.did, operator.told) == (["ask"], [])


# Indexes.


def test_indexes_are_signed_again_before_they_expire(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.round()
    before = operator.round().valid_until
    monkeypatch.setattr(operations, "RENEWAL", timedelta(days=40))
    # Releases' dates have whole seconds.
    after = operator.round().valid_until
    assert after.keys() == before.keys()
    assert all(after[name] >= before[name] for name in after)
    assert operator.attempt(Step.SIGN, "archive").outcome is Outcome.DONE
    operator.installable()


# The clock.


def wrong_by(operator: Operator, wrong: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the archive's own clock be wrong too."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Wrong:
            return super().now(tz) + wrong

    operator.wrong = operator.passed = wrong
    monkeypatch.setattr(operations, "datetime", Wrong)


@pytest.mark.parametrize("days", [40, 25, 1, -2])
def test_a_wrong_clock_signs_nothing_and_is_told_at_once(
    days: int, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.policy(promote=((100, 1),))
    operator.round()
    dates = operator.round().valid_until
    operator.newest = "6.1.193-1"
    with monkeypatch.context() as patch:
        wrong_by(operator, timedelta(days=days), patch)
        assert foreseen(operator) == ("this machine's clock is wrong, so nothing is signed",)
        status = operator.round()
        assert (operator.did, status.done, status.valid_until) == ([], (), dates)
        assert operator.told == [("began", "sign archive")]
        assert unattended.answer(status).status == 69
        assert "clock is wrong" in str(summary.summarize(status).persons)
        # The wrong time is not known to be right, and no mirror says so.
        operator.wrong = None
        operator.later(hours=1)
        assert (operator.round().valid_until, operator.did) == (dates, [])
    operator.wrong = operator.passed = timedelta()
    operator.round()
    assert operator.told == [("over", "sign archive")]
    assert "6.1.193-1" in operator.states()
    operator.installable()


def test_an_archive_signed_in_the_future_is_mended_as_documented(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.round()
    dists = operator.settings.archive / snapshots.DISTS
    before = {path.name: path.readlink() for path in dists.iterdir()}
    with monkeypatch.context() as patch:
        wrong_by(operator, timedelta(days=40), patch)
        operations.resign(operator.settings)
    operator.wrong = operator.passed = timedelta()
    operator.round()
    assert operator.attempt(Step.SIGN, "archive").error is not None
    for name, there in before.items():
        (dists / name).unlink()
        (dists / name).symlink_to(there)
    operations.resign(operator.settings)
    assert operator.round().error is None
    assert operator.attempt(Step.SIGN, "archive").outcome is Outcome.DONE
    operator.installable()


def test_without_a_mirror_a_round_after_a_long_time_waits_for_one(operator: Operator) -> None:
    operator.round()
    operator.wrong = None
    operator.later(days=9)
    assert operator.round().error is None
    assert operator.attempt(Step.SIGN, "archive").outcome is Outcome.DONE
    operator.later(days=11)
    operator.round()
    assert operator.did == []
    found = operator.attempt(Step.SIGN, "archive").error
    assert found is not None
    assert "no mirror confirms" in found.what
    # It may answer soon.
    assert operator.told == []
    operator.wrong = timedelta()
    operator.round()
    assert operator.attempt(Step.SIGN, "archive").outcome is Outcome.DONE


# The key.


def test_an_expiring_key_is_told_twice_and_over_with_the_next(operator: Operator) -> None:
    end = operator.now() + timedelta(days=100)
    operator.key_expires = end
    told = []
    for day in range(103):
        operator.passed = timedelta(days=day, minutes=1)
        # A key that cannot be read is not a better one.
        operator.no_key = day in (20, 95)
        status = operator.round()
        told += [(day, *one) for one in operator.told]
        if not operator.no_key:
            assert status.key_expires == end.isoformat()
        if day == 10:
            (problem,) = summary.summarize(status).persons
            assert (problem.subject, problem.person) == ("the key of the archive", True)
            assert f"expires on {end:%Y-%m-%d}" in problem.what
    assert told == [(10, "began", "key archive"), (86, "began", "key archive")]
    operator.key_expires = operator.now() + timedelta(days=700)
    operator.round()
    assert operator.told == [("over", "key archive")]


def test_the_key_for_secure_boot_is_told_long_before_its_end_and_when_it_is_lost(
    operator: Operator, tmp_path: Path
) -> None:
    own = secure_boot.with_key(operator.settings, tmp_path / "mok")
    operator.settings = own
    (certificate,) = mok.certificates(own)
    told = []
    status = operator.round()
    assert status.mok_expires == certificate.expires.isoformat()
    assert operator.told == []
    for days in (181, 179, 100, 13, 12, -1, -2):
        operator.passed = certificate.expires - timedelta(days=days) - datetime.now(UTC)
        operator.round()
        told += [(days, *one) for one in operator.told]
    subject = "key secure-boot"
    assert told == [(179, "began", subject), (13, "began", subject), (-1, "began", subject)]
    operator.passed = timedelta()
    operator.round()
    assert operator.told == [("over", subject)]
    assert own.mok_key is not None
    own.mok_key.unlink()
    operator.round()
    assert operator.told == [("began", subject)]
    (problem,) = summary.summarize(operator.round()).persons
    assert (operator.told, problem.subject) == ([], "the key for Secure Boot")


# Notifications.


def test_a_notification_that_fails_is_recorded_and_sent_later(operator: Operator) -> None:
    operator.fails = Crashed("the guest crashed")
    operator.channel_fails = InfrastructureError("no answer")
    status = operator.round()
    (cause,) = status.causes
    assert (cause.told, cause.untold) == ((), {"command": "no answer"})
    operator.channel_fails = None
    operator.round()
    assert operator.told == [("began", f"release {NAME}")]
    operator.round()
    assert operator.told == []


# Inputs.


def test_the_code_is_that_which_makes_and_judges_releases(tmp_path: Path) -> None:
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return inputs.code(tmp_path)

    first = write("kbuild/kernel/a.py", "X = 1\n")
    assert write("kbuild/kernel/a.py", "# why\nX = 1\n") == first
    assert write("kbuild/watch/a.py", "X = 1\n") == first
    assert write("kbuild/kernel/__pycache__/a.pyc", "X") == first
    assert write("docs/a.md", "X") == first
    names = ("kbuild/kernel/a.py", "kbuild/release.py", "patches/5.11/a.patch", "tests/gate/a.py")
    seen = {first, *(write(name, "Y = 2\n") for name in names)}
    assert len(seen) == 1 + len(names)


def test_each_input_of_a_release_counts(tmp_path: Path) -> None:
    fragment = tmp_path / "a.config"
    fragment.write_text("CONFIG_A=y\n")
    usual: dict[str, Any] = {
        "target": TARGET,
        "code": "c",
        "configured": "s",
        "version": "1",
        "modules": "auto",
        "records": (),
    }
    others: tuple[dict[str, Any], ...] = (
        {"target": Target("trixie", "cloud-amd64")},
        {"target": dataclasses.replace(TARGET, fragments=(fragment,))},
        {"code": "d"},
        {"configured": "t"},
        {"version": "2"},
        {"modules": "keep"},
    )
    digests = {inputs.of_release(**usual | one) for one in ({}, *others)}
    assert len(digests) == 1 + len(others)


def test_the_configured_signing_and_address_count(tmp_path: Path) -> None:
    certificate = tmp_path / "certificate"
    certificate.write_text("a")
    plain = releases.settings(tmp_path)
    others: tuple[dict[str, Any], ...] = (
        {"archive_url": "http://a.example/"},
        {"mok_certificate": certificate},
        {"mok_key": tmp_path / "key"},
        {"mok_sign_command": ("sign",)},
    )
    digests = {inputs.configured(dataclasses.replace(plain, **one)) for one in ({}, *others)}
    certificate.write_text("b")
    digests.add(inputs.configured(dataclasses.replace(plain, mok_certificate=certificate)))
    assert len(digests) == 2 + len(others)
    # It may be missing; the release tells that.
    certificate.unlink()
    assert inputs.configured(dataclasses.replace(plain, mok_certificate=certificate))


def test_a_corrected_configuration_is_tried(operator: Operator) -> None:
    operator.fails = Crashed("signed by another certificate")
    operator.round()
    operator.settings = dataclasses.replace(operator.settings, archive_url="http://a.example/")
    operator.fails = UserError("there are two ways to sign")
    operator.round()
    assert operator.told == [("began", f"release {NAME}")]
    operator.round()
    assert (operator.did, operator.told) == (["ask"], [])
    operator.fails = None
    operator.later(hours=1)
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}


# Rounds with another configuration.


def test_a_bad_report_is_not_forgotten_by_other_rounds(operator: Operator) -> None:
    id = staged(operator, health_command=("x",))
    operator.bad = {id}
    operator.later(hours=25)
    operator.round()
    assert operator.told == [("began", f"health {id}")]
    # One without that step, and one for another kernel.
    steps, targets = operator.settings.policy, operator.targets
    operator.policy(health_command=("x",))
    operator.round()
    assert operator.told == []
    operator.targets = (Target("trixie", "cloud-amd64"),)
    operator.round()
    assert operator.told == []
    operator.settings = dataclasses.replace(operator.settings, policy=steps)
    operator.targets, operator.bad = targets, set()
    operator.round()
    # The hours count anew.
    assert operator.record(id).percent == 0
    operator.later(hours=25)
    operator.round()
    assert operator.record(id).percent == 10


def test_a_refusal_is_not_forgotten_by_a_round_for_another_kernel(operator: Operator) -> None:
    operator.fails = Crashed("the kernel panics")
    operator.round()
    both = (TARGET, Target("trixie", "cloud-amd64"))
    for target in reversed(both):
        operator.targets = (target,)
        operator.round()
        operator.fails = None
    assert operator.did == ["ask"]
    assert operator.told == []


def test_two_checkouts_that_take_turns_try_each_release_once(operator: Operator) -> None:
    operator.fails = Crashed("the kernel panics")
    did, told = [], 0
    for number in range(8):
        operator.code = f"checkout {number % 2}"
        operator.round()
        did += operator.did
        told += len(operator.told)
        operator.later(hours=1)
    assert did.count("release") == 2
    # Each one's refusal is a verdict of its own.
    assert told == 2
    # After a success nothing is refused any more.
    operator.code, operator.fails = "mended", None
    operator.round()
    assert operator.attempt(Step.RELEASE).refused == ()


# Other rounds, and ends without warning.


def test_a_second_round_leaves_at_once(operator: Operator) -> None:
    operator.round()
    with (
        fs.lock(operator.settings.archive / state.HOME / ".watch.lock"),
        pytest.raises(BusyError, match="another round"),
    ):
        operator.round()
    assert operator.did == []
    assert operator.round()


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_release_goes_on_in_the_next_round(
    signal: BaseException, operator: Operator
) -> None:
    operator.fails = signal
    with pytest.raises(type(signal)):
        operator.round()
    stopped = state.read_status(operator.settings.archive)
    assert stopped is not None
    assert stopped.ended
    assert Outcome.RUNNING not in {one.outcome for one in stopped.attempts}
    assert operator.told == []
    operator.fails = None
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}
    assert operator.attempt(Step.RELEASE).tries == 1
    operator.installable()


class Killed(BaseException):
    """The end of the process, after which nothing of it runs."""


def test_a_round_may_end_at_each_write(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each write of the journal or the status in turn, the last round does all."""
    operator.policy(promote=((100, 0),))
    write_journal, write_status = state.write_journal, state.write_status
    left = 0

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def act(root: Path, value: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            write(root, value)

        return act

    ended = 0
    while not ended:
        left += 1
        limit = left
        monkeypatch.setattr(state, "write_journal", dying(write_journal))
        monkeypatch.setattr(state, "write_status", dying(write_status))
        try:
            operator.round()
            ended = limit
        except Killed:
            # The lock of a killed process is gone.
            left = limit
    monkeypatch.setattr(state, "write_journal", write_journal)
    monkeypatch.setattr(state, "write_status", write_status)
    operator.round()
    assert operator.states() == {"6.1.192-3": (State.PROMOTED, 100)}
    assert ended > 5
    operator.installable()


def journal(operator: Operator) -> Path:
    return operator.settings.archive / state.HOME / state.JOURNAL


def signs(operator: Operator) -> bool:
    """Do a round, and say whether it came to the signing."""
    signed = []
    operator.changes["refresh"] = lambda: signed.append(True)
    operator.round()
    del operator.changes["refresh"]
    return bool(signed)


def test_with_a_journal_of_a_newer_version_a_round_only_signs_and_tells(
    operator: Operator,
) -> None:
    operator.round()
    operator.newest, operator.fails = "6.1.193-1", Crashed("no")
    operator.round()
    told = [("began", "round")]
    path = journal(operator)
    known = path.read_bytes()
    path.write_text(json.dumps(json.loads(known) | {"format": 99}))
    before = path.read_bytes()
    assert signs(operator)
    assert (operator.did, operator.told) == ([], told)
    status = operator.round()
    assert (operator.did, operator.told) == ([], [])
    assert path.read_bytes() == before
    assert status.error is not None
    assert "newer version" in status.error.what
    # The newer version is back.
    path.write_bytes(known)
    operator.round()
    assert operator.did == ["ask"]


@pytest.mark.parametrize("damage", ['"format": ', '"not_before": "', '"step": "'])
def test_a_damaged_journal_is_set_aside_and_told(damage: str, operator: Operator) -> None:
    operator.round()
    operator.newest, operator.fails = "6.1.193-1", InfrastructureError("no answer")
    operator.round()
    path = journal(operator)
    text = path.read_text().replace(damage, f"{damage}x")
    path.write_text(text)
    operator.fails = None
    assert signs(operator)
    assert operator.told == [("began", "journal")]
    assert operator.states()["6.1.193-1"] == (State.STAGED, 0)
    aside = path.with_name(state.DAMAGED)
    assert aside.read_text() == text
    status = operator.round()
    (problem,) = summary.summarize(status).persons
    assert (operator.told, problem.subject) == ([], "the journal")
    aside.unlink()
    operator.round()
    assert operator.told == [("over", "journal")]


def test_an_error_outside_of_the_steps_is_told_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(operator)
    operator.later(hours=25)

    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/srv/archive")

    with monkeypatch.context() as context:
        context.setattr(operations, "complaints", lost)
        status = operator.round()
        assert operator.told == [("began", "round")]
        assert status.error is not None
        assert unattended.answer(status).status == 69
        # The page has it once.
        (problem,) = summary.summarize(status).problems
        assert problem.subject == "the round"
        operator.round()
        assert operator.told == []
    operator.round()
    assert operator.told == [("over", "round")]


# The foreseen round.


def foreseen(operator: Operator) -> tuple[str, ...]:
    return rounds.foresee(operator.settings, operator.targets, operator.work, modules="auto")


def test_what_a_round_would_do_is_said_and_not_done(operator: Operator) -> None:
    version = "6.1.192-3+cplayground1"
    assert foreseen(operator) == (f"{NAME}: would release {version}",)
    assert not operator.settings.archive.exists()
    operator.fails = Crashed("no")
    operator.round()
    assert foreseen(operator)[0].startswith(f"{NAME}: would not release {version}: refused on")
    operator.fails = None
    operator.code = "mended"
    staged(operator)
    operator.later(hours=25)
    assert foreseen(operator) == (
        f"{NAME}: {version} is released",
        f"{NAME}: would promote {NAME}-{version} to 10 % now",
    )
    assert operator.states() == {"6.1.192-3": (State.STAGED, 0)}


# The documents.


@pytest.mark.parametrize(
    ("heading", "record", "also"),
    [("status.json", Status, {"format"}), ("An attempt", state.Attempt, set())],
)
def test_every_field_of_the_status_is_documented(
    heading: str, record: type, also: set[str]
) -> None:
    cells = first_column("watch.md", heading)
    names = {name.strip("` ") for cell in cells for name in cell.split(",")}
    assert names == {one.name for one in dataclasses.fields(record)} | also


def test_the_task_answers_with_its_round(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Status(
        *("2026-11-30T12:00:00+00:00", "2026-11-30T12:01:00+00:00", "", "0.2.0", "/archive"),
        done=("staged a",),
    )
    monkeypatch.setattr(roots, "check_privileges", lambda: None)
    monkeypatch.setattr(rounds, "run", lambda *_, **__: made)
    status, found, _ = asked(here, "watch")
    assert (status, found["summary"]) == (0, "staged a")
    assert sorted(set(found) - COMMON) == first_column("json.md", "watch")
    assert found["round"]["done"] == ["staged a"]
