"""Read and apply mutants: patches that each put one bug into our module.

Mutants measure the quick suite.  The header of a mutant describes the bug, says why a programmer
might write it, and names the detectors that must report it.  A mutant is killed if all of them
report in its time; of detectors that are joined by "or", one is enough.  A mutant that is not
killed shows a hole in the suite, or is no bug.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from debian.deb822 import Deb822

from kbuild.core import fs
from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import BACKENDS
from kbuild.core.run import run
from kbuild.kernel import module
from kbuild.lab import findings, quick

# The unchanged module.  It must pass wherever a mutant is killed.
CONTROL = "unmutated"

# In the repository.
PATCHES = Path("kbuild/lab/bugs")
# File of a trial, next to its console.log.
REPORT = "report.txt"

_REQUIRED = ("Bug", "Why", "Backends", "Detectors", "Within")
_OPTIONAL = ("Window", "Many", "Churn")
_PATCH_TIMEOUT_S = 60.0
WINDOW_US = 300


# Sets of names from findings.DETECTORS; one detector of each set must report.
Detectors = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Mutant:
    """One bug, and the detectors that must report it."""

    name: str
    patch: Path
    bug: str
    why: str
    backends: tuple[str, ...]  # on which the bug has an effect
    detectors: Detectors
    within_s: float  # on the host, from the beginning of the suite
    window_us: int = WINDOW_US
    many: int = 0  # processes and descriptors that are needed to show the bug
    churn_s: float = quick.CHURN_S  # on the host, at most

    @property
    def deciding(self) -> tuple[object, ...]:
        """The fields of the header that decide how a trial ends."""
        return self.detectors, self.within_s, self.window_us, self.many, self.churn_s


def read(patch: Path) -> Mutant:
    """Read a mutant; raises UserError for a header that is not complete or not understood."""
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
    strange = sorted({*backends} - {*BACKENDS} | named - findings.DETECTORS)
    if strange:
        raise UserError(
            f"{patch} names a backend or detector that does not exist",
            expected=f"backends {', '.join(BACKENDS)}; detectors of findings.DETECTORS",
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
        raise UserError(f"{patch}: expected a number: {error}") from error


def _line(text: str) -> str:
    return " ".join(text.split())


def read_all(directory: Path) -> tuple[Mutant, ...]:
    """Read all mutants of a directory, sorted by name; raises UserError if there are none."""
    found = tuple(read(path) for path in sorted(directory.glob("*.patch")))
    if not found:
        raise UserError(f"there are no mutants in {directory}")
    return found


def written(detectors: Detectors) -> str:
    """Return detectors as a mutant's header writes them."""
    return ", ".join(" or ".join(names) for names in detectors)


def apply(mutant: Mutant, kmod: Path, target: Path, *, fuzz: int = 0) -> None:
    """Copy the module's sources to ``target`` and add the bug; raises BuildError."""
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
            expected="every hunk applies without fuzz" if not fuzz else "every hunk applies",
            found=(completed.stdout + completed.stderr).strip(),
            hint="run './inv lab.mutants --refresh' if only the context of the hunks has changed",
        )


def refresh(mutant: Mutant, kmod: Path) -> bool:
    """Update a mutant's patch to the current sources, and tell whether it changed.

    Raises BuildError if the patch does not apply even with fuzz; a person must then rewrite it.
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
