"""The mutants: they apply, have complete headers, and are judged by them."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from kbuild.core.errors import BuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.lab import (
    campaign,
    findings,
    kept_trials,
    kill_matrix,
    mutants,
    mutation,
    oracle,
    quick,
    setup,
    watching,
)
from kbuild.lab.campaign import MutantsFailedError
from kbuild.lab.findings import Finding, QuickResult
from kbuild.lab.mutants import CONTROL, Mutant
from kbuild.lab.mutation import Case, Fate, Trial
from kbuild.lab.setup import Lab

PROJECT = Path(__file__).parents[2]
MUTANTS = PROJECT / "kbuild" / "lab" / "bugs"

# The mutants that must exist (issue 4), by name.
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
    assert mutants.written(mutant.detectors) == "oracle, KASAN or page fault"
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
    assert kept_trials.load(path) == ()
    kept_trials.save(path, TRIALS)
    assert kept_trials.load(path) == TRIALS


def test_the_last_run_of_a_mutant_counts() -> None:
    again = (trial("from-two", Fate.KILLED, {"oracle": 1.0}, (("oracle",),)),)
    assert kept_trials.merge(TRIALS, again) == (*TRIALS[:2], TRIALS[3], *again)
    elsewhere = (replace(again[0], release="6.2"),)
    assert kept_trials.merge(TRIALS, elsewhere) == elsewhere
    assert kept_trials.merge(TRIALS, ()) == ()


def test_repetitions_stay_while_nothing_has_changed() -> None:
    ten = tuple(replace(TRIALS[2], number=n, inputs="a") for n in range(1, 11))
    (third,) = (replace(ten[2], seconds=1.0),)
    assert kept_trials.merge(ten, [third]) == (*ten[:2], *ten[3:], third)
    assert kept_trials.merge(ten, [replace(third, inputs="b")]) == (replace(third, inputs="b"),)


def test_an_earlier_trial_counts_until_something_changes(tmp_path: Path) -> None:
    mutant = mutants.read(toy(tmp_path))
    kept = [replace(TRIALS[0], mutant=mutant.name, number=2, inputs="a")]
    assert kept_trials.seen(kept, Case(mutant, "stock", 2), "a") == kept[0]
    for backend, number, inputs in (("export", 2, "a"), ("stock", 1, "a"), ("stock", 2, "b")):
        assert kept_trials.seen(kept, Case(mutant, backend, number), inputs) is None
    assert kept_trials.seen(kept, Case(None, "stock", 2), "a") is None


# Trials that need not be made again.


def decided(lab: SimpleNamespace, tmp_path: Path, mutant: Mutant) -> str:
    built = tmp_path / "kmod" / "toy.c"
    return mutation.inputs(cast(Lab, lab), Case(mutant, "stock"), built, suite=mutation.suite())


def test_only_what_decides_a_trial_is_hashed(tmp_path: Path) -> None:
    lab = SimpleNamespace(snapshot=None, spec="a guest")
    mutant = mutants.read(toy(tmp_path))
    before = decided(lab, tmp_path, mutant)
    assert decided(lab, tmp_path, replace(mutant, bug="It is off by one.")) == before
    assert decided(lab, tmp_path, replace(mutant, within_s=21.0)) != before
    assert decided(SimpleNamespace(snapshot=None, spec="another"), tmp_path, mutant) != before
    (tmp_path / "kmod" / "toy.c").write_text("int first(void)\n{\n\treturn 2;\n}\n")
    assert decided(lab, tmp_path, mutant) != before


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        (quick, '"""The quick suite: ', '"""The suite: ', True),
        (quick, "# For a quick look.", "# For a look.", True),
        (quick, "CHURN_S = 1.5", "CHURN_S = 1.6", False),
        (watching, "self._stop_if_satisfied()", "pass", False),
        (oracle, "SHOWN_SIGNALS = ", "SHOWN_SIGNALS = 1 + ", False),
        (mutation, "<= within_s", "< within_s", False),
        (kill_matrix, "# The kill matrix", "# The matrix", True),
        (campaign, "REPETITIONS = 10", "REPETITIONS = 11", True),
        (kept_trials, '"expected"', '"wanted"', True),
    ],
)
def test_an_edit_of_a_text_keeps_the_trials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    old: str,
    new: str,
    same: bool,
) -> None:
    lab = SimpleNamespace(snapshot=None, spec="a guest")
    mutant = mutants.read(toy(tmp_path))
    before = decided(lab, tmp_path, mutant)
    assert module.__file__ is not None
    text = Path(module.__file__).read_text()
    assert old in text
    edited = tmp_path / Path(module.__file__).name
    edited.write_text(text.replace(old, new, 1))
    monkeypatch.setattr(module, "__file__", str(edited))
    assert (decided(lab, tmp_path, mutant) == before) is same


# Choosing and running.


def test_each_mutant_is_tried_once_and_the_control_on_each_backend() -> None:
    every = mutants.read_all(MUTANTS)
    cases = campaign.cases(every)
    assert [case.name for case in cases[:2]] == ["unmutated-stock-1", "unmutated-export-1"]
    assert all(case.kmemleak for case in cases[:2])
    assert sorted(case.subject for case in cases[2:]) == [one.name for one in every]
    assert all(case.mutant and case.backend == case.mutant.backends[0] for case in cases[2:])
    whole = campaign.cases(every, whole=True)
    runs = sum(len(one.backends) for one in every) + 2
    assert len({case.name for case in whole}) == len(whole) == 10 * runs
    assert [case.number for case in whole[:runs]] == [1] * runs


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("no-kfree", ["no-kfree-stock-1"]),
        ("No-Kfree or unmutated", ["unmutated-stock-1", "unmutated-export-1", "no-kfree-stock-1"]),
        ("unmutated and not (stock or no)", ["unmutated-export-1"]),
    ],
)
def test_an_expression_chooses_cases(expression: str, found: list[str]) -> None:
    cases = campaign.cases(mutants.read_all(MUTANTS))
    assert [case.name for case in campaign.select(cases, expression)] == found


@pytest.mark.parametrize("expression", ["((", "no-kfree or", "1 < 2", "f(x)", "", "none-of-these"])
def test_an_expression_that_chooses_nothing_is_refused(expression: str) -> None:
    with pytest.raises(UserError, match="-k"):
        campaign.select(campaign.cases(mutants.read_all(MUTANTS)), expression)


class FakeGuest:
    """A guest that can only be ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.machine = SimpleNamespace(stop=self.ended.set)

    def abandon(self) -> None:
        self.ended.set()

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()


@dataclass
class World:
    """A checkout with one mutant, and the trials that its guests will have."""

    settings: Settings
    fates: dict[str, Fate | Exception]
    tried: list[str]
    guests: list[FakeGuest]
    compiled: list[str]
    hangs: bool = False

    def prepare(self, settings: Settings, target: Target, **_: object) -> Lab:
        spec = SimpleNamespace(cpus=1, checkers=frozenset())
        root = SimpleNamespace(digest="a root")
        lab = SimpleNamespace(
            settings=settings, target=target, spec=spec, snapshot=None, packages="ours", root=root
        )
        return cast(Lab, lab)

    def build(self, lab: Lab, source: Path, *, out: Path) -> SimpleNamespace:
        self.compiled.append(source.parent.name)
        out.mkdir(exist_ok=True)
        path = out / "cplayground.ko"
        path.write_bytes((source / "toy.c").read_bytes())
        return SimpleNamespace(path=path, seconds=1.0)

    def open(self, lab: Lab, *, workdir: Path) -> FakeGuest:
        self.guests.append(FakeGuest())
        return self.guests[-1]

    def run_trial(
        self, lab: Lab, case: Case, built: Path, guest: FakeGuest, *, workdir: Path, inputs: str
    ) -> tuple[Trial, QuickResult]:
        self.tried.append(case.name)
        if self.hangs:
            assert guest.ended.wait(10)
        fate = self.fates.get(case.subject, Fate.SURVIVED if case.mutant is None else Fate.KILLED)
        if isinstance(fate, Exception):
            raise fate
        expected = case.mutant.detectors if case.mutant else ()
        made = Trial(
            case.subject, case.backend, "6.1", expected, {}, fate.value, 1.0, case.number, inputs
        )
        return made, result(complete=case.mutant is None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    patch = toy(tmp_path)
    (tmp_path / mutants.PATCHES).mkdir(parents=True)
    patch.rename(tmp_path / mutants.PATCHES / patch.name)
    settings = Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")
    made = World(settings, {}, [], [], [])
    monkeypatch.setattr(setup, "prepare", made.prepare)
    monkeypatch.setattr(setup, "build_module", made.build)
    monkeypatch.setattr(setup, "open_guest", made.open)
    monkeypatch.setattr(mutation, "run_trial", made.run_trial)
    return made


def try_mutants(
    world: World, keyword: str = "", *, target: Target = kill_matrix.PAGE_OF, whole: bool = False
) -> str:
    said: list[str] = []
    try:
        campaign.run(world.settings, target, keyword=keyword, whole=whole, say=said.append)
    finally:
        assert all(guest.ended.is_set() for guest in world.guests)
    return "\n".join(said)


def test_mutants_are_tried_and_the_matrix_is_printed(world: World) -> None:
    said = try_mutants(world)
    assert sorted(world.tried) == ["from-one-stock-1", "unmutated-export-1", "unmutated-stock-1"]
    assert "3/3 from-one (stock): killed" in said
    assert "| from-one | stock | 1/1 |" in said
    assert "| unmutated | stock | passed 1/1 |" in said
    assert not (world.settings.project / kill_matrix.PAGE).exists()


def test_a_part_of_them_replaces_their_last_trials(world: World) -> None:
    try_mutants(world)
    world.tried.clear()
    world.fates["from-one"] = Fate.SURVIVED
    with pytest.raises(MutantsFailedError, match="1 of 1 trials failed: from-one-stock-1"):
        try_mutants(world, "from")
    assert world.tried == ["from-one-stock-1"]
    kept = kept_trials.load(kept_trials.path(world.settings.build, kill_matrix.PAGE_OF))
    assert [one.passed for one in kept] == [True, True, False]


def test_a_module_is_compiled_again_only_if_its_sources_have_changed(world: World) -> None:
    try_mutants(world)
    try_mutants(world)
    assert sorted(world.compiled) == ["from-one", "unmutated"]
    patch = world.settings.project / mutants.PATCHES / "from-one.patch"
    patch.write_text(patch.read_text().replace("+\treturn 1;", "+\treturn 2;"))
    try_mutants(world)
    assert sorted(world.compiled) == ["from-one", "from-one", "unmutated"]
    assert len(world.tried) == 9


def test_a_trial_that_cannot_be_made_does_not_keep_the_others(world: World) -> None:
    world.fates[CONTROL] = BuildError("it does not compile")
    with pytest.raises(MutantsFailedError, match="2 of 3 trials failed"):
        try_mutants(world)
    assert len(world.tried) == 3


def test_a_whole_run_goes_on_where_an_earlier_one_ended(world: World) -> None:
    try_mutants(world, whole=True)
    assert len(world.tried) == 30
    world.tried.clear()
    said = try_mutants(world, whole=True)
    assert world.tried == []
    assert "| from-one | stock | 10/10 |" in said


def test_an_interrupted_run_ends_its_guests_and_keeps_no_half_trial(world: World) -> None:
    world.hangs = True
    lab = world.prepare(world.settings, kill_matrix.PAGE_OF)
    every = campaign.cases(mutants.read_all(world.settings.project / mutants.PATCHES))
    with pytest.raises(KeyboardInterrupt), campaign.begin(lab, every):
        while not world.tried:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert all(guest.ended.is_set() for guest in world.guests)
    assert kept_trials.load(kept_trials.path(world.settings.build, kill_matrix.PAGE_OF)) == ()


def test_a_control_without_its_detectors_is_not_judged() -> None:
    spec = SimpleNamespace(checkers=frozenset({"lockdep", "kmemleak"}))
    lab = cast(Lab, SimpleNamespace(spec=spec, target=Target("bookworm", "lab", "debug")))
    armed = replace(result(), armed=frozenset({"lockdep", "slab counts"}))
    assert mutation.unarmed(lab, Case(None, "stock"), armed) == frozenset()
    assert mutation.unarmed(lab, Case(None, "stock", kmemleak=True), armed) == {"kmemleak"}
    assert mutation.unarmed(lab, Case(None, "stock"), result()) == {"lockdep", "slab counts"}


# The page.


def test_the_page_is_written_on_request(world: World) -> None:
    try_mutants(world)
    path = kill_matrix.write_page(world.settings, kill_matrix.PAGE_OF)
    assert path == world.settings.project / kill_matrix.PAGE
    text = path.read_text()
    assert "| from-one | stock | 1/1 |" in text
    assert "**from-one** (stock): It counts from one. *People do.*" in text
    assert "on 6.1, the variant debug" in text


def test_the_page_needs_a_trial_of_every_mutant_on_its_kernel(world: World) -> None:
    try_mutants(world, "from")
    with pytest.raises(UserError, match="needs a trial of every mutant") as caught:
        kill_matrix.write_page(world.settings, kill_matrix.PAGE_OF)
    assert "no trial of unmutated" in str(caught.value)
    with pytest.raises(UserError, match="not about this kernel"):
        kill_matrix.write_page(world.settings, Target("trixie", "lab", "debug"))


def test_detectors_have_names_of_their_own() -> None:
    names = [*findings.OWN_DETECTORS]
    assert len(names) == len(set(names))
