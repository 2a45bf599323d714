"""Guests of the lab for tests: one for each test module, judged at the module's end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core.model import MODULE, Settings, Target
from kbuild.guest.guest import Guest
from kbuild.lab import kill_matrix, readying, setup
from kbuild.lab.mutation import Trial
from kbuild.lab.setup import Lab
from tests import guests
from tests import programs as test_programs

# The module's file in a guest; the fixture "guest" puts it there.
MODULE_FILE = "/tmp/cplayground.ko"

# Trials of mutants in this session, for the kill matrix.
TRIALS_KEY = pytest.StashKey[list[Trial]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lab", "tests in guests of the lab")
    group.addoption("--variant", help="of the lab's kernel; decides which detectors it has")
    group.addoption(
        "--fragment", action="append", default=[], type=Path, help="additional kernel configuration"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        # A guest has deadlines of its own, which consider its speed.
        item.add_marker(pytest.mark.timeout(7200))
    if config.getoption("variant") is None:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    trials = config.stash.get(TRIALS_KEY, [])
    if trials:
        terminalreporter.section("kill matrix")
        terminalreporter.write(kill_matrix.matrix(trials))


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Tell whether --all was given, which runs everything instead of a sample."""
    return bool(request.config.getoption("all"))


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, settings: Settings, suite: str, accel: str | None) -> Lab:
    """The lab of the kernel that the options name."""
    option = request.config.getoption
    target = Target(
        suite=suite,
        flavour="lab",
        variant=option("variant"),
        version=option("kernel_version"),
        fragments=tuple(option("fragment")),
    )
    return setup.prepare(settings, target, accel=accel)


@pytest.fixture(scope="session")
def built(lab: Lab) -> Path:
    """The module of this checkout, built as for a release."""
    out = lab.settings.build / lab.target.suite / lab.target.name / "tests"
    source = lab.settings.project / "kmod"
    return setup.build_module(lab, source, out=out, race_windows=False).path


@pytest.fixture(scope="module")
def module_guest(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Guest]:
    """A guest with the programs that the module's PROGRAMS names; its verdict must be PASSED."""
    names = request.module.PROGRAMS
    compiled = test_programs.compile_programs(lab.settings, lab.target.suite, names)
    machine = setup.open_guest(lab, workdir=setup.logs(lab, Path(str(request.node.name)).stem))
    try:
        readying.prepare(machine, compiled)
        yield machine
    finally:
        verdict = machine.shutdown()
    if not verdict.passed:
        pytest.fail(f"{verdict}\n  console: {machine.machine.console.path}")


@pytest.fixture
def guest(request: pytest.FixtureRequest, module_guest: Guest, built: Path) -> Iterator[Guest]:
    """The guest with the module's file in it, not loaded; a kernel report fails the test."""
    module_guest.put(built, MODULE_FILE)
    again = _again(request.node)
    with guests.watched(request.node, module_guest, again=again, modules=lambda: {MODULE: built}):
        yield module_guest


def _again(item: pytest.Item) -> str:
    option = item.config.getoption
    words = [item.nodeid]
    for name in ("suite", "variant", "kernel-version", "build", "cache", "revision"):
        value = option(name.replace("-", "_"))
        words += [f"--{name}", str(value)] if value is not None else []
    words += [word for path in option("fragment") for word in ("--fragment", str(path))]
    words += ["--accept-expired"] if option("accept_expired") else []
    return f".venv/bin/pytest {shlex.join(words)}"
