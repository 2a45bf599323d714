"""A server's disk for the tests that boot one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kbuild.core.model import Kernel, Root, Settings
from kbuild.gate import disk, server, wire
from kbuild.gate.wire import Wire
from kbuild.guest import qemu
from kbuild.guest.spec import ServerSpec

# A unit that fails each time it is started, and that a test enables.
BROKEN = "broken.service"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gate", "tests that boot a server")
    group.addoption("--server", type=Path, help="tree that kbuild.gate.server.stock returned")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker("gate")
        # A server has deadlines of its own, which depend on its speed.
        item.add_marker(pytest.mark.timeout(1800))
    if config.getoption("server") is None:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


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
