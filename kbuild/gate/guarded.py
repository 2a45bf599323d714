"""The case ``guard``: a server tries a kernel once, keeps a good one, and leaves a bad one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.gate import machine
from kbuild.gate.machine import Boot, Command
from kbuild.gate.round import PREBUILT, Round, Trial, names
from kbuild.gate.server import Server
from kbuild.gate.steps import install_older
from kbuild.guest.outcome import End
from kbuild.ship.guard_package import PACKAGE

PROGRAM = "cplayground-guard"
CONFIGURATION = "etc/cplayground/guard.conf"
STATUS = Command((PROGRAM, "status"), 20.0)
# Waits until the guard's service has done what a boot of a kernel that is not on trial asks for.
UNTIL_DONE = Command(
    ("sh", "-c", "while systemctl -q is-active cplayground-guard; do sleep 1; done"), 60.0
)
# Waits until the kernel on trial is good.
UNTIL_GOOD = Command(
    ("sh", "-c", f"until {PROGRAM} status | grep -qx 'state: good'; do sleep 1; done"), 60.0
)
# The kernel's command line has it in a boot on trial.
WORD = "cplayground_guard=trial"

# A user's own check, that fails with a kernel on trial; checks run only then.
FAILING_CHECK = "etc/cplayground/check.d/90-gate"
COMPLAINT = "this check fails on purpose"
_FAILING = f"#!/bin/sh\necho '{COMPLAINT}'\nexit 1\n"
# The checks run at both ends of the probation.  A check that fails on purpose needs no patience.
_PROBATION, _PATIENCE = "1s", "10s"
_IMPATIENCE = "2s"
# A check that failed is repeated after so many seconds.
_AGAIN_S = 1
SERVICE = "etc/systemd/system/cplayground-guard.service.d/gate.conf"

# Seconds of a fast machine.  A kernel on trial has to come up, to be checked, and to end.
_TRIAL_S = 60.0
# A kernel that is tried more than once is lost.
_MOST_BOOTS = 3
# The line after the kernel's first one.
_COMMAND_LINE = re.compile(r"Linux version (\S+) .*\n.*Command line: (.*)\n")


@dataclass(frozen=True)
class Return:
    """The boots of a server until a kernel stayed, and what the guard says then."""

    before: tuple[Boot, ...]  # each ended without that kernel
    last: Boot | None  # of the kernel that stays; None if it never came
    status: Mapping[str, str] = field(default_factory=dict)  # as parse() returns it

    @property
    def seconds(self) -> float | None:
        """From the first boot's start to the first line of the kernel that stays."""
        if self.last is None or self.last.first_line_s is None:
            return None
        return sum(one.off_s or 0.0 for one in self.before) + self.last.first_line_s


def parse(text: str) -> dict[str, str]:
    """Return what ``cplayground-guard status`` printed: the value of each key."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def follow(
    round: Round,
    trial: Trial,
    disk: Path,
    changes: Path,
    what: str,
    *,
    stays: str,
    module: str | None,
    watchdog: bool = False,
    cut_at: re.Pattern[str] | None = None,
    patience: float = 1.0,
) -> Return:
    """Boot a server until it runs the kernel ``stays``, not on trial, and judge that boot.

    The boots before must end by themselves, or the power is cut at a match of ``cut_at``.  What is
    wrong goes into ``trial``.  ``module`` is that of :meth:`Round.boot`.  ``patience`` is a factor
    on the deadlines.
    """
    before: list[Boot] = []
    while len(before) < _MOST_BOOTS:
        name = f"{what}, boot {len(before) + 1}"
        with round.running(
            trial,
            disk,
            name,
            changes=changes,
            watchdog=watchdog,
            cut_at=None if before else cut_at,
            settled=False,
            patience=patience,
        ) as server:
            if server.seen.release == stays and not on_trial(server.seen):
                server.settle()
                seen = round.judge(
                    trial,
                    server,
                    name,
                    release=stays,
                    module=module,
                    commands=(UNTIL_DONE, STATUS),
                )
                return Return(tuple(before), seen, said(seen))
            ended = server.wait_end(_TRIAL_S)
            before.append(server.finish())
        if not trial.require(ended, f"{name}: the server stays with {before[-1].release}"):
            break
    trial.require(False, f"{what}: {stays} did not come back")
    return Return(tuple(before), None)


def on_trial(seen: Boot) -> bool:
    """Return whether a boot's kernel was told that it is on trial."""
    return WORD in seen.cmdline.split()


def said(seen: Boot) -> dict[str, str]:
    """Return the guard's status at the end of a boot; empty if it was not asked."""
    found = [one.text for one in seen.results if one.argv == STATUS.argv]
    return parse("".join(found[-1:]))


def next_kernel(
    round: Round, trial: Trial, disk: Path, changes: Path, what: str
) -> tuple[str, bool]:
    """Start a server, and cut its power when the kernel has shown its command line.

    Returns the kernel's release, "" if none was seen, and whether it was on trial.
    """
    with round.running(
        trial, disk, what, changes=changes, cut_at=_COMMAND_LINE, settled=False
    ) as server:
        seen = server.finish()
    found = _COMMAND_LINE.search(seen.console.read_text(errors="replace").replace("\r\n", "\n"))
    if seen.end is not End.CUT or found is None:
        return "", False
    return found.group(1), WORD in found.group(2).split()


def require_status(
    trial: Trial, what: str, found: Mapping[str, str], wanted: Mapping[str, str]
) -> bool:
    """Require lines of the guard's status."""
    wrong = [
        f"{key} is {found.get(key, '')!r}, not {value!r}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    return trial.require(not wrong, f"{what}: {PROGRAM} status: {', '.join(wrong)}")


# --- the case ----------------------------------------------------------------------------------


def guard(round: Round, trials: Mapping[str, Trial]) -> None:
    """Let a server try the candidate, once with checks that pass and once with one that fails.

    It has the newest promoted release, or only Debian's kernel if there is none.
    """
    (trial,) = trials.values()
    candidate = round.candidate.kernel
    with round.server(trial.name) as made:
        good = prepare(round, made, PROBATION=_PROBATION, PATIENCE=_PATIENCE)
        round.apt(made, "install", *names(round.candidate).prebuilt)
        there = parse(round.run(made, STATUS.argv).stdout)
        what = "after the installation"
        wanted = {"state": "armed", "good": good, "trial": candidate}
        if not require_status(trial, what, there, wanted):
            return
        with round.disk(made) as disk:
            kept(round, trial, disk)
        configure(made, {"PATIENCE": _IMPATIENCE})
        check = made.root.path / FAILING_CHECK
        check.write_text(_FAILING)
        check.chmod(0o755)
        with round.disk(made) as disk:
            refused(round, trial, disk, good)


def prepare(round: Round, made: Server, **settings: str) -> str:
    """Install a good kernel and the guard in a tree, and return that kernel's release.

    ``settings`` are those of the guard's configuration.
    """
    good = round.base.release
    if round.view.promoted:
        older = round.view.promoted[0]
        install_older(round, made, older)
        good = older.kernel
    else:
        round.follow(made, round.view.staging)
    made.run_as_if(good)
    round.apt(made, "install", PACKAGE)
    configure(made, settings)
    service = made.root.path / SERVICE
    service.parent.mkdir(parents=True)
    service.write_text(f"[Service]\nEnvironment=GUARD_AGAIN_S={_AGAIN_S}\n")
    return good


def configure(made: Server, settings: Mapping[str, str]) -> None:
    """Change settings in the guard's configuration of a tree."""
    path = made.root.path / CONFIGURATION
    text = path.read_text()
    for name, value in settings.items():
        text, changes = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert changes == 1, name
    path.write_text(text)


def kept(round: Round, trial: Trial, disk: Path) -> Boot:
    """Let the candidate pass its checks; it is good then, and the next boot starts it."""
    candidate, what = round.candidate.kernel, "the server with the candidate on trial"
    with machine.keeping(disk) as changes:
        seen = round.boot(
            trial,
            disk,
            what,
            release=candidate,
            module=PREBUILT,
            commands=(UNTIL_GOOD, STATUS),
            changes=changes,
        )
        trial.require(on_trial(seen), f"{what}: it was not on trial")
        wanted = {"state": "good", "good": candidate, "trial": "", "bad": ""}
        if seen.done_s is not None:
            trial.notes.append(f"{candidate} was good after {seen.done_s:.0f} s")
        if require_status(trial, what, said(seen), wanted):
            require_next(round, trial, disk, changes, candidate)
        return seen


def refused(round: Round, trial: Trial, disk: Path, good: str) -> None:
    """Let a check fail; the server must go back by itself, and not try the candidate again."""
    candidate, what = round.candidate.kernel, "the server with a check that fails"
    module = PREBUILT if round.view.promoted else None
    with machine.keeping(disk) as changes:
        seen = follow(round, trial, disk, changes, what, stays=good, module=module)
        tried = [(one.started, one.end) for one in seen.before]
        trial.require(
            tried == [((candidate,), End.RESET)],
            f"{what}: {candidate} was not tried once and left by a reboot: {tried}",
        )
        wanted = {"state": "bad", "good": good, "bad": candidate}
        certain = require_status(trial, what, seen.status, wanted)
        reason = seen.status.get("reason", "")
        trial.require(COMPLAINT in reason, f"{what}: the guard's reason is {reason!r}")
        if seen.seconds is not None:
            trial.notes.append(f"{good} ran again after {seen.seconds:.0f} s")
        if certain:
            require_next(round, trial, disk, changes, good)


def require_next(round: Round, trial: Trial, disk: Path, changes: Path, kernel: str) -> None:
    """Require that the next boot starts a kernel, and that it is not on trial."""
    what = "the boot after that"
    release, tried = next_kernel(round, trial, disk, changes, what)
    found = f"{release or 'no kernel'}{' on trial' if tried else ''}"
    trial.require((release, tried) == (kernel, False), f"{what} starts {found}, not {kernel}")
