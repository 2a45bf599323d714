"""The ``test`` command: which tiers run, on which kernel, and how their results are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kbuild import testing
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Settings, Target
from kbuild.fetch import roots, source
from kbuild.gate import candidate, server
from kbuild.lab import setup
from kbuild.pipeline import stages
from kbuild.testing import FailedTestsError, Selection, TierResult, judge, read_junit

TARGET = Target(suite="bookworm", flavour="cloud-amd64")


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path, build=tmp_path / "build", cache=tmp_path / "cache")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The options that pytest would have been given."""
    told: list[list[str]] = []

    def run_tier(settings: Settings, tier: str, options: Sequence[str], **rest: object) -> object:
        told.append([tier, *options])
        return TierResult(tier, 0, 2, 0, 1.0, Path("lab.xml"))

    monkeypatch.setattr(testing, "_run_tier", run_tier)
    monkeypatch.setattr(setup, "prepare", lambda *args, **options: None)
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


@pytest.mark.parametrize("options", [{"tier": "mutants"}, {"tier": "gate"}, {"whole": True}])
def test_some_tiers_need_a_kernel_of_ours(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--stock compiles no kernel"):
        testing.select(stock=True, **options)


def test_the_usual_tiers() -> None:
    assert testing.select().tiers == ("unit", "vm", "gate", "mutants")
    # Tiers that build a kernel of their own are not part of a choice.
    assert testing.select(keyword="one").tiers == ("unit", "vm")
    assert testing.select(stock=True).tiers == ("unit", "vm")
    assert testing.select(whole=True, keyword="one").tiers == ("unit", "vm", "gate", "lab")
    assert testing.select(tier="lab", whole=True).tiers == ("lab",)


@pytest.fixture
def packaged(project: Settings, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The Debian version and the revision of each release that would have been packaged."""
    made: list[tuple[str, int]] = []

    def resolve(settings: Settings, target: Target) -> object:
        return SimpleNamespace(version=target.version or "6.1.192-3")

    def package(settings: Settings, target: Target, **rest: object) -> object:
        base = resolve(settings, target)
        made.append((base.version, settings.revision))  # type: ignore[attr-defined]
        kernel = SimpleNamespace(release=f"6.1.0-57-{settings.revision}")
        return SimpleNamespace(
            settings=settings, target=target, base=base, kernel=kernel, packages=()
        )

    monkeypatch.setattr(source, "resolve", resolve)
    monkeypatch.setattr(stages, "package", package)
    monkeypatch.setattr(
        server,
        "stock",
        lambda settings, base: SimpleNamespace(path=settings.build / f"server of {base.version}"),
    )
    monkeypatch.setattr(
        roots, "make_root", lambda settings, suite, kind, packages: SimpleNamespace(path=kind)
    )
    return made


@pytest.mark.parametrize(
    ("older", "promoted", "judged", "last"),
    [
        (None, "6.1.192-3+cplayground1", "6.1.192-3+cplayground2", ("6.1.192-3", 1)),
        ("6.1.192-2", "6.1.192-2+cplayground1", "6.1.192-3+cplayground1", ("6.1.192-3", 1)),
    ],
)
def test_the_gate_has_a_pair_of_releases_and_leaves_the_targets_own_in_place(
    project: Settings,
    commands: list[list[str]],
    packaged: list[tuple[str, int]],
    older: str | None,
    promoted: str,
    judged: str,
    last: tuple[str, int],
) -> None:
    testing.run_tests(project, TARGET, Selection(tiers=("gate",), accel="tcg", older=older))
    assert packaged[-1] == last
    ((tier, *options),) = commands
    said = dict(zip(options[::2], options[1::2], strict=True))
    assert (tier, said["--accel"]) == ("gate", "tcg")
    assert said["--server"].endswith("server of 6.1.192-3")
    assert said["--disks"] == "server-disks"
    assert candidate.read(Path(said["--candidate"])).id == f"bookworm-cloud-amd64-{judged}"
    assert candidate.read(Path(said["--promoted"])).version == promoted


@pytest.mark.parametrize("stock", [False, True])
def test_an_archive_without_the_oldest_python_is_told_before_a_compile(
    project: Settings,
    packaged: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    stock: bool,
) -> None:
    def gone(settings: Settings, suite: str, *rest: object) -> object:
        raise InfrastructureError(f"no mirror has {suite}")

    monkeypatch.setattr(roots, "make_root", gone)
    with pytest.raises(InfrastructureError, match="no mirror has bullseye"):
        testing.run_tests(project, TARGET, Selection(tiers=("vm",), stock=stock))
    assert packaged == []


@pytest.mark.parametrize("older", ["6.1.192-3", "6.1.200-1"])
def test_nothing_is_packaged_for_an_older_version_that_is_not_older(
    project: Settings, packaged: list[tuple[str, int]], older: str
) -> None:
    with pytest.raises(UserError, match="is not older than the kernel that is judged"):
        testing.run_tests(project, TARGET, Selection(tiers=("gate",), older=older))
    assert packaged == []


@pytest.mark.parametrize("options", [{"tier": "vm"}, {"keyword": "one"}])
def test_an_older_version_without_the_gate_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--older is for the servers of the gate"):
        testing.select(older="6.1.192-2", **options)
    assert testing.select(older="6.1.192-2").older == "6.1.192-2"


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
    error = judge(results)
    assert isinstance(error, FailedTestsError)
    assert words in str(error)


def test_a_tier_without_a_matching_test_is_no_failure() -> None:
    assert judge([result(0, 9, 0), result(5, 0, 0)]) is None


def test_the_counts_come_from_the_junit_file(tmp_path: Path) -> None:
    path = tmp_path / "unit.xml"
    path.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="2"/></testsuites>',
    )
    assert read_junit(path) == (9, 3)
    path.write_text("<testsuites><tests")
    assert read_junit(path) == (0, 0)
    assert read_junit(tmp_path / "none") == (0, 0)


def test_the_tests_are_told_of_all_that_decides_which_kernel_it_is(
    project: Settings, commands: list[list[str]], tmp_path: Path
) -> None:
    elsewhere = dataclasses.replace(
        project, build=tmp_path / "elsewhere", revision=3, accept_expired=True
    )
    target = Target("bookworm", "lab", "kasan", "6.1.190-1", (tmp_path / "a", tmp_path / "b"))
    testing.run_tests(elsewhere, target, Selection(tiers=("mutants",)))
    (command,) = commands
    said = " ".join(command)
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
