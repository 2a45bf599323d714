"""List the cases that bench.build measures, and read their results from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbuild.core.errors import UserError
from kbuild.core.model import Target
from kbuild.core.suites import DEBIAN_FLAVOURS
from kbuild.measure.stats import BenchError


@dataclass(frozen=True)
class Case:
    """One thing that is measured."""

    name: str
    title: str
    needs: str = ""  # the case whose compiler cache it starts from
    # The target, if any: a share of another case's CPU time, or seconds of wall time.
    of: str = ""
    share: Mapping[str, float] = field(default_factory=dict)  # by flavour
    seconds: float = 0.0


CASES = {
    case.name: case
    for case in (
        Case("plain", "make bindeb-pkg, without a compiler cache"),
        Case("count", "objects of a full build, counted and not compiled"),
        Case("full", "our full build, cold"),
        Case("full-ccache", "our full build again, from the compiler cache", needs="full"),
        Case(
            "fast",
            "the fast path, cold",
            of="full",
            share={"cloud-amd64": 1 / 3, "amd64": 1 / 8},
        ),
        Case("fast-ccache", "the fast path again, from the compiler cache", needs="fast"),
        Case(
            "point-release",
            "the newest version, after --before VERSION",
            of="fast",
            share={"cloud-amd64": 1 / 4, "amd64": 1 / 4},
        ),
        Case("patch", "an edit of the patch, to packages on a guest's disk", seconds=180),
        Case("nothing", "./inv package with nothing changed", seconds=5),
    )
}
FULL, FAST = ("plain", "full", "full-ccache"), ("fast", "fast-ccache")


@dataclass(frozen=True)
class Measurement:
    """The result of one run of a case, and the conditions it was measured under."""

    case: str
    version: str  # Debian's, of the kernel
    wall_s: float
    cpu_s: float  # user and system time, of everything that was started
    objects: int | None = None
    hits: int | None = None  # of the compiler cache
    misses: int | None = None
    missed: tuple[str, ...] = ()  # the first few files
    # Numbers of files whose symbol versions were in the compiler cache, and were not.
    versions: tuple[int, int] | None = None
    counters: Mapping[str, int] = field(default_factory=dict)  # of ccache
    reasons: Mapping[str, int] = field(default_factory=dict)  # why files were missed
    packages_cpu_s: float = 0.0  # packaging's part of cpu_s
    note: str = ""
    began: str = ""  # ISO 8601, UTC
    host: str = ""
    load: tuple[float, float] = (0.0, 0.0)  # average of one minute, before and after
    jobs: int = 0
    commit: str = ""


def choose(target: Target, names: Sequence[str], *, before: str = "") -> tuple[Case, ...]:
    """Return the cases asked for in the table's order; by default those useful for the target.

    Raises UserError for an unknown case, and for a case that this target cannot have.
    """
    wrong = sorted(set(names) - set(CASES))
    if wrong:
        raise UserError(
            f"no such case: {', '.join(wrong)}", expected=", ".join(CASES), found=wrong[0]
        )
    if before and names and "point-release" not in names:
        raise UserError(
            f"--before would be ignored with --case {' --case '.join(names)}",
            expected="--before with the case point-release",
            found=before,
        )
    if not names:
        return tuple(case for case in CASES.values() if obstacle(case, target, before) is None)
    for name in names:
        if (why := obstacle(CASES[name], target, before)) is not None and (
            # A case that takes hours is measured if the user names it.
            not (name in FULL and target.flavour in DEBIAN_FLAVOURS)
        ):
            raise UserError(f"the case {name} cannot be measured", found=why)
    return tuple(case for case in CASES.values() if case.name in names)


def obstacle(case: Case, target: Target, before: str) -> str | None:
    """Return why a case is left out by default; None if it is not."""
    if case.name in FAST and (target.flavour not in DEBIAN_FLAVOURS or target.variant != "release"):
        return f"{target.name} has no fast path: its configuration is not the distro's"
    if case.name in FULL and target.flavour == "amd64":
        return "hours on two cores; extrapolated from cloud-amd64 by the count of objects"
    if case.name == "point-release" and not before:
        return "--before VERSION is needed"
    return None


def read(path: Path) -> dict[str, Measurement]:
    """Read the results of a target, by case; they are empty before the first measurement.

    Raises BenchError for a damaged file.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text())
        return {name: _measurement(one) for name, one in raw.items() if name in CASES}
    except (ValueError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{path} does not hold results of this benchmark",
            found=str(error),
            hint="remove the file and measure again",
        ) from error


def _measurement(raw: Mapping[str, Any]) -> Measurement:
    # JSON has no tuples.
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Measurement(**values)
