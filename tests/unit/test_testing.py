"""The ``test`` command: which tiers run, on which kernel, and how their results are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kbuild import testing
from kbuild.core.errors import UserError
from kbuild.core.model import Settings, Target
from kbuild.lab import kill_matrix, lab, mutants, mutation
from kbuild.lab.mutants import CONTROL
from kbuild.lab.mutation import Fate, Trial
from kbuild.testing import FailedTestsError, Selection, TierResult, _judge, read_junit

TARGET = Target(suite="bookworm", flavour="cloud-amd64")
MUTANT = """\
Bug: One.
Why: Two.
Backends: stock
Detectors: oracle
Within: 9

--- a/kmod/a.c
+++ b/kmod/a.c
@@ -1 +1 @@
-a
+b
"""


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    (tmp_path / mutants.PATCHES).mkdir(parents=True)
    (tmp_path / mutants.PATCHES / "one.patch").write_text(MUTANT)
    return Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")


@pytest.fixture
def commands(
    project: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[list[str]]:
    """What pytest would have been told; its run leaves a trial of the control and the mutant."""
    told: list[list[str]] = []
    failed = int(getattr(request, "param", 0))

    def run_tier(settings: Settings, tier: str, options: Sequence[str], **rest: object) -> object:
        told.append([tier, *options])
        suite = options[options.index("--suite") + 1]
        result = mutation.kept(settings.build, Target(suite, "lab", "debug"))
        after = [
            Trial(CONTROL, "stock", "6.1", (), {}, Fate.SURVIVED.value, 1.0),
            Trial("one", "stock", "6.1", (("oracle",),), {"oracle": 2}, Fate.KILLED.value, 1.0),
        ]
        mutation.save(result, mutation.merge(mutation.load(result), after))
        return TierResult(tier, failed, 2, failed, 1.0, Path("lab.xml"))

    monkeypatch.setattr(testing, "_run_tier", run_tier)
    monkeypatch.setattr(lab, "prepare", lambda *args, **options: None)
    return told


def test_the_lab_is_the_debug_variant_unless_another_is_asked_for() -> None:
    assert testing.lab_target(TARGET) == Target("bookworm", "lab", "debug")
    kasan = Target("bookworm", "amd64", "kasan")
    assert testing.lab_target(kasan) == Target("bookworm", "lab", "kasan")


def test_the_mutants_are_the_labs_sample(project: Settings) -> None:
    (_, _, _, what, *_) = testing.pytest_command(project, "mutants", [])
    assert what == "tests/lab/test_mutants.py"
    (_, _, _, what, *_) = testing.pytest_command(project, "vm", [])
    assert what == "tests/vm"


def test_a_run_may_have_a_file_of_its_own(project: Settings) -> None:
    command = testing.pytest_command(project, "vm", [], name="trixie-lab")
    assert f"--junitxml={project.build}/test/trixie-lab-vm.xml" in command
    command = testing.pytest_command(project, "vm", [])
    assert f"--junitxml={project.build}/test/vm.xml" in command


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(UserError, match="no such tier"):
        testing.select(tier="laboratory")


@pytest.mark.parametrize("options", [{"tier": "mutants"}, {"whole": True}])
def test_the_debug_kernels_tiers_need_a_kernel_of_ours(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--stock compiles no kernel"):
        testing.select(stock=True, **options)


def test_the_usual_tiers() -> None:
    assert "mutants" in testing.select().tiers
    # Tiers that build a kernel of their own are not part of a choice.
    assert testing.select(keyword="one").tiers == ("unit", "vm")
    assert testing.select(stock=True).tiers == ("unit", "vm")
    assert testing.select(whole=True, keyword="one").tiers == ("unit", "vm", "lab")
    assert testing.select(tier="lab", whole=True).tiers == ("lab",)


@pytest.mark.parametrize(("keyword", "asked"), [("((", 1), (None, 2)])
def test_a_keyword_that_pytest_refuses_is_not_tried_with_the_next_tier(
    project: Settings, monkeypatch: pytest.MonkeyPatch, keyword: str | None, asked: int
) -> None:
    ran: list[str] = []

    def run_tier(settings: Settings, tier: str, options: Sequence[str], **rest: object) -> object:
        ran.append(tier)
        return TierResult(tier, 4, 0, 0, 1.0, Path("unit.xml"))

    monkeypatch.setattr(testing, "_run_tier", run_tier)
    with pytest.raises(FailedTestsError, match="the unit tests ended with status 4"):
        testing.run_tests(project, TARGET, Selection(tiers=("unit", "unit"), keyword=keyword))
    assert len(ran) == asked


TESTS = """\
def test_one():
    assert True


def test_two():
    assert False
"""


@pytest.mark.parametrize(
    ("keyword", "error"),
    [
        ("one", None),
        ("two", "1 of 1 unit tests failed"),
        (None, "1 of 2 unit tests failed"),
        ("three", "no test was run"),
        ("one and", "the unit tests ended with status 4"),
    ],
)
def test_pytest_runs_and_its_result_is_judged(
    project: Settings, keyword: str | None, error: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    tests = project.project / "tests/unit"
    tests.mkdir(parents=True)
    (tests / "test_it.py").write_text(TESTS)
    selection = testing.select(tier="unit", keyword=keyword)
    if error is None:
        (found,) = testing.run_tests(project, TARGET, selection, name="mine")
        assert (found.tests, found.failed) == (1, 0)
        assert found.junit == project.build / "test/mine-unit.xml"
        return
    with pytest.raises(FailedTestsError, match=error):
        testing.run_tests(project, TARGET, selection)


def result(status: int, tests: int, failed: int) -> TierResult:
    return TierResult("unit", status, tests, failed, 1.0, Path("unit.xml"))


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(1, 9, 2), result(0, 3, 0)], "2 of 9 unit tests failed"),
        ([result(0, 9, 0), result(3, 0, 0)], "ended with status 3"),
        ([result(5, 0, 0), result(5, 0, 0)], "no test was run"),
        ([result(0, 0, 0)], "no test was run"),
        ([], "no test was run"),
    ],
)
def test_a_bad_tier_is_a_failure(results: list[TierResult], words: str) -> None:
    with pytest.raises(FailedTestsError, match=words):
        _judge(results)


def test_a_tier_without_a_matching_test_is_no_failure() -> None:
    _judge([result(0, 9, 0), result(5, 0, 0)])


def test_the_counts_come_from_the_junit_file(tmp_path: Path) -> None:
    path = tmp_path / "unit.xml"
    path.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2"/></testsuites>',
    )
    assert read_junit(path) == (9, 3)
    path.write_text("<testsuites><tests")
    assert read_junit(path) == (0, 0)
    assert read_junit(tmp_path / "none") == (0, 0)


def test_all_mutants_are_tried_and_their_page_is_written(
    project: Settings, commands: list[list[str]]
) -> None:
    text = testing.run_mutants(project, TARGET, whole=True)
    (command,) = commands
    assert command[0] == "mutants"
    assert command[1:5] == ["--variant", "debug", "--suite", "bookworm"]
    assert "--all" in command
    assert "| one | stock | 1/1 |" in text
    page = (project.project / kill_matrix.PAGE).read_text()
    assert text in page
    assert "the variant debug" in page


def test_some_of_them_take_the_place_of_their_last_runs(
    project: Settings, commands: list[list[str]]
) -> None:
    result = mutation.kept(project.build, kill_matrix.PAGE_OF)
    mutation.save(result, [Trial("old", "stock", "6.1", (), {}, Fate.SURVIVED.value, 1.0)])
    testing.run_mutants(project, TARGET, keyword="one")
    assert commands[0][-2:] == ["-k", "(one) or test_kill_matrix"]
    assert "--all" not in commands[0]
    assert [trial.mutant for trial in mutation.load(result)] == ["old", CONTROL, "one"]


def test_the_tests_are_told_of_all_that_decides_which_kernel_it_is(
    project: Settings, commands: list[list[str]], tmp_path: Path
) -> None:
    elsewhere = dataclasses.replace(
        project, build=tmp_path / "elsewhere", revision=3, accept_expired=True
    )
    target = Target("bookworm", "lab", "kasan", "6.1.190-1", (tmp_path / "a", tmp_path / "b"))
    testing.run_mutants(elsewhere, target)
    said = " ".join(commands[0])
    assert "--variant kasan --suite bookworm " in said
    assert f"--build {tmp_path}/elsewhere --cache {tmp_path}/cache --revision 3 " in said
    assert "--kernel-version 6.1.190-1 --accept-expired " in said
    assert said.endswith(f"--fragment {tmp_path}/a --fragment {tmp_path}/b")


def test_a_target_says_how_it_is_asked_for_again(tmp_path: Path) -> None:
    target = Target("trixie", "lab", "kasan", "6.12.117-1", (tmp_path / "my own", Path("/b")))
    every = ("suite", "flavour", "variant", "version", "fragment")
    assert target.options(*every) == (
        "--suite trixie --flavour lab --variant kasan --version 6.12.117-1"
        f" --fragment '{tmp_path}/my own' --fragment /b"
    )
    assert TARGET.options("suite", "version") == "--suite bookworm"


def test_another_suites_trials_are_kept_apart_from_the_page(
    project: Settings, commands: list[list[str]]
) -> None:
    testing.run_mutants(project, TARGET)
    page = (project.project / kill_matrix.PAGE).read_text()
    of_bookworm = mutation.kept(project.build, kill_matrix.PAGE_OF)
    before = of_bookworm.read_bytes()
    text = testing.run_mutants(project, Target("trixie", "cloud-amd64"))
    assert "| one | stock | 1/1 |" in text
    assert mutation.kept(project.build, Target("trixie", "lab", "debug")).exists()
    assert of_bookworm.read_bytes() == before
    assert (project.project / kill_matrix.PAGE).read_text() == page


def test_the_page_is_not_written_by_a_run_of_some(
    project: Settings, commands: list[list[str]]
) -> None:
    other = (project.project / mutants.PATCHES / "one.patch").read_text()
    (project.project / mutants.PATCHES / "two.patch").write_text(other)
    assert "| one | stock | 1/1 |" in testing.run_mutants(project, TARGET, keyword="one")
    assert not (project.project / kill_matrix.PAGE).exists()


@pytest.mark.parametrize("commands", [1], indirect=True)
def test_a_failure_is_one_and_the_page_shows_it(
    project: Settings, commands: list[list[str]]
) -> None:
    with pytest.raises(FailedTestsError, match="1 of 2 mutants tests failed"):
        testing.run_mutants(project, TARGET)
    assert (project.project / kill_matrix.PAGE).exists()
