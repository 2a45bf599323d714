"""Statuses of rounds, one for each kind of day, with hostile text where strangers write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kbuild.archive.evidence import Case
from kbuild.archive.required import REQUIRED
from kbuild.watch.state import (
    Against,
    Answer,
    Attempt,
    Cause,
    Failure,
    Listed,
    Next,
    Ours,
    Outcome,
    Status,
    Step,
    Told,
)

NOW = datetime(2026, 11, 30, 18, 5, tzinfo=UTC)
YES, NO = Answer(Told.YES), Told.NO
# Text that would be shown or run if a value were not escaped.
HOSTILE = "</pre><script>document.title='owned'</script><img src=x onerror=alert(1)>&amp;\"'"
SECRET = "https://builder:hunter2@mirror.example/debian"
OLD, NEW = "6.1.192-2", "6.1.192-3"
_VERSIONS = {"trixie": ("6.12.47-1", "6.12.48-1"), "bullseye": ("5.10.246-1", "5.10.247-1")}


def ago(**given: float) -> str:
    """Return a time before the end of the round."""
    return (NOW - timedelta(**given)).isoformat()


def cases(*, failed: str = "") -> tuple[Case, ...]:
    """Return a whole verdict of the gate, in which at most one case failed."""
    names = sorted(REQUIRED)
    return tuple(
        Case(name, "failed", 71.2, ("the upgraded server: hung", HOSTILE))
        if name == failed
        else Case(name, "passed", 28.0 + 9 * at)
        for at, name in enumerate(names)
    )


def ours(
    base: str,
    *,
    percent: int = 100,
    suite: str = "bookworm",
    flavour: str = "cloud-amd64",
    **given: float,
) -> Ours:
    """Return a release of a distro's version."""
    return Ours(
        f"{suite}-{flavour}-{base}+cplayground1",
        base,
        f"{base.rpartition('.')[0]}.0-57-cplayground-{flavour}",
        ago(**given or {"days": 3}),
        percent,
    )


def versions(suite: str) -> tuple[str, str]:
    """Return a former version and the newest one."""
    return _VERSIONS.get(suite, (OLD, NEW))


def current(suite: str = "bookworm", flavour: str = "cloud-amd64") -> Against:
    """Return a target whose servers have the newest version."""
    _, base = versions(suite)
    return Against(
        suite=suite,
        flavour=flavour,
        variant="release",
        asked=ago(minutes=2),
        newest=base,
        abi="57",
        uploaded=ago(days=4),
        promoted=ours(base, suite=suite, flavour=flavour),
        lag_s=0.0,
        changelog=YES,
        applies=YES,
        fast=YES,
    )


def behind(suite: str = "bookworm", flavour: str = "cloud-amd64") -> Against:
    """Return a target whose servers lack the newest version."""
    old, new = versions(suite)
    return replace(
        current(suite, flavour),
        promoted=ours(old, suite=suite, flavour=flavour, days=30),
        missed=(new,),
        missed_since=ago(hours=31),
        lag_s=31 * 3600.0,
        cves=(*(f"CVE-2026-{number}" for number in range(31001, 31015)), HOSTILE),
    )


def listed(one: Ours, state: str = "promoted", *, failed: str = "", reason: str = "") -> Listed:
    """Return a release of the archive with its verdict."""
    return Listed(
        id=one.id,
        suite=one.id.partition("-")[0],
        flavour=one.kernel.partition("cplayground-")[2],
        variant="release",
        kernel=one.kernel,
        version=f"{one.base}+cplayground1",
        base=one.base,
        state=state,
        percent=one.percent,
        since=one.when,
        reason=reason,
        gate=ago(days=3, hours=2),
        passed=not failed,
        cases=cases(failed=failed),
    )


def status(*targets: Against, **given: object) -> Status:
    """Return the status of a round that found these targets."""
    whole = Status(
        began=ago(minutes=3),
        ended=NOW.isoformat(),
        commit="9c562d1a0b7c8d9e",
        version="0.2.0",
        archive="/srv/cplayground/archive",
        url="http://kernels.example/",
        valid_until={
            "bookworm": ago(days=-26, hours=-4),
            "bookworm-staging": ago(days=-26, hours=-4),
        },
        targets=targets,
        releases=tuple(
            listed(one, state)
            for target in targets
            for one, state in ((target.staged, "staged"), (target.promoted, "promoted"))
            if one is not None
        ),
    )
    return replace(whole, **given)  # type: ignore[arg-type]


def good(log: Path) -> Status:
    """A good day: every kernel is current."""
    four = [
        current(suite, flavour)
        for suite in ("bookworm", "trixie")
        for flavour in ("cloud-amd64", "amd64")
    ]
    older = listed(ours(OLD, days=30), "superseded")
    found = status(*four)
    return replace(found, releases=(*found.releases, older))


def empty(log: Path) -> Status:
    """The first round: nothing was published yet."""
    first = replace(current(), promoted=None, lag_s=None, missed=(NEW,), uploaded=ago(days=4))
    return status(first, replace(first, suite="trixie", newest="6.12.48-1"), valid_until={})


def working(log: Path) -> Status:
    """An update: one is being built, one is in staging, one rolls out, one is due."""
    building = behind()
    attempt = Attempt(
        Step.RELEASE, "bookworm-cloud-amd64", "5f1c", ago(minutes=21), base=NEW, commit="9c562d1"
    )
    staged = replace(
        behind("trixie"), staged=ours(versions("trixie")[1], suite="trixie", percent=0, hours=5)
    )
    rolling = replace(
        current("bullseye"), promoted=ours(versions("bullseye")[1], suite="bullseye", percent=10)
    )
    assert staged.staged is not None and rolling.promoted is not None
    return status(
        *(building, staged, rolling, behind("bookworm", "amd64")),
        promotions=(
            Next(staged.staged.id, 10, ago(hours=-19)),
            Next(rolling.promoted.id, 50, ago(hours=1)),
        ),
        attempts=(attempt,),
        ended="",
        began=ago(minutes=22),
        done=("staged trixie-cloud-amd64-6.12.48-1+cplayground1",),
    )


def by_hand(log: Path) -> Status:
    """No step for what is in staging and for what half of the servers get: a person promotes."""
    (_, bookworm), (_, trixie), (_, bullseye) = map(versions, ("bookworm", "trixie", "bullseye"))
    staged = replace(behind(), staged=ours(bookworm, percent=0, hours=5))
    half = ours(trixie, suite="trixie", percent=50, hours=60)
    stuck = replace(
        behind("bullseye"), staged=ours(bullseye, suite="bullseye", percent=0, hours=90)
    )
    assert staged.staged is not None
    return status(
        *(staged, replace(current("trixie"), promoted=half), stuck),
        promotions=(Next(staged.staged.id, 0), Next(half.id, 0)),
    )


def failed(log: Path) -> Status:
    """A failed update: the patch is refused for one kernel, the gate refuses another."""
    refused = Failure(
        kind="build",
        what="the patch export-symbols does not apply",
        status=3,
        expected="each hunk at its place, fuzz 0",
        found=f"fs/file.c: hunk 2 of 3 refused\n{HOSTILE}",
        log=str(log),
        do="refresh the patch: docs/howto/add-a-patch.md",
    )
    release = Attempt(
        Step.RELEASE,
        "bookworm-cloud-amd64",
        "77aa",
        ago(hours=2),
        ago(hours=1, minutes=58),
        Outcome.REFUSED,
        3,
        refused,
        base=NEW,
        seconds=127.0,
    )
    verdict = Failure(
        kind="gate",
        what="the gate refuses trixie-cloud-amd64-6.12.48-1+cplayground1",
        status=1,
        expected="each case passed",
        found="upgrade: failed: the upgraded server: hung",
        do="read gate.json for all reasons and for the console of each boot",
    )
    judged = replace(
        release,
        subject="trixie-cloud-amd64",
        base=versions("trixie")[1],
        status=1,
        error=verdict,
        seconds=3127.0,
        cases=cases(failed=sorted(REQUIRED)[0]),
    )
    causes = (
        Cause(release.key, f"Debian's {NEW} cannot be built", ago(hours=1, minutes=58), "m"),
        Cause(judged.key, "the gate refuses Debian's 6.12.48-1", ago(hours=1), "m", verdict),
    )
    late = replace(behind("trixie"), applies=Answer(Told.UNKNOWN, "the source is not here"))
    stuck = replace(behind(), applies=Answer(NO, "hunk 2 of fs/file.c"))
    return status(stuck, late, attempts=(release, judged), causes=causes)


def unreachable(log: Path) -> Status:
    """A mirror that is out of reach, for an hour."""
    error = Failure(
        kind="infrastructure",
        what=f"{SECRET} gave no answer",
        status=69,
        expected="InRelease of bookworm-security",
        found="Connection timed out",
        log=str(log.with_name("missing.log")),
        do="run it again later, or with --mirror",
    )
    attempt = Attempt(
        Step.CHECK,
        "bookworm-cloud-amd64",
        "1",
        ago(minutes=3),
        ago(minutes=2),
        Outcome.UNAVAILABLE,
        69,
        error,
        tries=3,
        not_before=ago(minutes=-57),
    )
    lost = Against(
        *("bookworm", "cloud-amd64", "release", ago(minutes=2)), promoted=ours(OLD), error=error
    )
    cause = Cause(attempt.key, "the mirror gave no answer", ago(hours=1), "m", error)
    return status(lost, current("trixie"), attempts=(attempt,), causes=(cause,))


def withdrawn(log: Path) -> Status:
    """A person took the newest version back, and servers have the one before."""
    gone = listed(replace(ours(NEW), when=ago(hours=3)), "withdrawn", reason="hangs at boot")
    found = status(behind(), current("trixie"))
    return replace(found, releases=(gone, *found.releases))


def expired(log: Path) -> Status:
    """Signatures that nobody renewed."""
    until = {"bookworm": ago(hours=5), "bookworm-staging": ago(hours=-30)}
    return status(current(), valid_until=until)


def many(log: Path) -> Status:
    """Twenty targets, with long names."""
    suites = ("bullseye", "bookworm", "trixie", "forky")
    flavours = ("cloud-amd64", "amd64", "rt-amd64", "lab", "a-flavour-with-a-very-long-name-amd64")
    every = [current(suite, flavour) for suite in suites for flavour in flavours]
    return status(*every[:17], *(behind(one.suite, one.flavour) for one in every[17:]))


DAYS: Mapping[str, Callable[[Path], Status]] = {
    one.__name__: one
    for one in (good, empty, working, by_hand, failed, unreachable, withdrawn, expired, many)
}
