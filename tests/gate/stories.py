"""Stories of a server with the guard: what is planted on its disk, and what must come of it.

A server has a good kernel of ours and a newer one, the candidate.  What is planted happens only
while the candidate is on trial.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core.errors import BuildError
from kbuild.core.model import Root
from kbuild.core.sandbox import Bind
from kbuild.gate import disk, guarded, machine
from kbuild.gate.guarded import PROGRAM, STATUS, UNTIL_DONE, UNTIL_GOOD, Return
from kbuild.gate.machine import Boot, Command
from kbuild.gate.round import PREBUILT, TOOLS, Round, Trial, names
from kbuild.guest import guest
from kbuild.guest.outcome import End
from kbuild.ship.guard_package import PACKAGE
from tests.gate import disks

Files = Mapping[str, tuple[int, bytes]]

_MODULES = Path(guest.__file__).with_name("modules")
_MISBEHAVE = f"{TOOLS}/misbehave.ko"
_SLOT = "/boot/cplayground-trial"
_TRIAL_KERNEL, _TRIAL_INITRD = f"{_SLOT}/vmlinuz", f"{_SLOT}/initrd.img"
_CHECK = f"/{guarded.FAILING_CHECK}"
_UNIT = "/etc/systemd/system/planted.service"
_WANTS = "/etc/systemd/system/multi-user.target.wants/planted.service"
_GARBAGE = b"no kernel\n" * 500_000
# Debian's servers have none of these words, which the gate's own servers have for their judge.
_OWN_WORDS = " panic=-1 oops=panic softlockup_panic=1"
_SETTINGS = {"PROBATION": "15s", "PATIENCE": "20s", "BOOT_LIMIT": "2min"}
_COMMAND_S = 60.0

# The console has this line where we cut the power.
_HERE = "gate: the power is cut here"
_AT_THAT_LINE = re.compile(_HERE)
# Runs the guard, and waits before its first command that looks like the first argument.  The next
# boots, which are not cut, go on after that.
_CUTTER = f"{TOOLS}/cut"
_CUTTER_TEXT = f"""#!/bin/bash
gate_at=$1 gate_done=
shift
set -T
trap 'if [[ -z $gate_done && $BASH_COMMAND == $gate_at ]]; then
    gate_done=1; echo "{_HERE}" >/dev/console; sleep 15
fi' DEBUG
. /usr/sbin/{PROGRAM} "$@"
"""
_DROP_IN = "/etc/systemd/system/cplayground-guard.service.d/planted.conf"


@dataclass(frozen=True)
class Scene:
    """The round, the tree and the disks that all stories share."""

    round: Round
    good: str
    tree: Root  # of the server that is armed
    armed: Path  # its disk: the candidate is tried at the next boot
    idle: Path  # the disk of a server that was armed, and then taken back

    @property
    def candidate(self) -> str:
        """The release that is on trial."""
        return self.round.candidate.kernel

    @contextlib.contextmanager
    def disk(self, trial: Trial, image: Path) -> Iterator[tuple[Path, Path]]:
        """Yield a copy of a disk, and a file for what its boots change."""
        copy = self.round.home / f"{trial.name}.disk"
        changes = copy.with_suffix(".qcow2")
        try:
            disks.duplicate(image, copy)
            machine.keep_changes(copy, changes)
            yield copy, changes
        finally:
            copy.unlink(missing_ok=True)
            changes.unlink(missing_ok=True)


@dataclass(frozen=True)
class Told:
    """The end of a story, which is as it must be if its trial has no reasons."""

    trial: Trial
    happened: str = ""
    seconds: float | None = None  # until the kernel that stays ran
    took_s: float = 0.0  # with all boots after that


Tell = Callable[[Scene, Trial], Told]
Plant = Callable[[Scene, Path], None]


@contextlib.contextmanager
def scene(round: Round) -> Iterator[Scene]:
    """Yield the scene of a round's stories; the guard is armed as an administrator would."""
    module = _misbehave(round)
    with round.server("guard-armed") as made:
        defaults = made.root.path / "etc/default/grub"
        text = defaults.read_text()
        assert _OWN_WORDS in text
        defaults.write_text(text.replace(_OWN_WORDS, ""))
        (made.root.path / _MISBEHAVE.lstrip("/")).write_bytes(module)
        cutter = made.root.path / _CUTTER.lstrip("/")
        cutter.write_text(_CUTTER_TEXT)
        cutter.chmod(0o755)
        good = guarded.prepare(round, made, **_SETTINGS)
        _remember(made.root)
        round.apt(made, "install", *names(round.candidate).prebuilt)
        armed = disk.write(made.root.path, round.home / "armed.img", log=made.log)
        with round.copy(made.root, "guard-idle") as taken:
            round.run(taken, [PROGRAM, "rollback"])
            idle = disk.write(taken.root.path, round.home / "idle.img", log=taken.log)
        try:
            yield Scene(round, good, made.root, armed, idle)
        finally:
            armed.unlink()
            idle.unlink()


def _remember(tree: Root) -> None:
    """Let the guard remember that no unit had failed with the good kernel, on this machine."""
    identity = tree.path / "etc/machine-id"
    identity.write_text(f"{1:032x}\n")
    record = tree.path / "var/lib/cplayground-guard/record"
    record.mkdir(exist_ok=True)
    (record / "machine-id").write_bytes(identity.read_bytes())
    (record / "failed-units").write_text("")


def _misbehave(round: Round) -> bytes:
    """Return the module that misbehaves, compiled for the candidate on a server with DKMS."""
    with round.server("guard-module", dkms=True) as made:
        round.follow(made, round.view.staging)
        round.apt(made, "install", names(round.candidate).headers)
        build = f"/lib/modules/{round.candidate.kernel}/build"
        script = f"cp -r /tmp/misbehave /root && make -C {build} M=/root/misbehave modules"
        source = Bind(_MODULES / "misbehave", "/tmp/misbehave")
        round.run(made, ["sh", "-c", script], binds=[source])
        return (made.root.path / "root/misbehave/misbehave.ko").read_bytes()


# --- what is planted --------------------------------------------------------------------------


def files(planted: Files) -> Plant:
    """Write files, which only matter on trial."""

    def plant(scene: Scene, image: Path) -> None:
        disks.put(image, planted)

    return plant


def check(script: str) -> Plant:
    """Give the server a check of its own; checks run only on trial."""
    return files({_CHECK: (0o755, f"#!/bin/sh\n{script}\n".encode())})


def unit(text: str) -> Plant:
    """Let systemd start a unit, only on trial."""

    def plant(scene: Scene, image: Path) -> None:
        condition = f"[Unit]\nConditionKernelCommandLine={guarded.WORD}\n"
        disks.put(image, {_UNIT: (0o644, f"{condition}{text}".encode())})
        disks.link(image, _WANTS, _UNIT)

    return plant


def initramfs(script: str) -> Plant:
    """Run a script in the initramfs of the trial before the root file system is looked for."""
    name = "scripts/local-top/planted"
    order = f'/{name} "$@"\n[ -e /conf/param.conf ] && . /conf/param.conf\n'
    added = {
        name: (0o755, f'#!/bin/sh\n[ "$1" != prereqs ] || exit 0\n{script}\n'.encode()),
        "scripts/local-top/ORDER": (0o644, order.encode()),
    }

    def plant(scene: Scene, image: Path) -> None:
        disks.add_to_initrd(image, _TRIAL_INITRD, added)

    return plant


def garbage(scene: Scene, image: Path) -> None:
    """Let the kernel on trial be none."""
    disks.put(image, {_TRIAL_KERNEL: (0o644, _GARBAGE)})


def overwritten(scene: Scene, image: Path) -> None:
    """Let another file take the name of the good kernel, and a check fail."""
    disks.put(image, {f"/boot/vmlinuz-{scene.good}": (0o644, _GARBAGE)})
    check("exit 1")(scene, image)


def misbehave(deed: str) -> str:
    """Return the command that loads the module for one deed."""
    return f"insmod {_MISBEHAVE} what={deed}"


# --- what happens -----------------------------------------------------------------------------


def goes_back(
    scene: Scene,
    trial: Trial,
    *,
    plant: Plant,
    reason: str,
    end: End = End.RESET,
    starts: bool = True,
    watchdog: bool = False,
    cut_at: re.Pattern[str] | None = None,
    patience: float = 1.0,
) -> Told:
    """Require that the candidate is tried once, and that the good kernel stays after that.

    ``end`` is that of the only boot on trial, in which the candidate ``starts``; if GRUB cannot
    load it, the good kernel runs in the same boot.  ``reason`` is what the guard says of it.
    """
    with scene.disk(trial, scene.armed) as (image, changes):
        plant(scene, image)
        seen = guarded.follow(
            scene.round,
            trial,
            image,
            changes,
            trial.name,
            stays=scene.good,
            # The gate's own case looks at the module.
            module=None,
            watchdog=watchdog,
            cut_at=cut_at,
            patience=patience,
        )
        tried = [(one.started, one.end) for one in seen.before]
        wanted = [((scene.candidate,), end)] if starts else []
        trial.require(tried == wanted, f"the boots before are {tried}, not {wanted}")
        if seen.last is not None:
            state = {"state": "bad", "good": scene.good, "bad": scene.candidate, "trial": ""}
            guarded.require_status(trial, trial.name, seen.status, state)
            said = seen.status.get("reason", "")
            trial.require(re.search(reason, said) is not None, f"the guard's reason is {said!r}")
            dog = seen.status.get("watchdog")
            trial.require(dog == ("hardware" if watchdog else "none"), f"its watchdog is {dog}")
            guarded.require_next(scene.round, trial, image, changes, scene.good)
        return Told(trial, _happened(seen), seen.seconds)


def _happened(seen: Return) -> str:
    ends = [str(one.end and one.end.value) for one in seen.before]
    return f"{', '.join(ends)}; {seen.status.get('reason', '')}"


def healthy(scene: Scene, trial: Trial) -> Told:
    """Require that a candidate without a fault is made good."""
    with scene.disk(trial, scene.armed) as (image, _):
        seen = guarded.kept(scene.round, trial, image)
        return Told(trial, "checks passed, made good", seen.done_s)


def power_cut_in_arm(scene: Scene, trial: Trial, *, at: str) -> Told:
    """Cut the power before a command of ``retry``; the server must be armed or as before."""
    with scene.disk(trial, scene.idle) as (image, changes):
        command = Command((_CUTTER, at, "retry", scene.candidate), _COMMAND_S, status=None)
        with scene.round.running(
            trial, image, "where it is cut", changes=changes, cut_at=_AT_THAT_LINE
        ) as server:
            trial.require(server.seen.release == scene.good, "the good kernel does not run first")
            server.run(command)
            cut = server.finish()
        trial.require(cut.end is End.CUT, f"the end of the boot is {cut.end}, no power cut")
        # The guard had taken the candidate from its trial before.
        return _after_the_cut(scene, trial, image, changes, ("armed", "bad"))


def power_cut_in_good(scene: Scene, trial: Trial, *, at: str) -> Told:
    """Cut the power before a command by which the candidate becomes the good kernel."""
    start = f"[Service]\nExecStart=\nExecStart={_CUTTER} '{at}' probation\n"
    with scene.disk(trial, scene.armed) as (image, changes):
        disks.put(image, {_DROP_IN: (0o644, start.encode())})
        with scene.round.running(
            trial, image, "where it is cut", changes=changes, cut_at=_AT_THAT_LINE
        ) as server:
            server.wait_end(_COMMAND_S)
            cut = server.finish()
        trial.require(cut.end is End.CUT, f"the end of the boot is {cut.end}, no power cut")
        return _after_the_cut(scene, trial, image, changes, ("good",), good=scene.candidate)


def _after_the_cut(
    scene: Scene,
    trial: Trial,
    image: Path,
    changes: Path,
    states: Sequence[str],
    *,
    good: str = "",
) -> Told:
    """Require that the next boot runs a whole kernel, and that the guard's state is sound."""
    round, what = scene.round, "the boot after the power cut"
    with round.running(trial, image, what, changes=changes) as server:
        if guarded.on_trial(server.seen):
            server.run(UNTIL_GOOD)
        server.run(UNTIL_DONE)
        server.run(STATUS)
        seen = server.finish()
    trial.reasons += [f"{what}: {one}" for one in seen.verdict.reasons]
    found = guarded.said(seen)
    # The candidate is healthy, so it is good if GRUB had been told of it.
    allowed = ("good",) if guarded.on_trial(seen) else states
    trial.require(found.get("state") in allowed, f"{what}: the guard's state is {found}")
    stays = good or (scene.candidate if guarded.on_trial(seen) else scene.good)
    trial.require(found.get("good") == stays, f"{what}: the good kernel is {found.get('good')}")
    kernel = found.get("trial") if found.get("state") == "armed" else stays
    then = guarded.next_kernel(round, trial, image, changes, "the boot after that")
    wanted = (kernel, found.get("state") == "armed")
    trial.require(then == wanted, f"the boot after that is {then}, not {wanted}")
    ran = f"{seen.release}{' on trial' if guarded.on_trial(seen) else ''}"
    return Told(trial, f"{ran} ran; then {found.get('state')}", seen.first_line_s)


def removed(scene: Scene, trial: Trial) -> Told:
    """Remove and purge the guard of an armed server, which then boots as without it."""
    round = scene.round
    with round.copy(scene.tree, trial.name) as made:
        tree = made.root.path
        # The gate's own file.
        shutil.rmtree((tree / guarded.SERVICE).parent)
        round.apt(made, "remove", PACKAGE)
        with round.disk(made) as image:
            seen = round.boot(
                trial, image, "after the removal", release=scene.candidate, module=PREBUILT
            )
            trial.require(not guarded.on_trial(seen), "the kernel is on trial without the guard")
        round.apt(made, "purge", PACKAGE)
        left = [*(tree / "boot").glob("cplayground-*"), tree / "var/lib/cplayground-guard"]
        left += (tree / "etc").rglob("*cplayground*guard*")
        trial.reasons += [f"{path.relative_to(tree)} is left" for path in left if path.exists()]
        for name in ("grubenv", "grub.cfg"):
            text = (tree / "boot/grub" / name).read_text()
            found = re.search(r"guard_|cplayground-(good|trial)", text)
            trial.require(found is None, f"the guard is in {name}")
        with round.disk(made) as image:
            changes = machine.keep_changes(image, image.with_suffix(".qcow2"))
            try:
                guarded.require_next(round, trial, image, changes, scene.candidate)
            finally:
                changes.unlink()
        return Told(trial, "the newest kernel boots as without the guard", seen.first_line_s)


def without_the_guard(scene: Scene, trial: Trial) -> Told:
    """Require that a server without the guard is lost, which shows that the plant is one."""
    round = scene.round
    with round.copy(scene.tree, trial.name) as made:
        round.apt(made, "purge", PACKAGE)
        with round.disk(made) as image:
            disks.put(image, {f"/boot/vmlinuz-{scene.candidate}": (0o644, _GARBAGE)})
            changes = machine.keep_changes(image, image.with_suffix(".qcow2"))
            try:
                boots: list[Boot] = []
                for number in (1, 2):
                    with round.running(
                        trial,
                        image,
                        f"without the guard, boot {number}",
                        changes=changes,
                        cut_at=re.compile(r"error: .*\n"),
                        settled=False,
                        patience=0.3,
                    ) as server:
                        boots.append(server.finish())
            finally:
                changes.unlink()
        trial.require(
            all(one.started == () for one in boots), f"a kernel ran: {[b.started for b in boots]}"
        )
        return Told(trial, "GRUB stops at an error, at each boot")


_HANG = f"echo '{_HERE}' >/dev/console\nwhile :; do sleep 1; done"
_DEAF = f"echo '{_HERE}' >/dev/console\n{misbehave('deaf')}"
_LATER = "\n".join(
    (
        "[ ! -e /run/planted ] || exit 0",
        "touch /run/planted",
        f"setsid sh -c 'sleep 5; {misbehave('oops')}' </dev/null >/dev/null 2>&1 &",
    )
)
_LOST = "^crashed or hung: "

# The longest come first.
STORIES: Mapping[str, Tell] = {
    "hang-in-initramfs-watchdog": functools.partial(
        goes_back,
        plant=initramfs("while :; do sleep 1; done"),
        reason=_LOST,
        end=End.WATCHDOG,
        watchdog=True,
        patience=3.0,
    ),
    "hang-with-interrupts-off-watchdog": functools.partial(
        goes_back,
        plant=check(misbehave("deaf")),
        reason=_LOST,
        end=End.WATCHDOG,
        watchdog=True,
    ),
    "start-that-never-ends": functools.partial(
        goes_back,
        plant=unit(
            "Before=multi-user.target\n"
            "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sleep infinity\n"
        ),
        reason="^refused: the system did not come up within",
    ),
    "no-root-file-system": functools.partial(
        goes_back, plant=initramfs("echo ROOT=/dev/nowhere >>/conf/param.conf"), reason=_LOST
    ),
    "oops-in-probation": functools.partial(goes_back, plant=check(_LATER), reason=_LOST),
    "oops-while-checked": functools.partial(
        goes_back, plant=check(misbehave("oops")), reason=_LOST
    ),
    "failed-unit": functools.partial(
        goes_back,
        plant=unit("[Service]\nType=oneshot\nExecStart=/bin/false\n"),
        reason="^refused: the check 30-units failed: failed units: planted.service",
    ),
    "check-of-the-user-fails": functools.partial(
        goes_back,
        plant=check("echo no database; exit 1"),
        reason="^refused: the check 90-gate failed: no database",
    ),
    "good-kernel-overwritten": functools.partial(
        goes_back, plant=overwritten, reason="^refused: the check 90-gate failed"
    ),
    "hang-in-initramfs": functools.partial(
        goes_back, plant=initramfs(_HANG), reason=_LOST, end=End.CUT, cut_at=_AT_THAT_LINE
    ),
    "hang-with-interrupts-off": functools.partial(
        goes_back, plant=check(_DEAF), reason=_LOST, end=End.CUT, cut_at=_AT_THAT_LINE
    ),
    "power-cut-in-try": functools.partial(
        goes_back,
        plant=lambda scene, image: None,
        reason=_LOST,
        end=End.CUT,
        cut_at=re.compile("Linux version .*\n"),
    ),
    "garbage-as-vmlinuz": functools.partial(
        goes_back, plant=garbage, reason="^unloadable: ", starts=False
    ),
    "healthy": healthy,
    "power-cut-in-arm-between-kernel-and-initrd": functools.partial(
        power_cut_in_arm, at='put "?1" initrd.img'
    ),
    "power-cut-in-arm-before-grub-knows": functools.partial(
        power_cut_in_arm, at="env_change guard_tried=*"
    ),
    "power-cut-in-arm-after-grub-knows": functools.partial(power_cut_in_arm, at="state=armed *"),
    "power-cut-in-good-between-kernel-and-initrd": functools.partial(
        power_cut_in_good, at='put "?1" initrd.img'
    ),
    "power-cut-in-good-before-grub-forgets": functools.partial(
        power_cut_in_good, at='disarm "guard_good=*'
    ),
    "power-cut-in-good-before-it-is-written": functools.partial(
        power_cut_in_good, at="state=good good=*"
    ),
    "removed-and-purged": removed,
    "without-the-guard": without_the_guard,
}


def tell(scene: Scene, name: str) -> Told:
    """Tell a story to its end; an error of a step is a reason."""
    trial = Trial(f"guard-{name}")
    began = time.monotonic()
    try:
        told = STORIES[name](scene, trial)
    except BuildError as error:
        trial.reasons.append(str(error))
        told = Told(trial)
    return dataclasses.replace(told, took_s=time.monotonic() - began)
