"""The mutants: all of them apply, say what they are, and are judged by what they promise."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError, UserError
from kbuild.lab import kill_matrix, mutants, mutation, quick
from kbuild.lab.mutants import CONTROL, Mutant
from kbuild.lab.mutation import Fate, Trial
from kbuild.lab.quick import Finding, QuickResult

PROJECT = Path(__file__).parents[2]
MUTANTS = PROJECT / "kbuild" / "lab" / "bugs"

# Those that there must be (issue 4), by name.
REQUIRED = {
    "threads-without-rcu": "iterating tasks without RCU",
    "processes-without-rcu": "the same, of the table of pids",
    "sleep-under-rcu": "sleeping inside the RCU section",
    "allocation-under-rcu": "the first historic bug",
    "files-without-protection": "the second: task->files without protection",
    "no-get-task-struct": "a missing get_task_struct",
    "no-put-task-struct": "a missing put_task_struct",
    "file-references": "references on open files, which a reader must not have",
    "path-references": "the same, on their paths",
    "put-in-the-reader": "a last put_files_struct in the reader",
    "no-put-files-struct": "a missing put_files_struct",
    "allocation-under-file-lock": "an allocation that may sleep under file_lock",
    "put-files-under-spinlock": "put_files_struct under a spinlock",
    "deadlock-on-task-lock": "a self-deadlock on task_lock, through get_task_comm",
    "parent-read-once": "a parent that is released before its pid is read",
    "parent-checked-by-its-list": "a leader that another thread's execve() has replaced",
    "namespace-by-its-number": "an id of a namespace that is used again",
    "recycled-pid": "a pid that was given to another process",
    "separators-as-they-are": "line separators in a name",
    "flags-of-the-file": "O_CLOEXEC in the flags",
    "pointer-as-cursor": "a stored pointer as cursor",
    "unchecked-error-pointer": "an unchecked error pointer",
    "fixed-path-buffer": "a fixed path buffer",
    "stale-namespace": "a stale struct pid_namespace",
    "remove-entry-last": "removing the proc entry after freeing what it uses",
    "no-escaping": "no escaping",
    "unkeyed-id": "the id from an unkeyed hash",
    "cut-off-at-4096": "a cut-off at 4,096",
    "cloexec-of-the-reader": "cloexec read from another table than the file",
}

PATCH = """\
Bug: It counts from one.
Why: People do.
Backends: stock
Detectors: oracle, KASAN or
 page fault
Within: 20

--- a/kmod/toy.c
+++ b/kmod/toy.c
@@ -1,4 +1,4 @@
 int first(void)
 {
-\treturn 0;
+\treturn 1;
 }
"""


def toy(tmp_path: Path, text: str = PATCH) -> Path:
    (tmp_path / "kmod").mkdir()
    (tmp_path / "kmod" / "toy.c").write_text("int first(void)\n{\n\treturn 0;\n}\n")
    path = tmp_path / "from-one.patch"
    path.write_text(text)
    return path


def result(*findings: tuple[str, float], complete: bool = True) -> QuickResult:
    return QuickResult(
        findings=tuple(Finding(name, "", at_s) for name, at_s in findings),
        steps=(),
        reads=1,
        records=1,
        armed=frozenset(),
        complete=complete,
        seconds=9.0,
    )


# The mutants themselves.


@pytest.mark.parametrize("mutant", mutants.read_all(MUTANTS), ids=lambda one: one.name)
def test_each_applies_without_fuzz_and_changes_the_module(mutant: Mutant, tmp_path: Path) -> None:
    mutants.apply(mutant, PROJECT / "kmod", tmp_path / "kmod")
    changed = [
        path.name
        for path in (tmp_path / "kmod").rglob("*.[ch]")
        if path.read_bytes()
        != (PROJECT / "kmod" / path.relative_to(tmp_path / "kmod")).read_bytes()
    ]
    assert changed


@pytest.mark.parametrize("mutant", mutants.read_all(MUTANTS), ids=lambda one: one.name)
def test_no_loop_declares_a_variable(mutant: Mutant) -> None:
    # Kernels before 5.18 are compiled as gnu89 (e8c07082a810), where that is an error.
    assert not re.search(r"^\+.*\bfor \((?:struct )?\w+ \*?\w+ =", mutant.patch.read_text(), re.M)


def test_every_bug_of_the_list_is_there() -> None:
    names = {mutant.name for mutant in mutants.read_all(MUTANTS)}
    assert REQUIRED.keys() <= names


def test_export_is_asked_of_what_only_export_has() -> None:
    by_name = {mutant.name: mutant for mutant in mutants.read_all(MUTANTS)}
    for name in ("no-put-files-struct", "put-files-under-spinlock"):
        assert by_name[name].backends == ("export",)


# Reading and applying.


def test_reads_a_header(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    assert mutant.name == "from-one"
    assert (mutant.bug, mutant.why) == ("It counts from one.", "People do.")
    assert mutant.backends == ("stock",)
    assert mutant.detectors == (("oracle",), ("KASAN", "page fault"))
    assert mutation.written(mutant.detectors) == "oracle, KASAN or page fault"
    assert mutant.within_s == 20.0


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("Why: People do.\n", "", "no Why"),
        ("Within: 20\n", "Within: 20\nStep: one\n", "Step"),
        ("Backends: stock", "Backends: stick", "stick"),
        ("KASAN or", "crystal ball or", "crystal ball"),
        ("Within: 20", "Within: soon", "soon"),
        ("--- a", "+++ a", "no diff"),
    ],
)
def test_an_incomplete_header_is_refused(tmp_path: Path, old: str, new: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        mutants.read(toy(tmp_path, PATCH.replace(old, new, 1)))
    assert found in str(caught.value)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        mutants.read_all(tmp_path)


def test_applies_to_a_copy(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    mutants.apply(mutant, tmp_path / "kmod", tmp_path / "copy")
    assert "return 1;" in (tmp_path / "copy" / "toy.c").read_text()
    assert "return 0;" in (tmp_path / "kmod" / "toy.c").read_text()


def test_does_not_apply_with_fuzz_but_is_refreshed_with_it(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    source = tmp_path / "kmod" / "toy.c"
    source.write_text("static int first(void)\n{\n\treturn 0;\n}\n")
    with pytest.raises(BuildError, match="does not apply"):
        mutants.apply(mutant, tmp_path / "kmod", tmp_path / "copy")
    assert mutants.refresh(mutant, tmp_path / "kmod")
    assert not mutants.refresh(mutant, tmp_path / "kmod")
    mutants.apply(mutants.read(mutant.patch), tmp_path / "kmod", tmp_path / "again")
    assert "static int first" in (tmp_path / "again" / "toy.c").read_text()
    assert mutants.read(mutant.patch).why == "People do."


def test_a_bug_that_has_gone_is_not_refreshed(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    (tmp_path / "kmod" / "toy.c").write_text("int first(void)\n{\n\treturn zero;\n}\n")
    with pytest.raises(BuildError):
        mutants.refresh(mutant, tmp_path / "kmod")


# The verdict.


@pytest.mark.parametrize(
    ("found", "complete", "fate"),
    [
        ([("KASAN", 3.0)], False, Fate.KILLED),
        ([("KASAN", 21.0)], False, Fate.LATE),
        ([("oops", 3.0), ("KASAN", 4.0)], False, Fate.KILLED),
        ([("oops", 3.0)], True, Fate.BY_ANOTHER),
        ([("hang", 90.0)], False, Fate.BY_ANOTHER),
        ([], True, Fate.SURVIVED),
        ([], False, Fate.NOT_JUDGED),
        ([("workload", 2.0)], False, Fate.NOT_JUDGED),
    ],
)
def test_fate(found: list[tuple[str, float]], complete: bool, fate: Fate) -> None:
    assert mutation.judge((("KASAN",),), 20.0, result(*found, complete=complete)) is fate


def test_each_of_several_detectors_must_report() -> None:
    both = (("oracle",), ("KASAN",))
    assert mutation.judge(both, 20.0, result(("KASAN", 1.0))) is Fate.BY_ANOTHER
    assert mutation.judge(both, 20.0, result(("KASAN", 1.0), ("oracle", 2.0))) is Fate.KILLED


def test_where_any_may_be_first_one_is_enough() -> None:
    any_of = (("KASAN", "page fault"),)
    assert mutation.judge(any_of, 20.0, result(("page fault", 1.0))) is Fate.KILLED
    late = result(("KASAN", 21.0), ("page fault", 22.0))
    assert mutation.judge(any_of, 20.0, late) is Fate.LATE
    assert mutation.judge(any_of, 20.0, result(("oops", 1.0))) is Fate.BY_ANOTHER


@pytest.mark.parametrize(
    ("found", "complete", "fate"),
    [
        ([], True, Fate.SURVIVED),
        ([], False, Fate.NOT_JUDGED),
        ([("workload", 1.0)], True, Fate.BY_ANOTHER),
        ([("KASAN", 1.0)], True, Fate.BY_ANOTHER),
    ],
)
def test_the_control_has_no_finding_at_all(
    found: list[tuple[str, float]], complete: bool, fate: Fate
) -> None:
    assert mutation.judge((), 20.0, result(*found, complete=complete)) is fate


# The matrix.


def trial(name: str, fate: Fate, found: dict[str, float], expected: mutants.Detectors) -> Trial:
    return Trial(name, "stock", "6.1.0", expected, found, fate.value, 9.0)


TRIALS = (
    trial("from-one", Fate.KILLED, {"KASAN": 3.0, "oops": 3.5}, (("KASAN", "WARN"),)),
    trial("from-one", Fate.SURVIVED, {}, (("KASAN", "WARN"),)),
    trial("from-two", Fate.SURVIVED, {}, (("oracle", "KASAN"),)),
    trial(CONTROL, Fate.SURVIVED, {}, ()),
)


def test_matrix() -> None:
    assert kill_matrix.matrix(TRIALS).splitlines() == [
        "| mutant | backend | killed | KASAN | oops | oracle |",
        "| --- | --- | --- | --- | --- | --- |",
        "| from-one | stock | 1/2 | **3.0** | 3.5 |  |",
        "| from-two | stock | 0/1 |  |  | **silent** |",
        "| unmutated | stock | passed 1/1 |  |  |  |",
    ]


def test_trials_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    assert mutation.load(path) == ()
    mutation.save(path, TRIALS)
    assert mutation.load(path) == TRIALS


def test_the_last_run_of_a_mutant_counts() -> None:
    again = (trial("from-two", Fate.KILLED, {"oracle": 1.0}, (("oracle",),)),)
    assert mutation.merge(TRIALS, again) == (*TRIALS[:2], TRIALS[3], *again)
    elsewhere = (replace(again[0], release="6.2"),)
    assert mutation.merge(TRIALS, elsewhere) == elsewhere
    assert mutation.merge(TRIALS, ()) == ()


def test_repetitions_stay_while_nothing_has_changed() -> None:
    ten = tuple(replace(TRIALS[2], number=n, inputs="a") for n in range(1, 11))
    (third,) = (replace(ten[2], seconds=1.0),)
    assert mutation.merge(ten, [third]) == (*ten[:2], *ten[3:], third)
    assert mutation.merge(ten, [replace(third, inputs="b")]) == (replace(third, inputs="b"),)


def test_what_was_tried_is_known_until_something_changes(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    kept = [replace(TRIALS[0], mutant=mutant.name, number=2, inputs="a")]
    assert mutation.seen(kept, mutant, "stock", 2, "a") == kept[0]
    for other in (("export", 2, "a"), ("stock", 1, "a"), ("stock", 2, "b")):
        assert mutation.seen(kept, mutant, *other) is None
    assert mutation.seen(kept, None, "stock", 2, "a") is None


def test_the_page_says_what_was_not_tried(tmp_path: Path) -> None:
    one = mutants.read(toy(tmp_path))
    text = kill_matrix.page(TRIALS, [one], conditions="On a Saturday.")
    assert "On a Saturday." in text
    assert "**from-one** (stock): It counts from one. *People do.*" in text
    assert "Not tried" not in text
    assert "**Not tried:** unmutated." in kill_matrix.page(TRIALS[:3], [one], conditions="")


def test_detectors_have_names_of_their_own() -> None:
    names = [*quick.OWN_DETECTORS]
    assert len(names) == len(set(names))
    assert quick.DETECTORS | {"slab counts", "kcsan"} >= quick.ASKED
