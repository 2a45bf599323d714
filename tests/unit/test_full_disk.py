"""A full disk is the machine's failure, with the path, in every stage: 69, never the build's.

The disk is a tmpfs of 256 kB in a mount namespace of this test's own.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kbuild.core import errors
from kbuild.core.errors import BuildError, InfrastructureError
from kbuild.core.run import run
from tests.unit.mounts import UNSHARE

PROJECT = Path(__file__).parents[2]

# Runs in the namespace, with the disk as its working directory; BIG has 600 kB of noise.
SCRIPT = """
import json, os, sys
from pathlib import Path
from kbuild.core import fs
from kbuild.core.errors import DefectError, KbuildError
from kbuild.core.run import run

here, big = Path.cwd(), Path(os.environ["BIG"])
DEB = ["dpkg-deb", "--root-owner-group"]
CASES = {
    "tar": lambda: run(["tar", "-C", here, "-xf", big / "big.tar"], timeout_s=60),
    "dpkg-deb": lambda: run([*DEB, "-b", big / "pkg", here / "x.deb"], timeout_s=60),
    "dpkg-deb that unpacks": lambda: run([*DEB, "-x", big / "x.deb", here / "x"], timeout_s=60),
    "make": lambda: run(["make", "-f", big / "Makefile"], cwd=here, timeout_s=60),
    "make, unchecked": lambda: run(
        ["make", "-f", big / "Makefile"], cwd=here, timeout_s=60, check=False
    ),
    "perl, as debhelper": lambda: run(
        ["perl", "-MFile::Copy", "-e", "copy(@ARGV) or die", big / "big", here / "x"], timeout_s=60
    ),
    "cp": lambda: run(["cp", big / "big", here], timeout_s=60),
    "one that says nothing": lambda: run(
        ["sh", "-c", "cat $1 > $2/x 2> /dev/null; exit 1", "sh", big / "big", here], timeout_s=60
    ),
    "the log": lambda: run(
        ["head", "-c", "1000000", "/dev/zero"], timeout_s=60, log=here / "logs/run.log"
    ),
    "an error without a name": lambda: (here / "x").write_bytes(bytes(1000000)),
    "a file of our own": lambda: fs.write_atomic(here / "manifest.json", bytes(1000000)),
}
for name, action in CASES.items():
    try:
        action()
        said = ["", 0, "nothing was raised"]
    except Exception as error:
        known = error if isinstance(error, KbuildError) else DefectError.of(error, [big, here])
        said = [type(known).__name__, known.exit_status, str(known)]
    print(json.dumps([name, *said]))
    run(["find", here, "-mindepth", "1", "-delete"], timeout_s=60)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, str]]:
    """Return for each program that met the full disk the class, the status and the text."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine gives no mount namespace")
    big, disk = tmp_path_factory.mktemp("big"), tmp_path_factory.mktemp("disk")
    (big / "big").write_bytes(os.urandom(600_000))
    (big / "Makefile").write_text(f"big.o: ; cp {big}/big $@\n")
    control = big / "pkg/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nDescription: x\nMaintainer: A <a@b.example>\n"
    )
    shutil.copy(big / "big", big / "pkg/big")
    run(["dpkg-deb", "-b", big / "pkg", big / "x.deb"], timeout_s=60)
    run(["tar", "-C", big, "-cf", big / "big.tar", "big"], timeout_s=60)
    mounted = 'mount -t tmpfs -o size=256k tmpfs "$1" && cd "$1" && exec "$2" -c "$3"'
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", mounted, "sh", disk, sys.executable, SCRIPT],
        env={**os.environ, "BIG": str(big), "PYTHONPATH": str(PROJECT), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert not any(disk.iterdir())
    found = (json.loads(line) for line in done.stdout.splitlines())
    return {
        name: (kind, status, text.replace(str(disk), "DISK")) for name, kind, status, text in found
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tar", "tar: big: "),
        ("dpkg-deb", "DISK/x.deb"),
        ("dpkg-deb that unpacks", "tar: ./big: "),
        ("make", "writing 'big.o': No space left on device"),
        ("make, unchecked", "writing 'big.o': No space left on device"),
        ("perl, as debhelper", "Died at"),
        ("cp", "error writing 'DISK/big': No space left on device"),
        ("one that says nothing", "0.0 MB free at DISK"),
        ("the log", "DISK/logs/run.log: No space left on device"),
        ("an error without a name", "DISK: No space left on device"),
        ("a file of our own", "DISK/manifest.json: No space left on device"),
    ],
)
def test_a_full_disk_is_the_machines_failure(
    said: dict[str, tuple[str, int, str]], name: str, words: str
) -> None:
    kind, status, text = said[name]
    assert (kind, status) == ("FullDiskError", 69), text
    assert words in text
    assert "DISK" in text


def test_a_program_that_fails_for_a_reason_of_its_own_is_none() -> None:
    with pytest.raises(BuildError, match="exit status 3"):
        run(["sh", "-c", "echo No space; exit 3"], timeout_s=20)
    assert run(["sh", "-c", "echo No space left on device"], timeout_s=20).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "tar: x: Wrote only 512 of 10240 bytes",
        "E: You don't have enough free space in /var/cache/apt/archives/.",
        "dpkg: error: failed to write to '/x': Disk quota exceeded",
        "dh_dkms: error: cannot write(debian/x): No space left on device",
        "x: File too large",
    ],
)
def test_other_words_for_it_are_known(text: str) -> None:
    with pytest.raises(InfrastructureError, match="found no room for a file") as caught:
        run(["sh", "-c", 'echo "$1" >&2; exit 2', "sh", text], timeout_s=20, check=False)
    assert text in (caught.value.found or "")


def test_the_program_in_a_root_is_named_and_not_what_enters_it() -> None:
    said = "echo No space left on device; exit 1"
    with pytest.raises(InfrastructureError, match=r"^sh found no room"):
        run(["nice", "--", "sh", "-c", said], timeout_s=20)


def test_a_limit_on_files_is_one_of_the_machine(tmp_path: Path) -> None:
    limited = ["prlimit", "--fsize=1000", "head", "-c", "5000", "/dev/zero"]
    with pytest.raises(InfrastructureError, match="no room") as caught:
        run(["sh", "-c", 'exec "$@" > x', "sh", *limited], timeout_s=20, cwd=tmp_path)
    assert "SIGXFSZ" in (caught.value.found or "")
    known = errors.of_the_machine(OSError(errno.EFBIG, "File too large", "/x/y"))
    assert known is not None
    assert str(known).startswith("/x/y: File too large")


def test_a_copy_names_where_it_could_not_write(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/x").write_text("x")

    def copy(origin: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", origin, None, target)

    with pytest.raises(OSError) as caught:
        shutil.copytree(tmp_path / "from", tmp_path / "to", copy_function=copy)
    known = errors.of_the_machine(caught.value)
    assert known is not None
    assert "to/x" in known.what
    assert "No space left on device" in known.what
    one = OSError(errno.ENOSPC, "No space left on device", "/from/x", None, "/to/x")
    assert str(errors.of_the_machine(one)).startswith("/to/x: No space left on device")


def test_a_directory_for_temporary_files_is_the_machines_too() -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    known = errors.of_the_machine(error)
    assert known is not None
    assert "'/tmp'" in known.what
