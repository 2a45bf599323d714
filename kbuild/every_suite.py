"""Every suite, one after the other, whatever becomes of each, and one table at the end."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kbuild import pipeline, testing
from kbuild.core import progress, suites, table
from kbuild.core.errors import DefectError, KbuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.fetch import source
from kbuild.kernel import quilt
from kbuild.testing import MisusedTestsError, NoTestsError

logger = logging.getLogger(__name__)

ALL = "all"  # what --suite says
COLUMNS = ("fetched", "patched", "built", "installed", "stock", "patched kernel", "variants")


@dataclass(frozen=True)
class Step:
    """What is done for one cell of the table."""

    column: str  # one of COLUMNS
    needs: tuple[str, ...]  # columns without which it makes no sense
    action: Callable[[], str]  # returns what there is to say beside "ok"; raises KbuildError


@dataclass(frozen=True)
class Cell:
    """What became of a step; without ``seconds`` it was not reached."""

    said: str  # the action's word, or what it was that failed
    seconds: float | None
    error: KbuildError | None = None

    @property
    def passed(self) -> bool:
        """Whether the step was done, and well."""
        return self.seconds is not None and self.error is None


@dataclass(frozen=True)
class Row:
    """What became of one suite."""

    suite: str
    cells: Mapping[str, Cell]  # by column; one that was not asked for is not there


def build_steps(settings: Settings, target: Target, *, modules: str) -> tuple[Step, ...]:
    """Return what ``build-kernel`` does for one suite."""
    return (
        *_source_steps(settings, target),
        Step(
            "built",
            ("patched",),
            lambda: pipeline.build_kernel(settings, target, modules=modules).method,
        ),
    )


def test_steps(
    settings: Settings,
    target: Target,
    *,
    modules: str,
    tiers: Sequence[str],
    keyword: str | None,
    accel: str | None,
    whole: bool,
    stock: bool,
) -> tuple[Step, ...]:
    """Return what ``test`` does for one suite; the unit tests belong to no suite."""

    def package() -> str:
        return pipeline.package(settings, target, modules=modules).kernel.method

    def install() -> str:
        # All of it is there: what was built is looked up, not built again.
        done = pipeline.package(settings, target, modules=modules)
        pipeline.check_module(settings, target, done)
        pipeline.check_packages(settings, target, done)
        return f"{len(pipeline.guest_image(settings, target, done).kernels)} kernels"

    def judge(tier: str, **options: str | bool) -> str:
        kernel = "stock-" if options.get("stock") else ""
        results = testing.run_tests(
            settings,
            target,
            modules=modules,
            tiers=(tier,),
            keyword=keyword,
            accel=accel,
            whole=whole,
            # What one kernel's tests came to is not written over by the next one's.
            name=f"{kernel}{target.suite}-{target.name}",
            **options,  # type: ignore[arg-type]
        )
        return f"{sum(one.tests for one in results)} tests"

    steps = [*_source_steps(settings, target)]
    if "vm" in tiers:
        steps.append(Step("stock", ("fetched",), lambda: judge("vm", stock=True)))
        if not stock:
            steps += [
                Step("built", ("patched",), package),
                Step("installed", ("built",), install),
                Step("patched kernel", ("installed",), lambda: judge("vm", kernel="ours")),
            ]
    for tier in ("mutants", "lab"):
        if tier in tiers:
            steps.append(Step("variants", ("patched",), functools.partial(judge, tier)))
    return tuple(steps)


# pytest would take it for a test where it is imported by name
test_steps.__test__ = False  # type: ignore[attr-defined]


def unit_tests(
    settings: Settings, target: Target, *, tiers: Sequence[str], keyword: str | None
) -> KbuildError | None:
    """Run the unit tests where they are among ``tiers``; a failure keeps no suite from its turn.

    Names that only another tier's tests have are no failure.  Raises MisusedTestsError for what
    every other tier would refuse too, after hours of building.
    """
    if "unit" not in tiers:
        return None
    try:
        testing.run_tests(settings, target, tiers=("unit",), keyword=keyword)
    except MisusedTestsError:
        raise
    except NoTestsError as error:
        return None if keyword and len(tiers) > 1 else error
    except KbuildError as error:
        logger.error("%s error: %s", error.kind, error)
        return error
    return None


def _source_steps(settings: Settings, target: Target) -> tuple[Step, Step]:
    def patch() -> str:
        base = source.fetch(settings, target)
        # Whether the distro's modules can be kept with it is for the build to say.
        pipeline.prepare(settings, target, base, modules="rebuild")
        return quilt.choose(settings.project / "patches", base.upstream).name

    return (
        Step("fetched", (), lambda: source.fetch(settings, target).version),
        Step("patched", ("fetched",), patch),
    )


def check(target: Target) -> None:
    """Raise UserError when a version is asked for, which only one suite can have."""
    if target.version is not None:
        raise UserError(
            f"no two suites have linux {target.version}",
            expected="--version with one suite, or --suite all without it",
            found=f"--suite {ALL} --version {target.version}",
        )


def run(target: Target, steps_of: Callable[[Target], Sequence[Step]]) -> tuple[Row, ...]:
    """Do the steps of every suite; one that fails keeps only those that need it from being done.

    Raises what :func:`check` raises.
    """
    check(target)
    return tuple(
        _row(name, steps_of(dataclasses.replace(target, suite=name))) for name in suites.SUITES
    )


def _row(suite: str, steps: Sequence[Step]) -> Row:
    cells: dict[str, Cell] = {}
    for number, step in enumerate(steps, 1):
        lacking = [column for column in step.needs if not cells[column].passed]
        if lacking:
            cells[step.column] = Cell("not reached", None)
            continue
        # Columns are called by what is true after them, which it is not yet.
        logger.info("%s: step %d of %d (%s)", suite, number, len(steps), step.column)
        began = time.monotonic()
        error: KbuildError | None = None
        try:
            said = step.action()
        except KbuildError as caught:
            logger.error("%s: %s error: %s", suite, caught.kind, caught)
            error = caught
        except Exception as caught:
            # Hours of the other suites, and the table, must not be lost to a defect of ours.
            logger.exception("%s: %s", suite, step.column)
            error = DefectError.of(caught)
        if error is not None:
            said = f"{error.kind} error"
        cells[step.column] = Cell(said, time.monotonic() - began, error)
    return Row(suite, cells)


def exit_status(rows: Sequence[Row]) -> int:
    """Return the exit status of the first failure in the table, 0 when there is none."""
    errors = [cell.error for row in rows for cell in row.cells.values() if cell.error]
    return errors[0].exit_status if errors else 0


def render(rows: Sequence[Row], *, width: int | None = None) -> str:
    """Return the table as text, and below it every failure in full."""
    shown = [(row.suite, *(_show(row.cells.get(one)) for one in COLUMNS)) for row in rows]
    heads = ("suite", *COLUMNS)
    lines = [table.text(heads, shown, unbroken=1, width=width, usual_width=140).rstrip("\n")]
    for row in rows:
        for column, cell in row.cells.items():
            if cell.error:
                lines += ["", f"{row.suite}, {column}: {cell.error}"]
    return "\n".join(lines) + "\n"


def _show(cell: Cell | None) -> str:
    if cell is None:
        return "not asked for"
    if cell.seconds is None:
        return cell.said
    word = "FAILED" if cell.error else "ok"
    return f"{word}: {cell.said}, {progress.duration(cell.seconds)}"
