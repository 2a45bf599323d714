"""All suites in one run: a failure stops only what needs it, and the table has everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kbuild import every_suite, testing
from kbuild.core import suites
from kbuild.core.errors import BuildError, InfrastructureError, KbuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.every_suite import Step
from kbuild.fetch import source
from kbuild.kernel import quilt
from kbuild.pipeline import images, lint, stages
from kbuild.testing import FailedTestsError, MisusedTestsError, NoTestsError, Selection

TARGET = Target("all", "lab")


def fail(error: BaseException) -> str:
    raise error


def test_a_failed_step_stops_only_the_steps_that_need_it() -> None:
    done: list[str] = []

    def steps(target: Target) -> Sequence[Step]:
        def ok(column: str) -> str:
            done.append(f"{target.suite} {column}")
            return "6.1"

        broken = target.suite == "bullseye"
        fault = BuildError("it does not build", found="foo.c:1: error")
        return (
            Step("fetched", (), lambda: ok("fetched")),
            Step("built", ("fetched",), lambda: fail(fault) if broken else ok("built")),
            Step("stock", ("fetched",), lambda: ok("stock")),
            Step("installed", ("built",), lambda: ok("installed")),
            Step("patched kernel", ("installed",), lambda: ok("patched kernel")),
        )

    rows = every_suite.run(TARGET, steps)
    assert [row.suite for row in rows] == list(suites.SUITES)
    assert "bullseye stock" in done
    assert "bullseye installed" not in done
    assert {f"{name} patched kernel" for name in suites.SUITES if name != "bullseye"} <= {*done}
    assert every_suite.exit_status(rows) == BuildError.exit_status
    text = every_suite.render(rows, width=200)
    head, first, second, *_ = text.splitlines()
    assert all(column in head for column in ("suite", *every_suite.COLUMNS))
    assert first.startswith("bullseye")
    assert "FAILED: build error, 0.0 s" in first
    assert first.count("not reached") == 2
    assert "FAILED" not in second
    assert second.count("ok: 6.1, 0.0 s") == 5
    assert "bullseye, built: it does not build" in text
    assert "foo.c:1: error" in text


def test_the_exit_status_is_that_of_the_first_failure() -> None:
    errors = {"bookworm": InfrastructureError("no mirror"), "trixie": BuildError("broken")}

    def steps(target: Target) -> Sequence[Step]:
        error = errors.get(target.suite)
        return (Step("fetched", (), lambda: fail(error) if error else ""),)

    assert every_suite.exit_status(every_suite.run(TARGET, steps)) == 69
    assert every_suite.exit_status(every_suite.run(TARGET, lambda _: ())) == 0


def test_a_defect_of_ours_stops_one_suite_and_is_named_as_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def steps(target: Target) -> Sequence[Step]:
        broken = target.suite == "bookworm"
        return (
            Step("fetched", (), lambda: str(1 // 0) if broken else "6.1"),
            Step("patched", ("fetched",), lambda: "5.11"),
        )

    rows = every_suite.run(TARGET, steps)
    assert [row.suite for row in rows if row.cells["patched"].passed] == [
        name for name in suites.SUITES if name != "bookworm"
    ]
    assert every_suite.exit_status(rows) == 70
    text = every_suite.render(rows, width=200)
    assert "FAILED: internal error" in text
    assert "bookworm, fetched: ZeroDivisionError" in text
    assert "Traceback" in caplog.text


def test_each_step_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 82.0] * len(suites.SUITES))
    monkeypatch.setattr(every_suite.time, "monotonic", lambda: next(clock))  # type: ignore[attr-defined]
    broken = BuildError("it does not build")
    rows = every_suite.run(
        TARGET,
        lambda _: (
            Step("fetched", (), lambda: "6.1"),
            Step("built", ("fetched",), lambda: fail(broken)),
        ),
    )
    assert [cell.seconds for cell in rows[0].cells.values()] == [5.0, 72.0]
    assert "FAILED: build error, 1 min 12 s" in every_suite.render(rows, width=200)


def test_installed_means_that_module_and_packages_were_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def note(room: object, name: str, result: object = None) -> None:
        def function(*_: object, **__: object) -> object:
            called.append(name)
            return result

        monkeypatch.setattr(room, name, function)

    note(stages, "package")
    note(lint, "check_module")
    note(lint, "check_packages")
    note(images, "guest_image", SimpleNamespace(kernels=("ours", "stock")))
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    (install,) = (
        step.action
        for step in every_suite.test_steps(
            settings,
            Target("trixie", "lab"),
            testing.select(tier="vm"),
        )
        if step.column == "installed"
    )
    assert install() == "2 kernels"
    assert called == ["package", "check_module", "check_packages", "guest_image"]


def test_an_interruption_ends_all() -> None:
    begun: list[str] = []

    def steps(target: Target) -> Sequence[Step]:
        begun.append(target.suite)
        return (Step("fetched", (), lambda: fail(KeyboardInterrupt())),)

    with pytest.raises(KeyboardInterrupt):
        every_suite.run(TARGET, steps)
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("tiers", "keyword", "error", "kept"),
    [
        (("vm",), None, BuildError("not run at all"), False),
        (("unit", "vm"), None, None, False),
        (("unit", "vm"), None, FailedTestsError("2 of 9"), True),
        # The keyword may match tests in the VM.
        (("unit", "vm"), "procfile", NoTestsError("no test was run"), False),
        (("unit",), "procfile", NoTestsError("no test was run"), True),
        (("unit", "vm"), None, NoTestsError("no test was run"), True),
    ],
)
def test_failed_unit_tests_stop_no_suite(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiers: tuple[str, ...],
    keyword: str | None,
    error: KbuildError | None,
    kept: bool,
) -> None:
    def run_tests(settings: Settings, target: Target, selection: Selection) -> None:
        assert selection.tiers == ("unit",)
        if error:
            raise error

    monkeypatch.setattr(testing, "run_tests", run_tests)
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    found = every_suite.unit_tests(settings, TARGET, Selection(tiers=tiers, keyword=keyword))
    assert found is (error if kept else None)


def test_a_bad_expression_ends_all_suites_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misused = testing.TierResult("unit", 4, 0, 0, 1.0, tmp_path)
    monkeypatch.setattr(testing, "_run_tier", lambda *_, **__: misused)
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    with pytest.raises(MisusedTestsError, match="ended with status 4"):
        every_suite.unit_tests(settings, TARGET, testing.select(keyword="a and"))


@pytest.mark.parametrize("dry", [False, True])
def test_all_suites_have_no_version_in_common(tmp_path: Path, dry: bool) -> None:
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path, dry=dry)
    target = Target("all", "lab", version="6.1.192-2")
    with pytest.raises(UserError, match=r"only one suite has linux 6\.1\.192-2"):
        every_suite.build_kernels(settings, target, modules="auto")
    with pytest.raises(UserError, match=r"only one suite has linux 6\.1\.192-2"):
        every_suite.run_tests(settings, target, testing.select())
    with pytest.raises(UserError, match=r"only one suite has linux 6\.1\.192-1"):
        every_suite.run_tests(settings, Target("all", "lab"), testing.select(older="6.1.192-1"))


@pytest.mark.parametrize(
    ("tiers", "stock", "columns"),
    [
        (("unit", "vm"), False, ["stock", "built", "installed", "patched kernel"]),
        (("vm",), True, ["stock"]),
        (("lab",), False, ["variants"]),
        (("gate",), False, ["gate"]),
        (
            ("unit", "vm", "gate", "lab"),
            False,
            ["stock", "built", "installed", "patched kernel", "gate", "variants"],
        ),
    ],
)
def test_the_steps_are_those_asked_for(
    tmp_path: Path, tiers: tuple[str, ...], stock: bool, columns: list[str]
) -> None:
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    steps = every_suite.test_steps(
        settings,
        Target("trixie", "lab"),
        Selection(tiers=tiers, stock=stock),
    )
    assert [step.column for step in steps] == ["fetched", "patched", *columns]
    before: set[str] = set()
    for step in steps:
        assert step.column in every_suite.COLUMNS
        assert set(step.needs) <= before, "a step needs one that comes later"
        before.add(step.column)


def test_each_kernel_is_judged_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Selection]] = []

    def run_tests(
        settings: Settings, target: Target, selection: Selection, *, name: str
    ) -> tuple[object, ...]:
        asked.append((name, selection))
        return (testing.TierResult("vm", 0, 7, 0, 1.0, tmp_path),)

    monkeypatch.setattr(testing, "run_tests", run_tests)
    chosen = Selection(tiers=("vm", "lab"), keyword="one", accel="tcg", whole=True)
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    steps = {
        step.column: step
        for step in every_suite.test_steps(settings, Target("trixie", "lab"), chosen)
    }
    for name in ("stock", "patched kernel", "variants"):
        assert steps[name].action() == "7 tests"
    assert asked == [
        ("stock-trixie-lab", replace(chosen, tiers=("vm",), stock=True)),
        ("trixie-lab", replace(chosen, tiers=("vm",), kernel="ours")),
        ("trixie-lab", replace(chosen, tiers=("lab",))),
    ]


def test_the_steps_of_a_build_are_fetching_patching_and_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        version, upstream, method, name = "5.10.262-1", "5.10.262", "fast", "5.10"

    wishes: list[object] = []
    monkeypatch.setattr(source, "fetch", lambda *args: Found)
    monkeypatch.setattr(stages, "prepare", lambda *args, **options: wishes.append(options))
    monkeypatch.setattr(quilt, "choose", lambda *args: Found)
    monkeypatch.setattr(stages, "build_kernel", lambda *args, **options: Found)
    settings = Settings(project=tmp_path, build=tmp_path, cache=tmp_path)
    rows = every_suite.run(
        TARGET, lambda one: every_suite.build_steps(settings, one, modules="auto")
    )
    assert [cell.said for cell in rows[0].cells.values()] == ["5.10.262-1", "5.10", "fast"]
    assert "not asked for" in every_suite.render(rows)
    assert wishes == [{"modules": "rebuild"}] * len(suites.SUITES)
