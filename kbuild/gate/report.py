"""The verdict of the gate: each case with its reasons, and gate.json as the archive reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kbuild.archive import evidence
from kbuild.archive.required import NO_KEY, NOTHING_OLDER
from kbuild.core import fs, progress, table
from kbuild.core.errors import KbuildError

# The archive reads the file.
FILE = evidence.GATE
PASSED = evidence.PASSED
FAILED, NOT_RUN = "failed", "not run"

_HEADS = ("case", "verdict", "time", "boots", "reasons")
_SHOWN_REASONS = 6


class GateError(KbuildError):
    """The gate judged a release, and at least one case did not pass."""

    kind = "gate"


@dataclass(frozen=True)
class BootSeen:
    """One boot of a case."""

    what: str  # subject first: the upgraded server
    release: str  # what uname -r printed; "" without an answer
    outcome: str  # a label of kbuild.guest.outcome.Outcome
    seconds: float  # from QEMU's start to its end
    console: str  # path of the console's log


@dataclass(frozen=True)
class CaseResult:
    """The verdict of one case; without reasons only if it passed."""

    name: str
    outcome: str
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()
    boots: tuple[BootSeen, ...] = ()
    notes: tuple[str, ...] = ()  # what was seen and is no reason to refuse

    @property
    def passed(self) -> bool:
        """True for a case that passed, or that lacks what it starts from, as its outcome says."""
        return self.outcome in (PASSED, NOTHING_OLDER, NO_KEY)


@dataclass(frozen=True)
class Report:
    """The verdict on one release."""

    id: str
    packages: Mapping[str, str]  # file name -> SHA-256
    cases: tuple[CaseResult, ...]
    older: tuple[str, ...]  # IDs of the promoted releases that the cases started from
    commit: str  # of the checkout that judged
    when: str  # UTC, ISO 8601, of the end
    accelerator: str
    seconds: float

    @property
    def passed(self) -> bool:
        """True if every case ran and none failed; a selection of cases never passes."""
        return bool(self.cases) and all(one.passed for one in self.cases)

    @property
    def selected(self) -> tuple[CaseResult, ...]:
        """The cases that ran."""
        return tuple(one for one in self.cases if one.outcome != NOT_RUN)

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases that ran and did not pass."""
        return tuple(one for one in self.selected if not one.passed)


def write(path: Path, report: Report) -> None:
    """Write gate.json by rename."""
    fs.write_json(path, to_json(report))


def to_json(report: Report) -> dict[str, object]:
    """Return the content of gate.json."""
    return {"format": evidence.FORMAT, "passed": report.passed, **asdict(report)}


def render(report: Report) -> str:
    """Return the table of a round for people."""
    rows = []
    for one in report.cases:
        reasons = list(one.reasons[:_SHOWN_REASONS])
        if len(one.reasons) > _SHOWN_REASONS:
            reasons.append(f"and {len(one.reasons) - _SHOWN_REASONS} more")
        ran = one.outcome != NOT_RUN
        rows.append(
            (
                one.name,
                one.outcome,
                progress.duration(one.seconds) if ran else "",
                str(len(one.boots)) if ran else "",
                "\n".join(reasons),
            )
        )
    return table.text(_HEADS, rows, unbroken=4, right=("time", "boots"))


def error(report: Report) -> GateError | None:
    """Return the error of a round in which a case failed, or in which none ran."""
    if not report.failed and report.selected:
        return None
    return GateError(
        f"the gate refuses {report.id}",
        expected="each case passed",
        found="\n".join(
            f"{one.name}: {one.outcome}: {reason}"
            for one in report.failed
            for reason in (one.reasons or ("no reason is known",))[:1]
        )
        or "no case ran",
        hint="read gate.json for all reasons and for the console of each boot",
    )
