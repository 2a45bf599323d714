"""Options and fixtures of the tests in guests: the kernel, the directories, the accelerator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kbuild.core.model import Settings
from kbuild.core.suites import USUAL_SUITE
from tests.guests import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("guests", "tests that boot a guest")
    group.addoption("--suite", default=USUAL_SUITE, help="of the kernel, and of its roots")
    group.addoption("--kernel-version", help="Debian version of its source; default: the newest")
    # Path.home() would fail for a user id without an entry in passwd.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or f"{os.environ.get('HOME', '')}/.cache")
    group.addoption(
        "--cache", type=Path, default=caches / "cplayground-kernel", help="with roots and snapshots"
    )
    group.addoption(
        "--build", type=Path, default=Path("build"), help="of kernels and logs; below the checkout"
    )
    group.addoption("--accept-expired", action="store_true", help="as of './inv package'")
    group.addoption("--revision", type=int, default=1, help="of our packages")
    group.addoption(
        "--accel", choices=("auto", "kvm", "tcg"), default="auto", help="auto: kvm if it works here"
    )
    group.addoption("--all", action="store_true", help="run everything instead of a sample")
    group.addoption(
        "--keep-vm", action="store_true", help="open a shell in the guest when a test has failed"
    )


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings with the directories of kernels and roots; nothing is fetched."""
    option = request.config.getoption
    project = request.config.rootpath
    return Settings(
        project=project,
        build=project / option("build"),
        cache=option("cache"),
        offline=True,
        revision=option("revision"),
        accept_expired=option("accept_expired"),
    )


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> str:
    """The suite of the kernel: guest programs are compiled in its root."""
    name: str = request.config.getoption("suite")
    return name


@pytest.fixture(scope="session")
def accel(request: pytest.FixtureRequest) -> str | None:
    """QEMU's accelerator; None unless one was asked for."""
    wanted: str = request.config.getoption("accel")
    return None if wanted == "auto" else wanted
