"""status.json and the journal: what is written is read again, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kbuild.archive.evidence import Case
from kbuild.core.errors import BuildError, KbuildError, TrustError, UserError
from kbuild.watch import state
from kbuild.watch.state import (
    Against,
    Answer,
    Attempt,
    Cause,
    Failure,
    Journal,
    Listed,
    Next,
    Ours,
    Outcome,
    Status,
    Step,
    Told,
)

FAILURE = Failure("guest", "crashed", 21, "a", "b\nc", "/log", "look")
WHEN = "2026-11-30T12:00:00+00:00"
CASE = Case("boot", "failed", 1.5, ("no answer",))
ATTEMPT = Attempt(
    *(Step.RELEASE, "bookworm-lab", "digest", WHEN, WHEN, Outcome.REFUSED, 21, FAILURE),
    *("6.1.9-1", "id", "commit", 3.5, (CASE, CASE), 4, WHEN, WHEN),
    refused=("other",),
)
CAUSE = Cause("a", "b", WHEN, "d", FAILURE, WHEN, ("command",), {"webhook": "no"}, ("webhook",))
OURS = Ours("id", "6.1.9-1", "6.1.0-9", "when", 10)
YES, NO = Answer(Told.YES, "why"), Answer(Told.NO)
AGAINST = Against(
    *("bookworm", "lab", "kasan", "now", "6.1.10-1", "6.1.0-10", "uploaded", OURS, OURS),
    *(("6.1.10-1",), "since", 1.0, ("CVE-2026-1111",), YES, NO, YES, FAILURE),
)
LISTED = Listed(
    *("id", "bookworm", "lab", "kasan", "6.1.0-9", "6.1.9-1+cplayground1", "6.1.9-1"),
    *("promoted", 10, "since", "reason", "when", True, (CASE,)),
)
STATUS = Status(
    *("began", "ended", "commit", "0.2.0", "/archive", "http://a.example/", {"bookworm": "then"}),
    *((AGAINST,), (ATTEMPT,), (CAUSE,), (LISTED,), ("staged",), FAILURE, "key ends"),
    mok_expires="mok ends",
    promotions=(Next("id", 10, "then"),),
)


@pytest.mark.parametrize(
    "one",
    [FAILURE, ATTEMPT, CAUSE, OURS, AGAINST, LISTED, STATUS],
    ids=lambda one: type(one).__name__,
)
def test_the_examples_say_something_in_each_field(one: Any) -> None:  # noqa: ANN401
    for field in dataclasses.fields(one):
        assert getattr(one, field.name) not in (field.default, "", None, ()), field.name


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    journal = Journal((ATTEMPT,), (CAUSE,))
    state.write_journal(tmp_path, journal)
    assert state.read_journal(tmp_path) == journal
    state.write_status(tmp_path, STATUS)
    assert state.read_status(tmp_path) == STATUS
    bare = Status("began", "", "", "", "/archive", targets=(Against("a", "b", "c", "d"),))
    state.write_status(tmp_path, bare)
    assert state.read_status(tmp_path) == bare


def test_there_is_nothing_before_the_first_round(tmp_path: Path) -> None:
    assert state.read_status(tmp_path) is None
    assert state.read_journal(tmp_path) == Journal()


def rewritten(root: Path, **values: object) -> None:
    state.write_journal(root, Journal((Attempt(state.Step.CHECK, "a", "", WHEN),)))
    path = root / state.HOME / state.JOURNAL
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    rewritten(tmp_path, format=state.FORMAT + 1)
    with pytest.raises(UserError, match="newer version"):
        state.read_journal(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"attempts": 1},
        {"attempts": [{}]},
        {"attempts": [{"step": "fly", "subject": "a", "inputs": "", "began": ""}]},
        {"attempts": [{"step": "check", "subject": 1, "inputs": "", "began": ""}]},
        {"attempts": [{"step": "check", "subject": "a", "inputs": "", "began": "soon"}]},
        {"clock": "2026-11-30T12:00:00"},
        {"format": None},
    ],
)
def test_damage_is_told(values: dict[str, object], tmp_path: Path) -> None:
    rewritten(tmp_path, **values)
    with pytest.raises(TrustError, match="damaged"):
        state.read_journal(tmp_path)


def test_half_a_file_is_damage(tmp_path: Path) -> None:
    rewritten(tmp_path)
    path = tmp_path / state.HOME / state.JOURNAL
    path.write_text(path.read_text()[:20])
    with pytest.raises(TrustError):
        state.read_journal(tmp_path)


def test_fields_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    rewritten(tmp_path, more=1)
    assert len(state.read_journal(tmp_path).attempts) == 1


@pytest.mark.parametrize("end", ["", "\nmore", "|more", '"more', "\\more"])
def test_a_token_is_hidden_and_the_file_stays_whole(end: str, tmp_path: Path) -> None:
    text = f"ccache: http://cache.example|bearer-token=secret{end}"
    cause = dataclasses.replace(CAUSE, what=text)
    for _ in range(2):
        state.write_journal(tmp_path, Journal(causes=(cause,)))
        (cause,) = state.read_journal(tmp_path).causes
    assert cause.what == f"ccache: http://cache.example|bearer-token=***{end}"


def test_an_error_has_its_fields_and_no_password() -> None:
    error: KbuildError = BuildError(
        "no: https://u:secret@h.example/", found="f", log=Path("/log"), hint="try"
    )
    found = Failure.of(error)
    assert found == Failure("build", "no: https://***@h.example/", 3, None, "f", "/log", "try")
