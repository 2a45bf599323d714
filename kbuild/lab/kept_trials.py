"""Keep the trials of mutants as JSON, from one run to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kbuild.core import fs
from kbuild.core.model import Target
from kbuild.lab.mutation import Case, Trial


def path(build: Path, target: Target) -> Path:
    """Return the file for the trials on a target's kernel."""
    return build / "test" / f"kill-matrix-{target.suite}-{target.name}.json"


def save(file: Path, trials: Sequence[Trial]) -> None:
    """Write trials as JSON."""
    fs.write_json(file, [asdict(one) for one in trials])


def load(file: Path) -> tuple[Trial, ...]:
    """Read what :func:`save` wrote; a missing or damaged file has no trials."""
    return fs.read_json(file, _trials) or ()


def _trials(raw: list[dict[str, Any]]) -> tuple[Trial, ...]:
    return tuple(
        Trial(**{**one, "expected": tuple(tuple(names) for names in one["expected"])})
        for one in raw
    )


def add(file: Path, trials: Sequence[Trial]) -> None:
    """Merge trials into a file, under a lock."""
    with fs.lock(file.with_name(f".{file.name}.lock")):
        save(file, merge(load(file), trials))


def merge(before: Iterable[Trial], after: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the last trials of each mutant; those of ``after`` replace earlier ones.

    Earlier repetitions stay if their inputs are the same.  Trials on another kernel than the
    newest one's are dropped.
    """
    anew = {(one.mutant, one.backend): one.inputs for one in after}
    numbers = {(one.mutant, one.backend, one.number) for one in after}

    def stays(one: Trial) -> bool:
        if one.release != after[-1].release:
            return False
        if (one.mutant, one.backend) not in anew:
            return True
        same = one.inputs == anew[one.mutant, one.backend] != ""
        return same and (one.mutant, one.backend, one.number) not in numbers

    return (*(one for one in before if after and stays(one)), *after)


def seen(before: Iterable[Trial], case: Case, digest: str) -> Trial | None:
    """Return an earlier trial of a case with the same inputs, or None."""
    wanted = case.subject, case.backend, case.number, digest
    for one in before:
        if (one.mutant, one.backend, one.number, one.inputs) == wanted:
            return one
    return None
