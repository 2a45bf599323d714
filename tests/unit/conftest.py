"""Fixtures that more than one file of unit tests uses."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from kbuild.guest import qemu

PROJECT = Path(__file__).parents[2]
_MEMORY = Path("/dev/shm")
_ENOUGH = 2 << 30  # bytes; the tests of one run take some 200 MB

# A busy machine fails no test, and processes that run tests side by side share no database.
hypothesis.settings.register_profile("unit", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("unit")


def pytest_configure(config: pytest.Config) -> None:
    """Make the tests' surroundings the same everywhere, and flushing files cheap."""
    if _has_room(_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
    # Programs that tests start must not inherit that a background run ignores these.
    for one in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(one) is signal.SIG_IGN:
            signal.signal(one, lambda signum, frame: None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the keys and packages that tests of archives share."""
    for name in ("tests.unit.signed_archive", "tests.unit.releases"):
        if name in sys.modules:
            sys.modules[name].clean_up()


def _has_room(place: Path) -> bool:
    """Return whether tests may use ``place``; in containers it is often small or noexec."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    large = found.f_bavail * found.f_frsize >= _ENOUGH
    return large and not found.f_flag & os.ST_NOEXEC and os.access(place, os.W_OK)


@pytest.fixture
def behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the fake QEMU first in PATH; write how it is to behave to the returned file."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    script = bin_directory / qemu.QEMU
    source = (PROJECT / "tests" / "unit" / "fake_qemu.py").read_text()
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n")
    # __future__ imports have to come first in a file
    body = source.replace("from __future__ import annotations\n", "")
    script.write_text(script.read_text() + body)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_directory}:{os.environ['PATH']}")
    # pytest's directories are for us only, so no other user could start this one.
    monkeypatch.setattr(qemu, "USER", os.geteuid())
    behaviour = bin_directory / "behaviour"
    behaviour.write_text("good")
    return behaviour


@pytest.fixture(scope="session", autouse=True)
def usual_machine() -> Iterator[None]:
    """Give the tests the same umask and the same width of lines everywhere."""
    # dpkg-deb refuses directories that were made with 077.
    before = os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        yield
    os.umask(before)


@pytest.fixture(params=[0o077, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give the test a umask that a machine or a user may have."""
    given: int = request.param
    before = os.umask(given)
    yield given
    os.umask(before)
