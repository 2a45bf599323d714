"""Mutants: our module with one bug each, by which the suite's own worth is measured.

A mutant is a patch on kmod/ with a header that says what the bug is, why somebody would
write it, and which detectors must catch it.  It is killed when all of these have reported
in its time, or one of several where it is chance which comes first; anything else is a hole
in the suite, or a bug that is none.
"""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from debian.deb822 import Deb822

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import BACKENDS
from kbuild.core.run import run
from kbuild.kernel import module
from kbuild.lab import quick

logger = logging.getLogger(__name__)

# The module as it is, which must pass wherever a mutant is killed.
CONTROL = "unmutated"

# In the repository.
PATCHES = Path("kbuild/lab/bugs")
# Of one trial, beside its console.log.
REPORT = "report.txt"

_REQUIRED = ("Bug", "Why", "Backends", "Detectors", "Within")
_OPTIONAL = ("Window", "Many", "Churn")
_PATCH_TIMEOUT_S = 60.0
WINDOW_US = 300


# Of quick.DETECTORS: one of each of these must report.
Detectors = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mutant:
    """One bug, and what must find it."""

    name: str
    patch: Path
    bug: str
    why: str
    backends: tuple[str, ...]  # on which the bug makes sense
    detectors: Detectors
    within_s: float  # of the host, from the suite's beginning
    window_us: int = WINDOW_US
    many: int = 0  # processes and descriptors that it takes to see it
    churn_s: float = quick.CHURN_S  # of the host, of churn at most


def read(patch: Path) -> Mutant:
    """Read a mutant's header; raises UserError when it is not complete."""
    text = patch.read_text()
    header, found, _ = text.partition("\n--- ")
    fields = Deb822(header)
    missing = [name for name in _REQUIRED if not fields.get(name)]
    unknown = [name for name in fields if name not in _REQUIRED + _OPTIONAL]
    if missing or unknown or not found:
        raise UserError(
            f"{patch} is not a mutant",
            expected=f"the fields {', '.join(_REQUIRED)}, then a unified diff",
            found=", ".join([f"no {name}" for name in missing] + unknown) or "no diff",
        )
    backends = tuple(fields["Backends"].split())
    detectors = tuple(
        tuple(_line(name) for name in one.split(" or "))
        for one in _line(fields["Detectors"]).split(",")
    )
    named = {name for names in detectors for name in names}
    strange = sorted({*backends} - {*BACKENDS} | named - quick.DETECTORS)
    if strange:
        raise UserError(
            f"{patch} names what does not exist",
            expected=f"backends {', '.join(BACKENDS)}; detectors of quick.DETECTORS",
            found=", ".join(strange),
        )
    try:
        return Mutant(
            name=patch.stem,
            patch=patch,
            bug=_line(fields["Bug"]),
            why=_line(fields["Why"]),
            backends=backends,
            detectors=detectors,
            within_s=float(fields["Within"]),
            window_us=int(fields.get("Window", WINDOW_US)),
            many=int(fields.get("Many", 0)),
            churn_s=float(fields.get("Churn", quick.CHURN_S)),
        )
    except ValueError as error:
        raise UserError(f"{patch}: a number was expected: {error}") from error


def _line(text: str) -> str:
    return " ".join(text.split())


def read_all(directory: Path) -> tuple[Mutant, ...]:
    """Read every mutant of a directory, by name; raises UserError for none."""
    found = tuple(read(path) for path in sorted(directory.glob("*.patch")))
    if not found:
        raise UserError(f"there are no mutants in {directory}")
    return found


def apply(mutant: Mutant, kmod: Path, target: Path, *, fuzz: int = 0) -> None:
    """Make ``target`` a copy of the module's sources with the bug; raises BuildError."""
    module.copy_sources(kmod, target)
    completed = run(
        [
            "patch",
            "-p2",
            f"--fuzz={fuzz}",
            "--batch",
            "--forward",
            "--no-backup-if-mismatch",
            "--reject-file=-",
            "-i",
            mutant.patch.resolve(),
        ],
        cwd=target,
        timeout_s=_PATCH_TIMEOUT_S,
        check=False,
    )
    if completed.returncode != 0:
        raise BuildError(
            f"the mutant {mutant.name} does not apply to {kmod}",
            expected="every hunk in its place, with no fuzz" if not fuzz else "every hunk",
            found=(completed.stdout + completed.stderr).strip(),
            hint="'./inv mutants --refresh' where only its surroundings have changed",
        )


_OFFSET = re.compile(r"^(---|\+\+\+) ([ab])/(?:\S*/)?(\S+)$", re.MULTILINE)


def refresh(mutant: Mutant, kmod: Path) -> bool:
    """Write a mutant's patch anew for the sources as they are; says whether it changed.

    Raises BuildError when it does not apply even with fuzz: then it is for a person.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-") as scratch:
        before, after = Path(scratch, "a", "kmod"), Path(scratch, "b", "kmod")
        module.copy_sources(kmod, before)
        apply(mutant, kmod, after, fuzz=2)
        names = sorted(path.relative_to(after) for path in after.rglob("*.[ch]"))
        diff = "".join(
            run(
                ["diff", "-u", *_labels(name), f"a/kmod/{name}", f"b/kmod/{name}"],
                cwd=Path(scratch),
                timeout_s=_PATCH_TIMEOUT_S,
                check=False,
            ).stdout
            for name in names
        )
    text = mutant.patch.read_text()
    fresh = text.partition("\n--- ")[0] + "\n" + diff
    if fresh == text:
        return False
    fs.write_atomic(mutant.patch, fresh)
    return True


def _labels(name: Path) -> list[str]:
    return [word for side in "ab" for word in ("--label", f"{side}/kmod/{name}")]


# --- running them -------------------------------------------------------------------------


# --- the kill matrix ----------------------------------------------------------------------
