"""Guests for the tests: one per test module and kernel, judged when the module ends."""

from __future__ import annotations

import re
import shlex
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kbuild.core import run, variants
from kbuild.core.model import MODULE, Kernel, Settings
from kbuild.guest import image, programs, qemu, triage
from kbuild.guest.console import between_marks
from kbuild.guest.guest import Guest
from kbuild.guest.image import GuestImage
from kbuild.guest.outcome import MODULE_TAINT, taint_letters
from kbuild.guest.programs import PLACE
from kbuild.guest.shell import interactive
from kbuild.guest.spec import Accelerator, GuestSpec, suited
from tests import programs as test_programs
from tests.vm.module import PROGRAMS

# KUnit marks a kernel that has run tests (N).
TAINT = MODULE_TAINT | 1 << 18

_GUEST_KEY = pytest.StashKey[Guest]()
_NAME_KEY = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm", "tests that boot a guest")
    group.addoption("--image", type=Path, help="image.json that kbuild.guest.image wrote")
    group.addoption("--prebuilt", type=Path, help="package with the module built for our kernel")
    group.addoption(
        "--target", default="", help="options of './inv test' that lead to this image again"
    )
    group.addoption(
        "--kernel", choices=("ours", "stock", "all"), default="all", help="of those in the image"
    )
    group.addoption(
        "--topologies", type=int, default=150, help="how many random ones each kernel is tried with"
    )
    group.addoption(
        "--topology-seed", type=int, help="seed of the random topologies; a new one each time"
    )
    group.addoption(
        "--keep-vm", action="store_true", help="open a shell in the guest when a test has failed"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker("vm")
        # A guest has deadlines of its own, which know how slow it is.
        item.add_marker(pytest.mark.timeout(1800))
    if config.getoption("image") is None:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


def _image(config: pytest.Config) -> GuestImage:
    path: Path = config.getoption("image")
    return image.read(path.resolve())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" not in metafunc.fixturenames or metafunc.config.getoption("image") is None:
        return
    wanted = metafunc.config.getoption("kernel")
    kernels = [
        kernel
        for kernel in _image(metafunc.config).kernels
        if wanted in ("all", "ours" if image.is_ours(kernel) else "stock")
    ]
    if not kernels:
        raise pytest.UsageError(f"the image holds no {wanted} kernel")
    if metafunc.definition.get_closest_marker("ours"):
        kernels = [kernel for kernel in kernels if image.is_ours(kernel)]
    cases = [pytest.param(kernel, id=kernel.release) for kernel in kernels]
    if not cases:
        skip = pytest.mark.skip(reason="of our kernels alone, and there is none")
        cases = [pytest.param(None, id="none", marks=skip)]
    metafunc.parametrize("kernel", cases, scope="session")


@pytest.fixture(scope="session")
def guest_image(request: pytest.FixtureRequest) -> GuestImage:
    """The image given with --image."""
    return _image(request.config)


@pytest.fixture(scope="session")
def logs(settings: Settings) -> Path:
    """Where each test module has a directory for the consoles of its guests."""
    return settings.build / "logs" / "vm"


@pytest.fixture(scope="session")
def accelerator(settings: Settings, guest_image: GuestImage, accel: str | None) -> Accelerator:
    """What guests run on here: --accel, or what was seen to work."""
    return qemu.choose_accelerator(settings.cache, guest_image.kernels[0], accel).accelerator


@dataclass
class Slot:
    """The place of a module's guest: booted when first needed, again after one has died."""

    spec: GuestSpec
    workdir: Path
    guest: Guest | None = None
    boots: int = 0
    verdicts: list[str] = field(default_factory=list)

    def get(self) -> Guest:
        """Return a living guest."""
        if self.guest is None or not self.guest.alive:
            self.close()
            self.boots += 1
            self.guest = Guest.boot(
                self.spec,
                workdir=self.workdir / str(self.boots),
                expected_taint=TAINT,
            )
        return self.guest

    def close(self) -> None:
        """Power the guest off, and keep the verdict if it is a bad one."""
        if self.guest is not None:
            verdict = self.guest.shutdown()
            if not verdict.passed:
                self.verdicts.append(f"{verdict}\n  console: {self.guest.machine.console.path}")
            self.guest = None


@pytest.fixture(scope="module")
def guest_slot(
    request: pytest.FixtureRequest,
    kernel: Kernel,
    accelerator: Accelerator,
    guest_image: GuestImage,
    logs: Path,
) -> Iterator[Slot]:
    """The module's guest for this kernel; its whole verdict has to be PASSED."""
    module = Path(str(request.node.name)).stem
    workdir = logs / module / kernel.release
    spec = GuestSpec(
        kernel=kernel,
        disk=guest_image.disk,
        accelerator=accelerator,
        # Since Linux 6.0 KUnit runs nothing without it.
        append=("kunit.enable=1",),
    )
    if image.is_ours(kernel):
        spec = suited(spec, variants.named_in(kernel.flavour))
    slot = Slot(spec, workdir)
    yield slot
    slot.close()
    if slot.verdicts:
        pytest.fail("a guest of this module did not pass:\n" + "\n".join(slot.verdicts))


@pytest.fixture
def guest(request: pytest.FixtureRequest, guest_slot: Slot) -> Iterator[Guest]:
    """A booted guest, shared by the module's tests, replaced if the last one left it dead."""
    machine = guest_slot.get()
    name = re.sub(r"\s+", " ", request.node.nodeid)[-300:]
    request.node.stash[_GUEST_KEY] = machine
    request.node.stash[_NAME_KEY] = name
    machine.mark_begin(name)
    yield machine
    if not machine.alive:
        pytest.fail(f"the guest did not survive this test: {machine.shutdown()}")
    machine.mark_end(name)
    reports = triage.scan(between_marks(machine.console(), name))
    if reports:
        # the report hook shows them
        pytest.fail(f"the kernel complained during this test: {triage.fingerprint(reports[0])}")


@pytest.fixture(scope="session")
def compiled(settings: Settings, suite: str) -> dict[str, Path]:
    """The guest's programs, compiled here once."""
    return test_programs.compile_programs(settings, suite, PROGRAMS)


@pytest.fixture
def armed(guest: Guest, compiled: dict[str, Path]) -> Guest:
    """The guest with our programs in it."""
    if guest.run(["test", "-e", PLACE], timeout_s=5).status:
        programs.install(guest, compiled)
    return guest


@pytest.fixture
def loaded(guest: Guest) -> Iterator[Guest]:
    """The guest with the installed module loaded; it has to unload again, and taint no more."""
    before = guest.taint()
    guest.run(["modprobe", MODULE], timeout_s=20, check=True)
    yield guest
    if not guest.alive:
        return  # the guest's own fixture says so
    guest.run(["rmmod", MODULE], timeout_s=20, check=True)
    extra = guest.taint() & ~before & ~TAINT
    if extra:
        pytest.fail(f"the module tainted the kernel: {taint_letters(extra)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    machine = item.stash.get(_GUEST_KEY, None)
    if report.failed and machine is not None:
        text = machine.console()
        part = between_marks(text, item.stash[_NAME_KEY])
        name = getattr(item, "originalname", item.name)
        target = item.config.getoption("target")
        again = f"./inv test --tier vm -k {shlex.quote(name)} {target}".rstrip()
        if found := triage.scan(part):
            shown = triage.render(found, modules=_modules(item.config, machine), again=again)
            report.sections.insert(0, ("the kernel's reports", shown))
        report.sections.append(("guest console during this test", part or "(nothing)"))
        report.sections.append(("whole console", str(machine.machine.console.path)))
        report.sections.append(("reproduce", again))
        if item.config.getoption("keep_vm") and machine.alive:
            _shell(item.config, machine)
    return report


def _modules(config: pytest.Config, machine: Guest) -> dict[str, Path]:
    """Return the module of our kernel from its package, for its line numbers."""
    package: Path | None = config.getoption("prebuilt")
    if package is None or not image.is_ours(machine.spec.kernel):
        return {}
    place = machine.machine.console.path.parent / "prebuilt"
    run.run(["dpkg-deb", "--extract", package, place], timeout_s=60)
    return {MODULE: next(place.rglob(f"{MODULE}.ko"))}


def _shell(config: pytest.Config, machine: Guest) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\nthe guest of the failed test; leave the shell to go on")
        interactive(machine)
