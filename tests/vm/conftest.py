"""Guests for the tests: one for each kernel, restored from a snapshot and judged at the end.

Each test is checked by itself: its part of the console, the taint, and the state that it leaves.
A test that fails or leaves something behind gives the next one a new guest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from kbuild.core import fs, run, variants
from kbuild.core.model import MODULE, Kernel, Settings
from kbuild.guest import image, programs, qemu, snapshot
from kbuild.guest.guest import Guest
from kbuild.guest.image import GuestImage
from kbuild.guest.snapshot import Provision
from kbuild.guest.spec import Accelerator, GuestSpec, Snapshot, suited
from kbuild.measure import procfile as bench
from tests import guests
from tests import programs as test_programs
from tests.vm.module import PROGRAMS
from tests.vm.slots import TAINT, Slot

# On the disk of each restored guest, for the tests of snapshots.
BEFORE_SAVE = ("/root/before", b"written before the save")

Save = Callable[[Kernel], Snapshot]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm", "tests that boot a guest")
    group.addoption("--image", type=Path, help="image.json that kbuild.guest.image wrote")
    group.addoption("--prebuilt", type=Path, help="package with the module built for our kernel")
    group.addoption(
        "--target", default="", help="options of './inv test' that lead to this image again"
    )
    group.addoption(
        "--kernel", choices=("ours", "stock", "all"), default="all", help="kernels in the image"
    )
    group.addoption(
        "--topologies", type=int, default=150, help="number of random ones for each kernel"
    )
    group.addoption(
        "--topology-seed", type=int, help="seed of the random topologies; default: a new one"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "own_guest(booted=False): gets a guest that no other test uses, restored or booted",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker("vm")
        # A guest has deadlines of its own, which depend on its speed.
        item.add_marker(pytest.mark.timeout(1800))
    if config.getoption("image") is None:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


class ByKernel(LoadScopeScheduling):  # type: ignore[misc]
    """Give all tests of a kernel to one process, and all tests of any other file.

    The groups of xdist 3.8 rename tests, which has no effect in pytest 9.
    """

    def _split_scope(self, nodeid: str) -> str:
        releases = (kernel.release for kernel in _image(self.config).kernels)
        file = nodeid.partition("::")[0]
        return next((one for one in releases if one in nodeid), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByKernel:
    return ByKernel(config, log)


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
        skip = pytest.mark.skip(reason="for our kernels only, and the image has none")
        cases = [pytest.param(None, id="none", marks=skip)]
    metafunc.parametrize("kernel", cases, scope="session")


@pytest.fixture(scope="session")
def guest_image(request: pytest.FixtureRequest) -> GuestImage:
    """The image given with --image."""
    return _image(request.config)


@pytest.fixture(scope="session")
def logs(settings: Settings) -> Path:
    """The directory for the consoles of guests."""
    return settings.build / "logs" / "vm"


@pytest.fixture(scope="session")
def accelerator(settings: Settings, guest_image: GuestImage, accel: str | None) -> Accelerator:
    """The accelerator of guests: --accel, or the one that was seen to work here."""
    return qemu.choose_accelerator(settings.cache, guest_image.kernels[0], accel).accelerator


@pytest.fixture(scope="session")
def save(
    settings: Settings, suite: str, guest_image: GuestImage, accelerator: Accelerator, logs: Path
) -> Save:
    """The function that gives a kernel's snapshot, with the tests' programs in the guest.

    Snapshots lie next to the image's disk, so that a new image starts without any.
    """
    shelf = guest_image.disk.parent / "tests"
    # QEMU's user may not enter it: see test_snapshot.py.
    shelf.mkdir(mode=0o700, exist_ok=True)
    compiled = test_programs.compile_programs(settings, suite, (*PROGRAMS, *bench.PROGRAMS))
    inputs = {name: fs.sha256_file(path) for name, path in compiled.items()}
    saved: dict[Kernel, Snapshot] = {}

    def apply(guest: Guest) -> None:
        programs.install(guest, compiled)
        path, content = BEFORE_SAVE
        guest.put(content, path)

    def save(kernel: Kernel) -> Snapshot:
        if kernel not in saved:
            spec = guest_spec(guest_image, kernel, accelerator)
            saved[kernel] = snapshot.ensure(
                shelf,
                spec,
                workdir=logs / "snapshot" / kernel.release,
                provision=Provision(inputs, apply),
            )
        return saved[kernel]

    return save


def guest_spec(guest_image: GuestImage, kernel: Kernel, accelerator: Accelerator) -> GuestSpec:
    """Return what the tests' guests with a kernel of the image are made of."""
    spec = GuestSpec(
        kernel=kernel,
        disk=guest_image.disk,
        accelerator=accelerator,
        # Since Linux 6.0 KUnit runs nothing without it.
        append=("kunit.enable=1",),
    )
    return suited(spec, variants.named_in(kernel.flavour)) if image.is_ours(kernel) else spec


@pytest.fixture(scope="session")
def kept(kernel: Kernel, save: Save) -> Snapshot:
    """The kernel's snapshot."""
    return save(kernel)


@pytest.fixture(scope="session")
def shared_slot(kernel: Kernel, kept: Snapshot, logs: Path) -> Iterator[Slot]:
    """The slot of the guest that all tests of a kernel share; its whole verdict must be PASSED."""
    slot = Slot(
        lambda workdir: Guest.restore(kept, workdir=workdir, expected_taint=TAINT),
        logs / "shared" / kernel.release,
    )
    yield slot
    slot.close()
    if slot.failures:
        pytest.fail("a guest of these tests did not pass:\n" + "\n".join(slot.failures))


@pytest.fixture
def own_slot(request: pytest.FixtureRequest, kept: Snapshot, logs: Path) -> Slot:
    """The slot of a guest for one test; see the marker own_guest."""
    marker = request.node.get_closest_marker("own_guest")

    def start(workdir: Path) -> Guest:
        if marker is not None and marker.kwargs.get("booted"):
            return Guest.boot(kept.spec, workdir=workdir, expected_taint=TAINT)
        return Guest.restore(kept, workdir=workdir, expected_taint=TAINT)

    name = re.sub(r"[^\w.-]+", "-", request.node.name)
    return Slot(start, logs / request.path.stem / name)


@pytest.fixture
def guest(request: pytest.FixtureRequest, shared_slot: Slot, own_slot: Slot) -> Iterator[Guest]:
    """A guest with the tests' programs, which the test must leave as it was.

    A test with the marker own_guest need not: its guest is powered off and judged at once.
    """
    item = request.node
    own = item.get_closest_marker("own_guest") is not None
    slot = own_slot if own else shared_slot
    machine = slot.get(item.name)
    clean = False
    try:
        again = _again(item)
        modules = lambda: _modules(item.config, machine)  # noqa: E731
        with guests.watched(item, machine, again=again, modules=modules):
            yield machine
        if not own and (changes := slot.changes()):
            pytest.fail(f"the test did not leave the guest as it was:\n{changes}")
        clean = not guests.failed(item)
    finally:
        if own or not clean:
            slot.close()
    if own and slot.failures:
        pytest.fail("the guest of this test did not pass:\n" + "\n".join(slot.failures))


@pytest.fixture
def loaded(guest: Guest) -> Iterator[Guest]:
    """The guest with the installed module loaded; it has to unload again."""
    guest.run(["modprobe", MODULE], timeout_s=20, check=True)
    yield guest
    if guest.alive:
        guest.run(["rmmod", MODULE], timeout_s=20, check=True)


def _again(item: pytest.Item) -> str:
    name = getattr(item, "originalname", item.name)
    target = item.config.getoption("target")
    return f"./inv test --tier vm -k {shlex.quote(name)} {target}".rstrip()


def _modules(config: pytest.Config, machine: Guest) -> dict[str, Path]:
    """Return the module of our kernel from its package, for its line numbers."""
    package: Path | None = config.getoption("prebuilt")
    if package is None or not image.is_ours(machine.kernel):
        return {}
    place = machine.machine.console.path.parent / "prebuilt"
    run.run(["dpkg-deb", "--extract", package, place], timeout_s=60)
    return {MODULE: next(place.rglob(f"{MODULE}.ko"))}
