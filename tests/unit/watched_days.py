"""Days of unattended watching, told in chapters: what came, and the state that it must end in.

Each chapter begins when all is well: servers get the distro's newest kernel, and nothing is told.
It ends so too.  ``python -m tests.unit.watched_days`` runs chapters or parts by name, all of them
without one, and prints their tables; ``--page`` writes those of parts to docs/results/watch.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kbuild.archive.release import State
from tests.unit import signed_archive, simulated, toy
from tests.unit.mounts import UNSHARE
from tests.unit.signed_archive import Fault
from tests.unit.simulated import HOURS, OPTIONS, SUITE, Round, Upload, World, kill_before
from tests.unit.works import PROJECT

# Two sources of the distro: the patch applies with an offset to one, and not to the other.
MOVED_C = f"/* A line more. */\n/* And another. */\n{toy.FILE_C}"
BROKEN_C = toy.FILE_C.replace("put_files_struct(struct", "drop_files_struct(struct")
PANICS_C = f'{simulated.MAIN_C}\nvoid late(void)\n{{\n{simulated.PANIC}"a toy");\n}}\n'
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Row:
    """A line of the table, as JSON has it."""

    day: str
    came: str
    happened: str
    status: int
    stable: str
    staging: str
    told: tuple[str, ...]


@dataclass
class Story:
    """The world with what it is known to be like, and the table so far."""

    world: World
    number: int = 0  # of the distro's last upload
    served: str = ""  # the version that a server of the suite must be offered
    rows: list[Row] = field(default_factory=list)

    # Events.

    def upload(self, came: str, **how: object) -> Upload:
        """Let the distro have its next kernel."""
        self.number += 1
        one = Upload(f"6.1.{191 + self.number}-1", f"6.1.0-{55 + self.number}", news=came)
        one = dataclasses.replace(one, **how)  # type: ignore[arg-type]
        self.world.distro.upload(one)
        return one

    def later(self, time: timedelta = DAY, *, fresh: bool = True) -> None:
        """Let time pass, with a mirror that is signed each day."""
        self.world.clock.pass_(time)
        if fresh:
            self.world.distro.publish()

    def round(
        self,
        came: str,
        *,
        status: int | Sequence[int] = 0,
        told: Sequence[str] | None = (),
        staging: str | None = None,
        steps: Sequence[str] = (),
        page: Sequence[str] = (),
        before: Callable[[], object] = lambda: None,
    ) -> Round:
        """Let ``watch`` do a round, and check its whole outcome.

        ``told`` has words of each notification that must have been sent, in their order.
        ``steps`` are the slow steps that must have begun, and no others.  ``page`` has words that
        the status page must have.
        """
        return self.check(
            self.world.round(before=before),
            came,
            status=status,
            told=told,
            staging=staging,
            steps=steps,
            page=page,
        )

    def check(
        self,
        seen: Round,
        came: str,
        *,
        status: int | Sequence[int] = 0,
        told: Sequence[str] | None = (),
        staging: str | None = None,
        steps: Sequence[str] | None = (),
        page: Sequence[str] = (),
    ) -> Round:
        """Note a round in the table, and check its outcome."""
        what = f"{came}:\n{seen.log}\n"
        row = _row(self.world, came, seen)
        self.rows.append(row)
        said = row.told
        allowed = [status] if isinstance(status, int) else status
        assert seen.status in allowed, f"{what}status {seen.status}, not {status}"
        assert told is None or len(said) == len(told), f"{what}told: {said}, not {told}"
        for words, one in zip(told or said, said, strict=True):
            assert words in one, f"{what}told: {one!r}, without {words!r}"
        if self.served:
            assert seen.stable == ours(self.served), f"{what}stable: {seen.stable}"
        assert seen.findings == (), f"{what}{seen.findings}"
        if staging is not None:
            assert seen.staging == ours(staging), f"{what}staging: {seen.staging}"
        if steps is not None:
            assert list(seen.steps) == list(steps), f"{what}{seen.steps}"
        for words in page:
            assert words in seen.page, f"{what}no {words!r} on the page: {seen.page}"
        return seen

    def release(self, came: str, told: Sequence[str] = (), **how: object) -> Upload:
        """Let a good kernel come, and reach every server a day later."""
        one = self.upload(came, **how)
        self.round(came, staging=one.version, steps=RELEASE, told=told)
        self.later(timedelta(hours=HOURS, minutes=1))
        self.served = one.version
        self.round(f"{HOURS} hours passed", staging=one.version)
        return one


RELEASE = ("package", "test", "judge")


def ours(version: str) -> str:
    """Return the version of our packages for a base."""
    return f"{version}+cplayground1"


def _row(world: World, came: str, seen: Round) -> Row:
    return Row(
        f"{seen.when:%Y-%m-%d %H:%M}",
        came,
        _happened(world),
        seen.status,
        seen.stable,
        seen.staging,
        tuple(str(one["text"]) for one in seen.notices),
    )


def _happened(world: World) -> str:
    """Return what the round itself says that it did."""
    path = world.settings.archive / "status/status.json"
    if not path.exists():
        return ""
    raw = json.loads(path.read_text())
    failed = [
        ("" if one["began"] >= raw["began"] else "still: ") + one["error"]["what"]
        for one in raw["attempts"]
        if one["error"]
    ]
    whole = [raw["error"]["what"]] if raw["error"] else []
    return "; ".join(dict.fromkeys([*raw["done"], *failed, *whole]))


# The chapters.


def first(story: Story) -> None:
    """The first kernel of all."""
    story.release("the first kernel")


def mended(story: Story) -> None:
    """A point release mends a file that the patch changes; the patch applies with offsets."""
    one = story.release("a point release that mends a file", file_c=MOVED_C)
    story.round("nothing")
    assert story.world.settings.build.glob(f"{SUITE}/source-{one.version}")


def broken(story: Story) -> None:
    """A point release breaks the patch: told once, not tried again, mended by the next one."""
    one = story.upload("a point release that breaks the patch", file_c=BROKEN_C)
    words = "the series 5.11 does not apply"
    story.round(
        "a point release that breaks the patch",
        status=3,
        told=[words],
        staging=story.served,
        steps=["package"],
        page=[one.version, words],
    )
    for _ in range(2):
        story.later()
        story.round("nothing", staging=story.served, page=[words])
    story.release("a point release that takes it back", told=["over"])


def dropped(story: Story) -> None:
    """The config loses what the fast path needs: all is built.  And what the module needs."""
    less = tuple(one for one in OPTIONS if "MODVERSIONS" not in one)
    story.release("a config without MODVERSIONS", options=less)
    needed = tuple(one for one in OPTIONS if one != simulated.MODULE_NEEDS)
    story.upload("a config without PROC_FS", options=needed)
    story.round(
        "a config without PROC_FS",
        status=1,
        told=["1 of 2 vm tests failed"],
        staging=story.served,
        steps=["package", "test"],
        page=["1 of 2 vm tests failed"],
    )
    story.later()
    story.round("nothing", staging=story.served)
    story.upload("a source that does not have its own option", refused="MODVERSIONS")
    story.round(
        "a source without an option of its config",
        status=3,
        told=["1 option(s) differ from the distro's kernel"],
        staging=story.served,
        steps=["package"],
    )
    story.release("the options are back", told=["over"])


def panics(story: Story) -> None:
    """A kernel panics in the gate: servers see nothing of it."""
    one = story.upload("a kernel that panics at boot", main_c=PANICS_C)
    seen = story.round(
        "a kernel that panics at boot",
        status=1,
        told=["the gate refuses"],
        staging=story.served,
        steps=RELEASE,
        page=["refused", "Kernel panic"],
    )
    assert seen.states[ours(one.version)] == "refused"
    story.later()
    story.round("nothing", staging=story.served)
    story.release("a kernel that boots", told=["over"])


def sick(story: Story) -> None:
    """Servers in staging report an oops: no promotion until they are well."""
    one = story.upload("a good kernel")
    story.round("a good kernel", staging=one.version, steps=RELEASE)
    story.world.flag("sick", True)
    story.later(timedelta(hours=HOURS + 1))
    words = "there is a bad report"
    for came, told in (
        ("a bad report of a server in staging", [words]),
        ("a bad report again", []),
    ):
        story.round(came, status=1, told=told, staging=one.version, page=[words])
        story.later()
    story.world.flag("sick", False)
    # The hours begin anew.
    story.round("a good report", told=["over"], staging=one.version)
    _promoted(story, one)


def gone(story: Story) -> None:
    """An index is listed and not there, then a package: told in the third round."""
    server = story.world.distro.server
    one = story.upload("a good kernel")
    for name in story.world.distro.index_names():
        server.fail(name, Fault(status=404))
    story.round("an index that is listed and not there", status=69, staging=story.served)
    story.later(timedelta(minutes=20))
    story.round("the same", status=69, staging=story.served)
    story.later(timedelta(minutes=40))
    words = "no mirror has bookworm-security"
    story.round("the same", status=69, told=[words], staging=story.served, page=[words])
    server.heal()
    name = f"linux-image-{one.release}_{one.version}_amd64.deb"
    server.fail(name, Fault(status=404))
    story.later()
    story.round(
        "a package that is listed and not there",
        status=69,
        told=["over"],
        staging=story.served,
        steps=["package"],
    )
    server.heal()
    story.later(timedelta(minutes=5))
    story.round("it is there, five minutes later", staging=story.served)
    story.later(timedelta(minutes=15))
    story.round("a quarter of an hour is over", staging=one.version, steps=RELEASE)
    _promoted(story, one)


def _promoted(story: Story, one: Upload) -> None:
    story.later(timedelta(hours=HOURS, minutes=1))
    story.served = one.version
    story.round(f"{HOURS} hours passed", staging=one.version)


def down(story: Story) -> None:
    """A mirror answers 503: within a round it is asked again, and later rounds wait longer."""
    server = story.world.distro.server
    ends = [f"/dists/{dist}/InRelease" for dist in simulated.DISTS]
    for end in ends:
        server.fail(end, Fault(status=503), Fault())
    one = story.upload("a good kernel")
    story.round("a mirror that answers 503 once", staging=one.version, steps=RELEASE)
    _promoted(story, one)
    for end in ends:
        server.fail(end, Fault(status=503))
    story.round("a mirror that answers 503", status=69)
    asked = server.asked()
    story.later(timedelta(minutes=10))
    story.round("ten minutes later")
    # The time may be asked of each dist.
    assert server.asked() <= asked + 2, "a mirror that is down was asked again at once"
    for minutes, told in ((6, []), (31, ["no mirror"]), (61, [])):
        story.later(timedelta(minutes=minutes))
        story.round(f"{minutes} minutes later", status=69, told=told)
    server.heal()
    story.later(timedelta(hours=3))
    story.round("it answers", told=["over"])


def stale(story: Story) -> None:
    """A mirror stands still until its indexes have expired; another one is an old copy."""
    distro = story.world.distro
    story.later(8 * DAY, fresh=False)
    story.round("an expired mirror", status=65, page=["expired"])
    for told in ([], ["was refused"], []):
        story.later(timedelta(hours=3), fresh=False)
        story.round("the same", status=65, told=told, page=["expired"])
    story.later()
    story.round("a mirror of today", told=["over"])
    distro.publish(valid_for=90 * DAY)
    old = distro.indexes()
    story.release("a good kernel")
    distro.replay(old)
    # apt keeps the newer index.
    story.round("a replayed older Release, which is still valid", staging=story.served)
    story.later()
    story.round("nothing")


def signing_again(story: Story) -> None:
    """No kernel for a month: the indexes are signed again before they expire."""
    until = _valid_until(story.world)
    for days in (10, 8):
        story.later(days * DAY)
        story.round(f"nothing for {days} days")
    assert _valid_until(story.world) == until
    story.later(3 * DAY)
    story.round("nothing, until 9 days before Valid-Until")
    assert _valid_until(story.world) > until + 20 * DAY
    story.later(25 * DAY)
    story.round("nothing for 25 days")


def _valid_until(world: World) -> datetime:
    path = world.settings.archive / "dists" / SUITE / "Release"
    line = next(x for x in path.read_text().splitlines() if x.startswith("Valid-Until: "))
    return datetime.strptime(line, "Valid-Until: %a, %d %b %Y %H:%M:%S UTC").replace(tzinfo=UTC)


def mute(story: Story) -> None:
    """The notification fails: the page has it, and it is sent with the next round."""
    story.world.flag("mute", True)
    story.upload("a point release that breaks the patch", file_c=BROKEN_C)
    words = "the series 5.11 does not apply"
    story.round(
        "a patch that breaks, and a notification that fails",
        status=3,
        steps=["package"],
        page=[words],
    )
    story.world.flag("mute", False)
    story.round("the notification works", told=[words])
    story.round("nothing")
    story.release("a point release that takes it back", told=["over"])


def withdrawn(story: Story) -> None:
    """A person withdraws a release: servers go back, and watch does not bring it again."""
    before = story.served
    one = story.release("a good kernel")
    release = f"{SUITE}-{simulated.FLAVOUR}-{ours(one.version)}"
    done = story.world.round("rollback", release, "--reason", "it oopses")
    assert done.status == 0, done.log
    assert done.stable == f"{ours(one.version)}+rollback1", done.stable
    story.served = ""
    seen = story.round("nothing")
    assert seen.stable == f"{ours(one.version)}+rollback1", (before, seen.stable)
    story.later()
    seen = story.round("nothing")
    assert seen.stable == f"{ours(one.version)}+rollback1", seen.stable
    story.release("a better kernel")


def clock(story: Story) -> None:
    """The machine's clock is two days behind: nothing is signed with it."""
    one = story.upload("a good kernel")
    _wrongly(story, "a clock that is two days behind", -2 * DAY)
    story.round("the right time", told=["over"], staging=one.version, steps=RELEASE)
    _promoted(story, one)


def clock_ahead(story: Story) -> None:
    """The machine's clock is weeks ahead: nothing is signed with it, even if no mirror answers."""
    _wrongly(story, "a clock that is 40 days ahead", 40 * DAY)
    story.round("the right time", told=["over"], staging=story.served)
    server = story.world.distro.server
    server.fail("", Fault(status=503))
    story.round(
        "a clock that is 40 days ahead, and no mirror that answers",
        status=69,
        staging=story.served,
        before=lambda: story.world.clock.wrong(40 * DAY),
    )
    server.heal()
    story.later(timedelta(hours=5))
    story.round("the right time, and a mirror", staging=story.served)


def _wrongly(story: Story, came: str, by: timedelta) -> None:
    words = "this machine's clock is wrong"
    story.round(
        came,
        status=69,
        told=[words],
        staging=story.served,
        page=[words],
        before=lambda: story.world.clock.wrong(by),
    )
    story.later(timedelta(hours=1))


def signed_ahead(story: Story) -> None:
    """A person has signed the archive with such a clock, and mends it by the reference."""
    wrong = story.world.clock.wrong
    done = story.world.round("sign-archive", before=lambda: wrong(40 * DAY))
    assert done.status == 0, done.log
    assert "not valid yet" in done.stable
    seen = story.world.round()
    assert (seen.status, "not valid yet" in seen.stable) == (69, True), seen.log
    story.rows.append(_row(story.world, "an archive that was signed in the future", seen))
    dists = story.world.settings.archive / "dists"
    last = int((dists / SUITE).readlink().parts[-2])
    for link in dists.iterdir():
        (dists / "new").symlink_to(Path("../snapshots", str(last - 1), link.name))
        (dists / "new").replace(link)
    done = story.world.round("sign-archive")
    assert done.status == 0, done.log
    story.later(timedelta(hours=1))
    story.round("a person takes the date back", told=["over"], staging=story.served)


def expiring(story: Story) -> None:
    """The archive's key will expire: told in time, and over when a person has made a new one."""
    for days, told in ((20, []), (20, ["expires"]), (1, [])):
        story.later(timedelta(days=days))
        page = ["expires"] if days == 1 else []
        story.round(f"nothing for {days} days", told=told, page=page)
    made = story.world.round("keys.rotate")
    assert made.status == 0, made.log
    story.round("a person makes a new key", told=["over"])
    for _ in range(5):
        story.later(18 * DAY)
        story.round("nothing for 18 days")


def expired(story: Story) -> None:
    """Nobody makes a new key in time: servers refuse the archive, and need its keyring by hand."""
    seen = story.world.round()
    for days in (28, 28, 28, 28, 8):
        assert seen.stable == ours(story.served), seen.stable
        story.later(timedelta(days=days))
        seen = story.world.round()
    assert seen.status == 42, seen.log
    assert "EXPKEYSIG" in seen.stable, seen.stable
    said = [str(one["text"]) for one in seen.notices]
    assert [one.startswith("sign archive: the key") for one in said] == [True], said
    assert "expired" in seen.page
    story.rows.append(_row(story.world, "nobody makes a new key in time", seen))
    made = story.world.round("keys.rotate")
    assert made.status == 0, made.log
    story.world.machines.clear()
    story.later(timedelta(hours=1))
    came = "a person makes one, and installs its keyring on the servers"
    story.round(came, told=["over", "over"])


def full_disk(story: Story) -> None:
    """The disk is full in the middle of a release."""
    disk = story.world.disk
    assert disk.is_mount(), "this process has no disk of its own"
    one = story.upload("a good kernel")
    for room in (0, 64_000, 256_000):
        with (disk / "filler").open("wb") as stream:
            stream.write(bytes(max(0, _free(disk) - room)))
        seen = story.world.round()
        assert seen.status == 69, f"{room} bytes free:\n{seen.log}"
        assert seen.stable == ours(story.served), f"{room} bytes free: {seen.stable}"
        (disk / "filler").unlink()
        story.later(timedelta(hours=7))
    story.check(
        story.world.round(),
        "a disk that was full thrice",
        staging=one.version,
        steps=None,
        told=None,
    )
    _promoted(story, one)


def _free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def killed(story: Story) -> None:
    """Rounds are killed at random moments, and the next one goes on."""
    seed = int(os.environ.get("SEED", time.time_ns() % 100_000))
    print(f"seed {seed}", file=sys.stderr)
    chance = random.Random(seed)
    one = story.upload("a good kernel")
    for _ in range(2):
        begun = story.world.begin()
        time.sleep(chance.uniform(0.3, 3.5))
        os.kill(begun.child, signal.SIGKILL)
        seen = story.world.end(begun)
        assert seen.stable == ours(story.served), f"seed {seed}: {seen.stable}\n{seen.log}"
        assert seen.notices == (), f"seed {seed}: {seen.notices}"
    seen = story.world.round()
    story.check(seen, "kill -9 at two random moments", staging=one.version, steps=None)
    _promoted(story, one)


def each_step(story: Story) -> None:
    """A round is killed before each change of a name in the archive: staging, then promotion."""
    one = story.upload("a good kernel")
    done = story.world.round("package")
    assert done.status == 0, done.log
    staged = _killed_at_each(story, ours(one.version), stable=ours(story.served))
    came = "kill -9 before each of {} changes of a visible name in the archive, and one more round"
    story.round(f"a good kernel; {came.format(staged)}, each time", staging=one.version)
    story.later(timedelta(hours=HOURS, minutes=1))
    promoted = _killed_at_each(story, ours(one.version), stable=ours(one.version))
    story.served = one.version
    story.round(f"{HOURS} hours passed; {came.format(promoted)}, each time", staging=one.version)


def _killed_at_each(story: Story, staging: str, *, stable: str) -> int:
    """Kill a round at each step, from the same state; the next round must reach the same end.

    Returns the number of steps.
    """
    world = story.world
    kept = world.home / "kept"
    shutil.copytree(world.disk, kept, symlinks=True)
    before = world.offered(SUITE)
    step = 0
    while True:
        step += 1
        world.restore(kept)
        seen = world.round(before=functools.partial(kill_before, step, world.settings.archive))
        if seen.status == 0:
            break
        what = f"step {step}: {{}}\n{seen.log}"
        assert seen.status == -signal.SIGKILL, what.format(seen.status)
        assert seen.stable in (before, stable), what.format(seen.stable)
        seen = world.round()
        assert seen.status == 0, what.format(seen.log)
        assert (seen.stable, seen.staging) == (stable, staging), what.format(seen)
        assert seen.findings == (), what.format(seen.findings)
        assert seen.notices == (), what.format(seen.notices)
    assert step > 10, step
    shutil.rmtree(kept)
    return step - 1


def two(story: Story) -> None:
    """Two rounds begin at once: one does the work."""
    one = story.upload("a good kernel")
    before = len(story.world.noted())
    begun = [story.world.begin() for _ in range(2)]
    seen = [story.world.end(each) for each in begun]
    statuses = sorted(each.status for each in seen)
    assert statuses in ([0, 0], [0, 69]), [each.log for each in seen]
    assert story.world.noted(before) == list(RELEASE), "both did the work"
    story.check(seen[-1], "two rounds at once", status=(0, 69), staging=one.version, steps=None)
    _promoted(story, one)


def short(story: Story) -> None:
    """The story in a few days, for the unit tests."""
    story.upload("a point release that breaks the patch", file_c=BROKEN_C)
    words = "the series 5.11 does not apply"
    story.round(
        "a point release that breaks the patch",
        status=3,
        told=[words],
        staging=story.served,
        steps=["package"],
        page=[words],
    )
    story.later(9 * DAY, fresh=False)
    story.round("a mirror that has expired since", status=65)
    story.later()
    one = story.upload("a point release that takes it back", file_c=MOVED_C)
    begun = story.world.begin()
    time.sleep(2)
    os.kill(begun.child, signal.SIGKILL)
    story.world.end(begun)
    story.check(
        story.world.round(),
        "a better kernel, and kill -9",
        staging=one.version,
        steps=None,
        told=None,
    )
    _promoted(story, one)


PARTS: dict[str, tuple[Callable[[Story], None], ...]] = {
    "kernels": (mended, broken, dropped, panics),
    "mirrors": (gone, down, stale),
    "people": (sick, mute, withdrawn),
    "machine": (signing_again, clock, clock_ahead, signed_ahead, killed, two),
    "disk": (full_disk,),
    "key": (expiring,),
    "lost key": (expired,),
}


# Parts that no test tells: it takes 10 to 20 minutes.
LONG = {"steps": (each_step,)}


def tell(home: Path, chapters: Sequence[Callable[[Story], None]]) -> Iterator[Row]:
    """Run chapters after the first one in this process; yields their rows of the table."""
    with pytest.MonkeyPatch.context() as patch:
        soon = any(one in chapters for one in (expiring, expired))
        world = World(home, patch, lifetime="120d" if soon else "2y")
        story = Story(world)
        try:
            for chapter in (first, *chapters):
                chapter(story)
                # Each process tells the first days anew.
                yield from story.rows if chapter is not first else ()
                story.rows.clear()
                story.later()
                story.round("nothing")
                story.rows.clear()
        finally:
            yield from story.rows
            world.close()
            signed_archive.clean_up()


# A walk of its own.


class Walk:
    """Days on which anything may come, by a seed, and what must be true after each of them."""

    def __init__(self, story: Story, seed: int) -> None:
        self.story = story
        self.world = story.world
        self.chance = random.Random(seed)
        self.open: set[str] = set()  # subjects that were told, and are not over
        self.past: list[str] = [f"seed {seed}"]
        self.healthy = True
        self.withdrew = False

    def day(self) -> Row:
        """Let something come, and watch once or twice."""
        events = {
            self.nothing: 3,
            self.good: 4,
            self.bad: 3,
            self.faulty: 3,
            self.health: 2,
            self.muteness: 1,
            self.withdrawal: 1,
        }
        (event,) = self.chance.choices(list(events), list(events.values()))
        came = event()
        how = self.chance.choices(("whole", "killed", "two"), (6, 2, 1))[0]
        self.past.append(f"{came}, {how}")
        if how == "killed":
            begun = self.world.begin()
            time.sleep(self.chance.uniform(0.1, 4))
            os.kill(begun.child, signal.SIGKILL)
            self.judge(self.world.end(begun), whole=False)
        elif how == "two":
            begun_both = [self.world.begin() for _ in range(2)]
            for one in begun_both:
                self.judge(self.world.end(one), whole=False)
        seen = self.world.round()
        self.judge(seen)
        self.world.distro.server.heal()
        self.story.later(timedelta(hours=self.chance.choice((1, 7, 25, 25, 25, 50, 120))))
        return _row(self.world, f"{came}, {how}", seen)

    def judge(self, seen: Round, *, whole: bool = True) -> None:
        """Check what must be true after each round."""
        what = "\n".join([*self.past, seen.log])
        assert seen.stable[:2] == "6.", f"{what}\nstable is not installable: {seen.stable}"
        assert not whole or seen.findings == (), f"{what}\n{seen.findings}"
        assert not whole or seen.status >= 0, what
        assert "Traceback" not in seen.log, what
        assert seen.status != 70, what
        for one in seen.notices:
            subject, began = str(one["subject"]), one["event"] == "began"
            self.open.symmetric_difference_update({subject})
            assert (subject in self.open) == began or began, f"{what}\n{one}"
            if began:
                self.open.add(subject)

    # Events.

    def nothing(self) -> str:
        return "nothing"

    def good(self) -> str:
        self.story.upload("good", file_c=self.chance.choice((toy.FILE_C, MOVED_C)))
        return "a good kernel"

    def bad(self) -> str:
        needed = tuple(one for one in OPTIONS if one != simulated.MODULE_NEEDS)
        came, how = self.chance.choice(
            (
                ("a patch that breaks", {"file_c": BROKEN_C}),
                ("a panic", {"main_c": PANICS_C}),
                ("a config without PROC_FS", {"options": needed}),
                ("an option that its source lacks", {"refused": "MODVERSIONS"}),
            )
        )
        self.story.upload(came, **how)
        return came

    def faulty(self) -> str:
        server = self.world.distro.server
        ends = {
            "InRelease": ["InRelease"],
            "index": self.world.distro.index_names(),
            "pool": [".deb"],
        }
        what = self.chance.choice(list(ends))
        fault = self.chance.choice(
            (Fault(status=503), Fault(status=404), Fault(drop_after=100), Fault(truncate_to=100))
        )
        for end in ends[what]:
            server.fail(end, fault)
        return f"a mirror whose {what} is {fault.status or 'cut'}"

    def health(self) -> str:
        self.healthy = not self.healthy
        self.world.flag("sick", not self.healthy)
        return "good health" if self.healthy else "bad reports"

    def muteness(self) -> str:
        on = self.chance.random() < 0.5
        self.world.flag("mute", on)
        return "notifications fail" if on else "notifications work"

    def withdrawal(self) -> str:
        promoted = [one for one in self.world.releases() if one.state is State.PROMOTED]
        others = [one for one in self.world.releases() if one.state is State.SUPERSEDED]
        if not promoted or not others:
            return "nothing"
        done = self.world.round("rollback", promoted[0].id, "--reason", "by the walk")
        assert done.status == 0, done.log
        return f"{promoted[0].version} is withdrawn"

    def end(self) -> None:
        """Let all be well again: a good kernel reaches every server, and nothing is left open."""
        for name in ("sick", "mute"):
            self.world.flag(name, False)
        one = self.story.upload("the last")
        self.past.append("the end")
        for _ in range(4):
            seen = self.world.round()
            self.judge(seen)
            self.story.later(timedelta(hours=HOURS + 1))
        assert seen.status == 0, seen.log
        assert seen.stable == ours(one.version), (self.past, seen.stable, seen.log)
        assert self.open == set(), (self.past, self.open)


def walk(home: Path, seed: int, days: int) -> Iterator[Row]:
    """Let so many days pass at random after the first kernel."""
    with pytest.MonkeyPatch.context() as patch:
        story = Story(World(home, patch))
        try:
            first(story)
            story.served = ""
            made = Walk(story, seed)
            for _ in range(days):
                yield made.day()
            made.end()
        finally:
            story.world.close()
            signed_archive.clean_up()


# The process of a simulation, and its table.

_MODULE = "tests.unit.watched_days"
PAGE = PROJECT / "docs/results/watch.md"
_HEAD = """\
# Watching: simulated days

Days of `./inv watch` on a simulated Debian, its mirror and our archive, told by
`python -m tests.unit.watched_days --page` on {today}.
Times are those of the simulation.
Only debootstrap, the compiler, debhelper, the VM tests and the gate's boots were replaced.
After every round, an apt of its own updated from the archive and simulated an installation
of the kernel, its headers and the module: the column "stable" has the version, and "staging" that
of a server that follows staging.
`./inv verify-archive` found nothing wrong, except where an index was dated in the future.
`+cplayground1` is left out of the versions.
The status page and its words were checked too.
[Keeping current](../reference/watch.md) says what a round does.
"""
_COLUMNS = ("day", "what came", "exit", "what happened", "stable", "staging", "notification")


def command(home: Path, chapters: Sequence[str], *, disk: bool = False) -> list[str | Path]:
    """Return the command of a process that runs chapters below ``home``.

    Its environment must be that of :func:`simulated.environment`.  With ``disk`` it has a disk of
    its own, for which the machine must give a mount namespace.
    """
    program: list[str | Path] = [sys.executable, "-m", _MODULE, "--home", home, *chapters]
    if not disk:
        return program
    place = home / simulated.DISK
    place.mkdir()
    mounted = 'mount -t tmpfs -o size=32M tmpfs "$1" && shift && exec "$@"'
    return [*UNSHARE, "sh", "-c", mounted, "sh", place, *program]


def run(home: Path, chapters: Sequence[str], *, timeout_s: float = 3000) -> list[Row]:
    """Run chapters, or a walk, in a process of its own; return its table.

    ``home`` is a new directory.  Raises AssertionError.
    """
    done = subprocess.run(
        command(home, chapters, disk=full_disk.__name__ in chapters),
        env=simulated.environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-20_000:]
    return [Row(**json.loads(line)) for line in done.stdout.splitlines()]


def names(part: str) -> list[str]:
    """Return the names of a part's chapters."""
    return [one.__name__ for one in (PARTS | LONG)[part]]


def table(found: Sequence[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    for one in found:
        cells = (
            one.day,
            one.came,
            str(one.status),
            one.happened or "nothing",
            one.stable,
            one.staging,
            "; ".join(one.told) or "none",
        )
        text = " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells)
        lines.append(text.replace(f"{SUITE}-{simulated.FLAVOUR}-", "").replace(ours(""), ""))
    return "".join(f"| {line} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapters", nargs="*")
    parser.add_argument("--home", type=Path, help="where this process, started for it, works")
    parser.add_argument("--page", action="store_true", help="write docs/results/watch.md")
    parser.add_argument(
        "--walk", type=int, default=0, metavar="DAYS", help="on which anything comes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the walk")
    given = parser.parse_args()
    if given.home and given.walk:
        for row in walk(given.home, given.seed, given.walk):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    elif given.home:
        every = {one.__name__: one for part in (PARTS | LONG).values() for one in part}
        every[short.__name__] = short
        for row in tell(given.home, [every[name] for name in given.chapters]):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    else:
        known = PARTS | LONG
        parts = {one: names(one) for one in given.chapters or PARTS if one in known}
        if chapters := [one for one in given.chapters if one not in known]:
            parts["chosen"] = chapters
        if given.walk:
            parts = {"walk": ["--walk", str(given.walk), "--seed", str(given.seed)]}
        for part, chapters in parts.items():
            with tempfile.TemporaryDirectory(prefix="cplayground-days-") as name:
                text = table(run(Path(name), chapters))
            print(f"\n## {part.capitalize()}\n\n{text}", flush=True)
            if given.page and part in known:
                _write(part, text)


def _write(part: str, text: str) -> None:
    """Put the table of a part into the page, with the date of today."""
    before = PAGE.read_text() if PAGE.exists() else ""
    sections = dict(re.findall(r"^## (.+)\n\n((?:.+\n)+)", before, re.MULTILINE))
    sections[part.capitalize()] = text
    order = [one.capitalize() for one in PARTS | LONG if one.capitalize() in sections]
    page = _HEAD.format(today=f"{datetime.now(UTC):%-d %B %Y}")
    PAGE.write_text(page + "".join(f"\n## {one}\n\n{sections[one]}" for one in order))


if __name__ == "__main__":
    main()
