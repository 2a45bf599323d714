"""Errors: exit statuses, and how they are printed."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kbuild.core import errors
from kbuild.core.errors import KbuildError
from kbuild.guest.outcome import Outcome

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, KbuildError)
]


def test_statuses_tell_whose_failure_it_is() -> None:
    assert {cls.__name__: cls.exit_status for cls in CLASSES} == {
        "KbuildError": 1,
        "UserError": 2,
        "BuildError": 3,
        "GuardError": 3,
        "EvidenceError": 40,
        "IrreproducibleError": 41,
        "SigningError": 42,
        "PoolError": 43,
        "TrustError": 65,
        "ExpiredError": 65,
        "InfrastructureError": 69,
        "FullDiskError": 69,
        "ClockError": 69,
        "DefectError": 70,
        "LostDependencyError": 69,
        "KilledError": 69,
    }


def test_every_class_has_its_own_name() -> None:
    kinds = [cls.kind for cls in CLASSES]
    assert len(set(kinds)) == len(kinds)


def test_no_outcome_of_a_guest_has_the_status_of_an_error() -> None:
    outcomes = [outcome.exit_status for outcome in Outcome]
    assert len(set(outcomes)) == len(outcomes)
    assert not set(outcomes) & {cls.exit_status for cls in CLASSES}
    assert [o for o in Outcome if o.exit_status == 0] == [Outcome.PASSED]


def test_full_form() -> None:
    error = errors.TrustError(
        "the index is damaged",
        expected="sha256 1234",
        found="sha256 5678\nand more",
        log=Path("build/logs/fetch.log"),
        hint="try another mirror",
    )
    assert str(error).splitlines() == [
        "the index is damaged",
        "  expected: sha256 1234",
        "  found:    sha256 5678",
        "            and more",
        "  log:      build/logs/fetch.log",
        "  do:       try another mirror",
    ]


@pytest.mark.parametrize("text", ["", "\n", "one\n"])
def test_odd_values_do_not_break_the_printing(text: str) -> None:
    printed = str(KbuildError("it failed", found=text))
    assert printed.startswith("it failed\n  found:")


def test_unknown_parts_are_not_printed() -> None:
    assert str(KbuildError("it failed")) == "it failed"


def test_only_errors_of_the_machine_lose_their_traceback() -> None:
    full = errors.of_the_machine(OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    assert full is not None
    assert str(full).startswith("/x/y: No space left on device")
    assert full.exit_status == 69
    assert errors.of_the_machine(FileNotFoundError(errno.ENOENT, "No such file", "/x")) is None
    assert errors.DefectError.of(OSError(errno.ENOSPC, "No space left on device")).exit_status == 69
    assert errors.DefectError.of(FileNotFoundError(errno.ENOENT, "No such file")).exit_status == 70
