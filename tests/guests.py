"""Fixtures' common part for tests in guests: marks on the console, checks, what a failure shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kbuild.guest import triage
from kbuild.guest.console import mark_line
from kbuild.guest.guest import Guest, GuestCommandError, GuestLost, GuestResult
from kbuild.guest.session import interactive
from kbuild.guest.verdict import Verdict

# A mark's line has to fit in the agent's buffer.
_NAME_MOST = 300


@dataclass(frozen=True)
class Watched:
    """The guest of a running test."""

    guest: Guest
    name: str  # of the test, in the marks
    again: str  # the command that runs the test again
    modules: Callable[[], Mapping[str, Path]]  # name -> .ko, for source lines in reports


_WATCHED = pytest.StashKey[Watched]()
_FAILED = pytest.StashKey[bool]()


def between_marks(text: str, name: str) -> str:
    """Return the lines between the last begin mark of ``name`` and its end mark.

    Without an end mark, because the guest died, the slice goes to the end of the text.  Without
    a begin mark it is empty.
    """
    begin, end = mark_line("begin", name), mark_line("end", name)
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(begin)]
    if not starts:
        return ""
    rest = lines[starts[-1] + 1 :]
    stop = next((i for i, line in enumerate(rest) if line.endswith(end)), len(rest))
    return "\n".join(rest[:stop])


@contextmanager
def watched(
    item: pytest.Item,
    guest: Guest,
    *,
    again: str,
    modules: Callable[[], Mapping[str, Path]],
) -> Iterator[None]:
    """Mark a test's begin and end on the guest's console, and fail for a report between them.

    A guest that died fails the test with its verdict.  ``again`` and ``modules`` are for
    :func:`pytest_runtest_makereport`.
    """
    name = re.sub(r"\s+", " ", item.nodeid)[-_NAME_MOST:]
    item.stash[_WATCHED] = Watched(guest, name, again, modules)
    guest.mark(mark_line("begin", name))
    yield
    if not guest.alive:
        pytest.fail(f"the guest did not survive this test: {guest.shutdown()}")
    guest.mark(mark_line("end", name))
    reports = triage.scan(between_marks(guest.console(), name))
    if reports:
        # pytest_runtest_makereport shows them.
        pytest.fail(f"the kernel complained during this test: {triage.fingerprint(reports[0])}")


def failed(item: pytest.Item) -> bool:
    """Return whether a phase of the test has failed so far."""
    return item.stash.get(_FAILED, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the kernel's reports and the guest's console to the report of a test that failed."""
    report = yield
    if not report.failed:
        return report
    item.stash[_FAILED] = True
    watched = item.stash.get(_WATCHED, None)
    if watched is not None:
        part = between_marks(watched.guest.console(), watched.name)
        if found := triage.scan(part):
            shown = triage.render(found, modules=watched.modules(), again=watched.again)
            report.sections.insert(0, ("the kernel's reports", shown))
        report.sections.append(("guest console during this test", part or "(nothing)"))
        report.sections.append(("whole console", str(watched.guest.machine.console.path)))
        report.sections.append(("reproduce", watched.again))
        if item.config.getoption("keep_vm") and watched.guest.alive:
            _open_shell(item.config, watched.guest)
    return report


def _open_shell(config: pytest.Config, guest: Guest) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\nthis is the guest of the failed test; the tests go on when you leave the shell")
        interactive(guest)


def judge_command(
    start: Callable[[], Guest], argv: Sequence[str], *, timeout_s: float
) -> tuple[GuestResult | None, Verdict]:
    """Run one command in a new guest and judge both; the result is None if none came.

    ``start`` boots or restores the guest.
    """
    try:
        guest = start()
        try:
            result: GuestResult | None = guest.run(argv, timeout_s=timeout_s)
        except GuestCommandError as error:
            result = error.result
        return result, guest.shutdown(status=None if result is None else result.status)
    except GuestLost as lost:
        return None, lost.verdict
