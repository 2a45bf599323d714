"""Servers for the gate's tests: one with a disk of its own, and those of a whole round.

A round has a scratch archive with a throw-away key.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kbuild.archive import operations
from kbuild.archive.release import Release, View
from kbuild.core import fs
from kbuild.core.model import Kernel, Root, Settings
from kbuild.gate import candidate, disk, judging, rehearsal, report, server, wire
from kbuild.gate.cases import CASES
from kbuild.gate.report import CaseResult
from kbuild.gate.round import Round
from kbuild.gate.wire import Wire
from kbuild.guest import qemu
from kbuild.guest.spec import ServerSpec
from kbuild.ship import mok, signing
from tests.gate import planting
from tests.gate.guarded import guarded

__all__ = ["guarded"]

# A unit that fails each time it is started, and that a test enables.
BROKEN = "broken.service"
_TABLE = pytest.StashKey[str]()
# The table of the guard's stories.
GUARDED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gate", "tests that install packages on servers and boot them")
    group.addoption("--server", type=Path, help="tree that kbuild.gate.server.stock returned")
    group.addoption("--disks", type=Path, help="tree of a server with the tools of all disks")
    group.addoption("--candidate", type=Path, help="file with the release to judge")
    group.addoption("--promoted", type=Path, help="file with an older release of the same target")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker("gate")
        # A server has deadlines of its own, which depend on its speed.  This one names the test
        # that hangs, before the whole tier is out of time.
        limit_s = 3600 if item.get_closest_marker("long") else 1200
        item.add_marker(pytest.mark.timeout(limit_s))
    if None not in map(config.getoption, ("server", "candidate", "promoted")):
        # All of them take an hour; a keyword asks for its tests, however long they take.
        everything = config.getoption("all") or config.option.keyword
        ours = [] if everything else [item for item in ours if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for name, key in (("the gate", _TABLE), ("the guard", GUARDED)):
        if table := config.stash.get(key, ""):
            terminalreporter.section(name)
            terminalreporter.write(table)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """Serve one file to the servers."""
    site = tmp_path_factory.mktemp("site")
    (site / "Release").write_text("Suite: gate\n")
    with wire.serve(site, site.with_name("requests.log")) as made:
        yield made


@pytest.fixture(scope="session")
def stock(
    request: pytest.FixtureRequest,
    settings: Settings,
    accel: str | None,
    network: Wire,
    tmp_path_factory: pytest.TempPathFactory,
) -> ServerSpec:
    """A server with Debian's kernel and a unit that fails if it is enabled."""
    place = tmp_path_factory.mktemp("server")
    tree = request.config.getoption("server")
    with server.copy(Root("", tree, ""), place / "tree", log=place / "log") as made:
        (made.root.path / "etc/systemd/system" / BROKEN).write_text(
            "[Service]\nType=oneshot\nExecStart=false\n[Install]\nWantedBy=multi-user.target\n"
        )
        image = disk.write(made.root.path, place / "disk.img", log=place / "log")
    release = next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    choice = qemu.choose_accelerator(settings.cache, Kernel(release, "", tree), accel)
    return ServerSpec(disk=image, network=network.namespace, accelerator=choice.accelerator)


@pytest.fixture(scope="session")
def older(request: pytest.FixtureRequest) -> Release:
    """The release that servers have already."""
    return candidate.read(request.config.getoption("promoted"))


@pytest.fixture(scope="session")
def newer(
    request: pytest.FixtureRequest, signed: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """The release that is judged, signed for Secure Boot by a key that only these tests use."""
    given = candidate.read(request.config.getoption("candidate"))
    return planting.sign(given, signed, tmp_path_factory.mktemp("signed"))


@pytest.fixture(scope="session")
def signed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with keys that only these tests use."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    made = dataclasses.replace(
        settings,
        keys=keys,
        signing_key="",
        sign_command=(),
        mok_key=keys.with_name("mok.key"),
        mok_certificate=keys.with_name("mok.pem"),
        mok_sign_command=(),
        offline=False,
    )
    signing.make_key(made)
    mok.make(made)
    return dataclasses.replace(made, archive_url=made.archive_url or "https://archive.example")


@pytest.fixture(scope="session")
def place(settings: Settings) -> Iterator[Path]:
    """A directory next to the packages, so that archives can be made of hard links."""
    path = settings.build / "gate" / "tests"
    fs.remove_tree(path)
    path.mkdir(parents=True)
    yield path
    fs.remove_tree(path)


@pytest.fixture(scope="session")
def view(signed: Settings, place: Path, older: Release, newer: Release) -> View:
    """The scratch archive as servers see it when the candidate is staged."""
    scratch = rehearsal.archive(signed, place / "promoted", [older])
    return operations.preview(scratch, newer, place / "view")


@pytest.fixture(scope="module")
def round(
    request: pytest.FixtureRequest, signed: Settings, view: View, accel: str | None
) -> Iterator[Round]:
    """The round that the tests of a file share.

    It ends with the file: no other round of the release can begin before that.
    """
    part = request.path.stem.removeprefix("test_")
    with judging.opened(signed, view, accel=accel, part=part) as made:
        yield made


@pytest.fixture(scope="module")
def judged(request: pytest.FixtureRequest, round: Round) -> Iterator[Callable[[str], CaseResult]]:
    """The function that waits for the verdict of a case; those of all selected tests run now."""
    asked = {
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "case" in getattr(item, "fixturenames", ())
    }
    wanted = [one for one in CASES if asked & {*one.names}]
    began = time.monotonic()
    with judging.started(round, wanted) as futures:
        yield lambda name: futures[name].result()
        done = [one.result() for one in futures.values() if one.done() and not one.cancelled()]
    made = judging.finish(round, done, seconds=time.monotonic() - began)
    request.config.stash[_TABLE] = report.render(made)
