"""``build-kernel`` and ``test`` with ``--suite all``: a failed suite does not stop the others."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kbuild import dry_run, testing
from kbuild.answer import Answer
from kbuild.core import progress, suites, table
from kbuild.core.errors import DefectError, KbuildError, UserError
from kbuild.core.model import Settings, Target
from kbuild.fetch import source
from kbuild.kernel import quilt
from kbuild.pipeline import images, lint, stages
from kbuild.testing import MisusedTestsError, NoTestsError

logger = logging.getLogger(__name__)

COLUMNS = (
    *("fetched", "patched", "built", "installed", "stock", "patched kernel", "gate", "variants"),
)


@dataclass(frozen=True)
class Step:
    """The work for one cell of the table."""

    column: str  # one of COLUMNS
    needs: tuple[str, ...]  # the columns that must have passed
    action: Callable[[], str]  # returns the text after "ok"; raises KbuildError


@dataclass(frozen=True)
class Cell:
    """The result of a step; without ``seconds`` it was not reached."""

    said: str  # the text of the action, or of its failure
    seconds: float | None
    error: KbuildError | None = None

    @property
    def passed(self) -> bool:
        """True if the step ran and succeeded."""
        return self.seconds is not None and self.error is None


@dataclass(frozen=True)
class Row:
    """The results of one suite."""

    suite: str
    cells: Mapping[str, Cell]  # by column; without the columns that were not asked for


def build_kernels(settings: Settings, target: Target, *, modules: str) -> Answer:
    """Build the kernel of every suite, and answer with the table."""
    check(target)
    if settings.dry:
        return _dry_answer(settings, target, modules)
    return answer(run(target, lambda one: build_steps(settings, one, modules=modules)))


def run_tests(settings: Settings, target: Target, selection: testing.Selection) -> Answer:
    """Test every suite, and answer with the table."""
    check(target, older=selection.older)
    if settings.dry:
        commands = testing.dry_answer(settings, target, dataclasses.replace(selection, stock=True))
        if selection.stock:
            return commands
        planned = _dry_answer(settings, target, selection.modules)
        return dataclasses.replace(
            planned,
            data={**commands.data, **planned.data},
            text=f"{commands.text}\n{planned.text}",
        )
    failed = unit_tests(settings, target, selection)
    found = answer(run(target, lambda one: test_steps(settings, one, selection)))
    if failed is None:
        return found
    return dataclasses.replace(
        found,
        data={**found.data, "unit": failed},
        text=f"{found.text}unit tests: {failed}\n",
        summary=f"{found.summary}; the unit tests failed",
        status=failed.exit_status,
    )


def answer(rows: Sequence[Row]) -> Answer:
    """Answer with the table and the exit status of its first failure."""
    failed = [
        f"{row.suite} ({column})"
        for row in rows
        for column, cell in row.cells.items()
        if cell.error is not None
    ]
    return Answer(
        data={"suites": rows},
        text=render(rows),
        summary=f"failed: {', '.join(failed)}" if failed else f"passed: {len(rows)} suites",
        status=exit_status(rows),
    )


def _dry_answer(settings: Settings, target: Target, modules: str) -> Answer:
    found: dict[str, Any] = {}
    text = []
    for name in suites.SUITES:
        text.append(f"{name}:")
        try:
            one = dataclasses.replace(target, suite=name)
            planned = dry_run.explain(settings, one, modules)
            found[name] = planned.data
            text.append(planned.text)
        except KbuildError as error:
            found[name] = {"error": error}
            text.append(f"{error.kind} error: {error}")
    errors = [one["error"].exit_status for one in found.values() if "error" in one]
    return Answer(data={"suites": found}, text="\n".join(text), status=errors[0] if errors else 0)


def build_steps(settings: Settings, target: Target, *, modules: str) -> tuple[Step, ...]:
    """Return the steps of ``build-kernel`` for one suite."""
    return (
        *_source_steps(settings, target),
        Step(
            "built",
            ("patched",),
            lambda: stages.build_kernel(settings, target, modules=modules).method,
        ),
    )


def test_steps(
    settings: Settings, target: Target, selection: testing.Selection
) -> tuple[Step, ...]:
    """Return the steps of ``test`` for one suite; the unit tests belong to no suite."""
    modules = selection.modules

    def package() -> str:
        return stages.package(settings, target, modules=modules).kernel.method

    def install() -> str:
        # The stages are current: this finds their results.
        done = stages.package(settings, target, modules=modules)
        lint.check_module(done)
        lint.check_packages(done)
        return f"{len(images.guest_image(done).kernels)} kernels"

    def judge(tier: str, **changes: str | bool) -> str:
        chosen = dataclasses.replace(selection, tiers=(tier,), **changes)  # type: ignore[arg-type]
        # Each kernel's tests have JUnit files of their own.
        name = f"{'stock-' if chosen.stock else ''}{target.suite}-{target.name}"
        results = testing.run_tests(settings, target, chosen, name=name)
        return f"{sum(one.tests for one in results)} tests"

    steps = [*_source_steps(settings, target)]
    if "vm" in selection.tiers:
        steps.append(Step("stock", ("fetched",), lambda: judge("vm", stock=True)))
        if not selection.stock:
            steps += [
                Step("built", ("patched",), package),
                Step("installed", ("built",), install),
                Step("patched kernel", ("installed",), lambda: judge("vm", kernel="ours")),
            ]
    if "gate" in selection.tiers:
        # A kernel that cannot be built is not tried a second time.
        built = any(one.column == "built" for one in steps)
        needs = ("built",) if built else ("patched",)
        steps.append(Step("gate", needs, lambda: judge("gate")))
    for tier in ("mutants", "lab"):
        if tier in selection.tiers:
            steps.append(Step("variants", ("patched",), functools.partial(judge, tier)))
    return tuple(steps)


# pytest would take it for a test where it is imported by name
test_steps.__test__ = False  # type: ignore[attr-defined]


def unit_tests(
    settings: Settings, target: Target, selection: testing.Selection
) -> KbuildError | None:
    """Run the unit tests if they are selected; return their failure, so that the suites still run.

    A keyword that only matches tests of another tier is no failure.  Raises MisusedTestsError
    for a keyword that every other tier would refuse too, after hours of building.
    """
    if "unit" not in selection.tiers:
        return None
    try:
        testing.run_tests(settings, target, dataclasses.replace(selection, tiers=("unit",)))
    except MisusedTestsError:
        raise
    except NoTestsError as error:
        return None if selection.keyword and len(selection.tiers) > 1 else error
    except KbuildError as error:
        logger.error("%s error: %s", error.kind, error)
        return error
    return None


def _source_steps(settings: Settings, target: Target) -> tuple[Step, Step]:
    def patch() -> str:
        base = source.fetch(settings, target)
        # The build decides whether the distro's modules can be kept.
        stages.prepare(settings, target, base, modules="rebuild")
        return quilt.choose(settings.project / "patches", base.upstream).name

    return (
        Step("fetched", (), lambda: source.fetch(settings, target).version),
        Step("patched", ("fetched",), patch),
    )


def check(target: Target, *, older: str | None = None) -> None:
    """Raise UserError for a version of the target or an older one: only one suite has it."""
    for option, version in (("--version", target.version), ("--older", older)):
        if version is not None:
            raise UserError(
                f"only one suite has linux {version}",
                expected=f"{option} with one suite, or --suite all without it",
                found=f"--suite {suites.ALL} {option} {version}",
            )


def run(target: Target, steps_of: Callable[[Target], Sequence[Step]]) -> tuple[Row, ...]:
    """Run the steps of every suite; a failed step stops only the steps that need it."""
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
        # Column names are past participles; this step only starts.
        logger.info("%s: step %d of %d (%s)", suite, number, len(steps), step.column)
        began = time.monotonic()
        error: KbuildError | None = None
        try:
            said = step.action()
        except KbuildError as caught:
            logger.error("%s: %s error: %s", suite, caught.kind, caught)
            error = caught
        except Exception as caught:
            # A defect of ours must not lose the table and hours of the other suites.
            logger.exception("%s: %s", suite, step.column)
            error = DefectError.of(caught)
        if error is not None:
            said = f"{error.kind} error"
        cells[step.column] = Cell(said, time.monotonic() - began, error)
    return Row(suite, cells)


def exit_status(rows: Sequence[Row]) -> int:
    """Return the exit status of the first failure in the table, or 0."""
    errors = [cell.error for row in rows for cell in row.cells.values() if cell.error]
    return errors[0].exit_status if errors else 0


def render(rows: Sequence[Row], *, width: int | None = None) -> str:
    """Return the table as text, followed by every failure in full."""
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
