"""Read the gate's verdict, and say why it is no evidence for a release."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kbuild.archive.required import NEED_KEY, NEED_OLDER, NO_KEY, NOTHING_OLDER, REQUIRED
from kbuild.core.errors import EvidenceError

FORMAT = 1
GATE = "gate.json"
PASSED = "passed"
MISSING = "no such file"


@dataclass(frozen=True)
class Case:
    """One case of the gate, with its own verdict."""

    name: str
    outcome: str
    seconds: float
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """The gate's verdict on one release: gate.json."""

    id: str  # of the release
    passed: bool
    packages: Mapping[str, str]  # file name -> SHA-256
    cases: tuple[Case, ...]
    older: tuple[str, ...]  # IDs of the promoted releases that the cases started from
    commit: str
    when: str


def read(path: Path) -> Gate:
    """Read gate.json; raises EvidenceError if it is missing, damaged, or of another format."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        if not isinstance(raw["passed"], bool):
            raise TypeError("passed is neither true nor false")
        return Gate(
            id=str(raw["id"]),
            passed=raw["passed"],
            packages={str(name): str(digest) for name, digest in raw["packages"].items()},
            cases=tuple(
                Case(
                    name=str(one["name"]),
                    outcome=str(one["outcome"]),
                    seconds=float(one["seconds"]),
                    reasons=tuple(map(str, one["reasons"])),
                )
                for one in raw["cases"]
            ),
            older=tuple(map(str, raw["older"])),
            commit=str(raw["commit"]),
            when=str(raw["when"]),
        )
    except FileNotFoundError:
        found = MISSING
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found = str(error) or type(error).__name__
    raise lacking(str(path), found)


def lacking(where: str, found: str) -> EvidenceError:
    """Return the error for a verdict that is missing, or that cannot be read."""
    return EvidenceError(
        f"there is no verdict of the gate: {where}",
        expected=f"{GATE}, format {FORMAT}",
        found=found,
        hint="'./inv release' judges new packages, './inv gate ID' a release of the archive",
    )


def complaints(
    gate: Gate,
    id: str,
    packages: Mapping[str, str],
    *,
    older: Collection[str],
    signed: bool = False,
    required: Collection[str] = REQUIRED,
) -> tuple[str, ...]:
    """Return why a verdict is no evidence for a release; nothing if it is.

    ``packages`` has, by file name, the SHA-256 of each package as it is now.  ``older`` has the
    IDs of the older releases that servers may have; the gate must have started from each.  A
    release that is ``signed`` for Secure Boot must have been judged under it.  ``required`` has the
    names of the cases that must be there.
    """
    return tuple(_complaints(gate, id, packages, older=older, signed=signed, required=required))


def _complaints(
    gate: Gate,
    id: str,
    packages: Mapping[str, str],
    *,
    older: Collection[str],
    signed: bool,
    required: Collection[str],
) -> Iterator[str]:
    if gate.id != id:
        yield f"the verdict is for {gate.id}"
    if not gate.passed:
        yield "the gate did not pass"
    names = [one.name for one in gate.cases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the case {name} is there twice"
    if not names:
        yield "no case was run"
    for name in required:
        if name not in names:
            yield f"the case {name} was not run"
    for one in gate.cases:
        excused = one.outcome == NOTHING_OLDER and one.name in NEED_OLDER
        if excused and older:
            yield f"the case {one.name} did not start from the older release that there is now"
            continue
        excused = excused or (one.outcome == NO_KEY and one.name in NEED_KEY and not signed)
        if one.outcome != PASSED and not excused:
            yield f"the case {one.name}: {one.outcome}: {'; '.join(one.reasons)}"
    for other in older:
        if other not in gate.older:
            yield f"no case started from {other}, which servers may have"
    if not packages:
        yield "the release has no packages"
    for name, digest in sorted(packages.items()):
        judged = gate.packages.get(name)
        if digest == MISSING:
            yield f"{name} is missing"
        elif judged is None:
            yield f"{name} was not judged"
        elif judged != digest:
            yield f"{name} was judged with sha256 {judged}, and has {digest}"
    for name in sorted(gate.packages.keys() - packages.keys()):
        yield f"{name} was judged, and is not in the release"
