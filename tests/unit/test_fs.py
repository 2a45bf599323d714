"""Files and directories that appear whole, and locks between processes."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from kbuild.core import fs
from kbuild.core.errors import InfrastructureError, UserError
from tests.unit.mounts import UNSHARE

PROJECT = Path(__file__).resolve().parents[2]


def python(code: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_atomic_makes_directories_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "script"
    fs.write_atomic(path, "#!/bin/sh\n", mode=0o755)
    assert path.read_text() == "#!/bin/sh\n"
    assert path.stat().st_mode & 0o777 == 0o755
    assert names(path.parent) == ["script"]


@pytest.mark.parametrize("step", ["fsync", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    fs.write_atomic(path, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="No space left"):
        fs.write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fs.write_atomic(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from kbuild.core import fs\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "fs.write_atomic(Path(sys.argv[1]), 'new' * 100000)\n"
    )
    writer = python(code, str(path))
    assert writer.wait(timeout=30) == -9
    assert path.read_text() == "old"


def test_readers_see_one_version_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    versions = {"a" * 300000, "b" * 300000}
    fs.write_atomic(path, "a" * 300000)
    code = (
        "import sys; from pathlib import Path; from kbuild.core import fs\n"
        "for n in range(60): fs.write_atomic(Path(sys.argv[1]), 'ab'[n % 2] * 300000)\n"
    )
    writer = python(code, str(path))
    reads = 0
    while writer.poll() is None:
        assert path.read_text() in versions
        reads += 1
    assert writer.returncode == 0
    assert reads > 0


def test_write_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    fs.write_json(tmp_path / "x.json", {"b": 1, "a": [2]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'


def test_a_fresh_directory_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "result"
    for content in ("first", "second"):
        with fs.fresh_directory(path) as scratch:
            (scratch / content).touch()
    assert names(path) == ["second"]
    assert names(tmp_path) == ["result"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_an_exception_keeps_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with fs.fresh_directory(path) as scratch:
        (scratch / "old").touch()
    with pytest.raises(KeyboardInterrupt), fs.fresh_directory(path) as scratch:
        (scratch / "half").touch()
        raise KeyboardInterrupt
    assert names(path) == ["old"]
    assert names(tmp_path) == ["result"]


def test_a_failed_swap_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "result", tmp_path / "new"
    path.mkdir()
    (path / "old").touch()
    new.mkdir()
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="cross-device"):
        fs.replace_directory(new, path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["new", "result"]


# A power cut would leave what lies on the disk at this moment: the image is copied while the file
# system is in use.  ext4 then has a file's name, and writes its content half a minute later.
_POWER_CUT = """
import pathlib, shutil, subprocess, sys
from kbuild.core import fs, stamp
top, entries, how = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
disk, after, here, there = (top / name for name in ("disk", "after", "here", "there"))
def mount(image, place):
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
with disk.open("wb") as stream:
    stream.truncate(64 << 20)
subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", disk], check=True)
mount(disk, here)
def fill(tree):
    for number in range(entries):
        path = tree / str(number % 7) / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text("x" * (number + 1))
if how == "replaced":
    with fs.fresh_directory(here / "tree") as tree:
        fill(tree)
elif how == "stamped":
    (here / "tree").mkdir()
    fill(here / "tree")
    stamp.write(here / "tree.json", {}, [here / "tree"], 1)
else:
    (here / ".tree").mkdir()
    fill(here / ".tree")
    (here / ".tree").rename(here / "tree")
fs.write_atomic(here / "proof", "there")
shutil.copyfile(disk, after)
mount(after, there)
files = [path for path in (there / "tree").rglob("*") if path.is_file()]
print((there / "proof").read_text(), len(files), sum(not path.stat().st_size for path in files))
subprocess.run(["umount", here, there], check=True)
"""


def power_cut(top: Path, entries: int, how: str) -> list[str]:
    if os.geteuid() or not Path("/dev/loop-control").exists():
        pytest.skip("a file system in a file needs root and loop devices")
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", sys.executable, "-c", _POWER_CUT),
            *(str(top), str(entries), how),
        ],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()


# One below and one above the number of files from which on the file system is flushed whole.
@pytest.mark.parametrize("entries", [35, 350])
@pytest.mark.parametrize("how", ["replaced", "stamped"])
def test_a_power_cut_leaves_no_empty_files(tmp_path: Path, entries: int, how: str) -> None:
    assert power_cut(tmp_path, entries, how) == ["there", str(entries), "0"]


def test_a_power_cut_does_leave_empty_files_in_a_directory_that_was_only_renamed(
    tmp_path: Path,
) -> None:
    assert power_cut(tmp_path, 35, "renamed") == ["there", "35", "35"]


def test_a_name_is_on_the_disk_after_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    fs.write_atomic(tmp_path / "file", "x")
    written, *after = steps
    assert written.startswith(".file.")
    assert after == ["rename", tmp_path.name]


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        (b"[1, 2]", False),
        (b"", True),
        (b"[1,", True),
        (b"{}", True),
        (b"null", True),
        (b"\xff\xfe\x00", True),
        (b"[" * 100_000, True),
        (None, False),
    ],
)
def test_a_record_is_read_or_counts_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None, logged: bool
) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    found = fs.read_json(path, lambda raw: int(raw[1]))
    assert found == (2 if content and not logged else None)
    assert (f"{path} is damaged" in caplog.text) == logged


def test_a_lock_excludes_another_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from kbuild.core import fs\n"
        "with fs.lock(Path(sys.argv[1])):\n"
        "    print('mine', flush=True); time.sleep(300)\n"
    )
    holder = python(code, str(path))
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with (
            pytest.raises(InfrastructureError, match="another run has held"),
            fs.lock(path, timeout_s=0.3),
        ):
            pytest.fail("two processes hold one lock")
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    # A killed holder leaves the file, not the lock.
    assert path.exists()
    with fs.lock(path, timeout_s=5):
        pass


def test_a_waiter_says_so_once_and_gets_the_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "x.lock"
    code = (
        "import sys, time; from pathlib import Path; from kbuild.core import fs\n"
        "with fs.lock(Path(sys.argv[1])):\n"
        "    print('mine', flush=True); sys.stdin.readline()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    holder.stdout.readline()
    waits: list[float] = []

    def release_after_three(seconds: float, sleep: object = time.sleep) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holder.communicate("go\n", timeout=20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", release_after_three)
        with fs.lock(path, timeout_s=60):
            pass
    assert len(waits) >= 3
    assert caplog.messages == [f"waiting for another run that holds {path}"]


def test_a_lock_that_its_holder_removes_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.lock"
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def sleep(_: float) -> None:
            # A thread of another test may sleep too.
            path.unlink(missing_ok=True)
            fcntl.flock(held, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", sleep)
        # The second must not get it, which a lock on the removed file would not prevent.
        with (
            fs.lock(path, timeout_s=20),
            pytest.raises(InfrastructureError),
            fs.lock(path, timeout_s=-1),
        ):
            pytest.fail("two runs hold one lock")
    path.unlink()
    with pytest.raises(FileNotFoundError), fs.lock(path, create=False):
        pytest.fail("a lock was made")
    assert names(tmp_path) == []


def test_a_lock_that_is_removed_as_it_is_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "x.lock", fcntl.flock, []

    def flock(stream: IO[bytes], how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        real(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with fs.lock(path), pytest.raises(InfrastructureError), fs.lock(path, timeout_s=-1):
        pytest.fail("two runs hold one lock")


def test_a_shared_lock_keeps_only_an_exclusive_one_out(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with (
        fs.lock(path, shared=True),
        fs.lock(path, shared=True),
        pytest.raises(InfrastructureError),
        fs.lock(path, timeout_s=-1),
    ):
        pytest.fail("a shared lock was ignored")
    with (
        fs.lock(path),
        pytest.raises(InfrastructureError),
        fs.lock(path, timeout_s=-1, shared=True),
    ):
        pytest.fail("an exclusive lock was ignored")


def plant_link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def plant_second_name(path: Path, secret: Path) -> None:
    os.link(secret, path)


def plant_fifo(path: Path, secret: Path) -> None:
    os.mkfifo(path)


def plant_directory(path: Path, secret: Path) -> None:
    path.mkdir()


def plant_foreign(path: Path, secret: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path.write_text("planted")
    os.chown(path, 65534, -1)


@pytest.mark.parametrize(
    ("plant", "modes"),
    [
        (plant_link, "rb wb ab"),
        (plant_link, "lock"),
        (plant_second_name, "wb ab"),
        (plant_fifo, "rb wb ab lock"),
        (plant_directory, "rb wb ab lock"),
        (plant_foreign, "rb wb ab lock"),
    ],
)
def test_files_of_others_are_neither_read_nor_written(
    tmp_path: Path, plant: Callable[[Path, Path], None], modes: str
) -> None:
    path, secret = tmp_path / "x", tmp_path / "secret"
    secret.write_text("precious")
    plant(path, secret)
    for mode in modes.split():
        with pytest.raises(UserError, match=f"{path} was not made by this pipeline"):
            if mode == "lock":
                with fs.lock(path):
                    pytest.fail("it was locked")
            else:
                fs.open_own(path, mode).close()
    assert secret.read_text() == "precious"
    if plant is plant_foreign:
        assert path.read_text() == "planted"


def test_a_file_of_ours_is_opened_as_open_does(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(FileNotFoundError):
        fs.open_own(path, "rb")
    for mode, text in (("w", "one"), ("a", "two"), ("w", "3"), ("a", "4")):
        with fs.open_own(path, mode) as stream:
            stream.write(text)
    with fs.open_own(path, "r") as stream:
        assert stream.read() == "34"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_tree_is_removed_whole_and_one_that_is_gone_is_no_error(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "tree" / "link").symlink_to(elsewhere)
    fs.remove_tree(tmp_path / "tree")
    fs.remove_tree(tmp_path / "tree")
    assert names(tmp_path) == ["elsewhere"]
    assert names(elsewhere) == ["kept"]


def test_a_failed_removal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fs.remove_tree(tmp_path / "file")


# In a mount namespace of its own; a user namespace lets a test without root make it.
_REMOVE_UNDER_A_MOUNT = """
import pathlib, subprocess, sys
from kbuild.core import fs, interrupted
from kbuild.kernel import patches
from kbuild.core.errors import InfrastructureError
from kbuild.core.model import Series, Tree
tree = pathlib.Path(sys.argv[1])
(tree.parent / "tree.making").touch()
for one in tree.rglob("*"):
    one.touch()
source = tree.parent / "source"
source.mkdir()
removals = [
    lambda: interrupted.recover(tree),
    lambda: patches.mend(source, Tree(tree, "1", Series("s", "", (), ""), "", ())),
]
subprocess.run(["mount", *sys.argv[3:], sys.argv[2], tree / "a b\\n"], check=True)
for doomed in (tree, tree.parent / "by link", tree / "a b\\n"):
    removals.append(lambda doomed=doomed: fs.remove_tree(doomed))
for removal in removals:
    try:
        removal()
    except InfrastructureError as error:
        assert str(tree / "a b\\n") in str(error), error
    else:
        sys.exit("nothing was refused")
"""


@pytest.mark.parametrize("mount", [("--bind",), ("-t", "tmpfs")], ids=["bind", "tmpfs"])
def test_no_removal_crosses_a_mount(tmp_path: Path, mount: tuple[str, ...]) -> None:
    tree, host = tmp_path / "tree", tmp_path / "host"
    for directory in (tree / "a b\n", tree / "other", host):
        directory.mkdir(parents=True)
        (directory / "kept").touch()
    (tmp_path / "by link").symlink_to(tree)
    subprocess.run(
        [
            *UNSHARE,
            sys.executable,
            "-c",
            _REMOVE_UNDER_A_MOUNT,
            str(tree),
            str(host),
            *mount,
        ],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=True,
    )
    assert names(host) == ["kept"]
    assert names(tree / "other") == ["kept"]


def test_a_trees_digest_sees_content_names_modes_and_links(tmp_path: Path) -> None:
    def tree(name: str) -> Path:
        root = tmp_path / name
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "file").write_text("content")
        (root / "link").symlink_to("sub")
        return root

    reference = fs.sha256_tree(tree("a"))
    assert fs.sha256_tree(tree("same")) == reference
    os.utime(tmp_path / "same" / "sub" / "file", (0, 0))
    assert fs.sha256_tree(tmp_path / "same") == reference

    (tree("content") / "sub" / "file").write_text("Content")
    (tree("mode") / "sub" / "file").chmod(0o755)
    (tree("name") / "sub" / "file").rename(tmp_path / "name" / "sub" / "renamed")
    link = tree("link") / "link"
    link.unlink()
    link.symlink_to("sub/file")
    digests = {fs.sha256_tree(tmp_path / n) for n in ("content", "mode", "name", "link")}
    assert len(digests | {reference}) == 5


def test_disk_usage_counts_hard_links_once_and_survives_what_vanishes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100000)
    single = fs.disk_usage(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert fs.disk_usage(tmp_path) == single >= 100000
    assert fs.disk_usage(tmp_path / "missing") == 0
