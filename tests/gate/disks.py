"""Change files on a server's disk without mounting it: debugfs reaches into the partition."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from kbuild.core.run import run
from kbuild.gate import disk

_TIMEOUT_S = 120
# A file's type in a mode, as debugfs and cpio want it.
_REGULAR, _DIRECTORY = 0o100000, 0o040000
_TRAILER = "TRAILER!!!"
# Linux takes further archives after the first one, each at a multiple of four bytes.
_ALIGNED = 4


def duplicate(image: Path, path: Path) -> Path:
    """Return a sparse copy of a disk."""
    run(["cp", "--sparse=always", "--", image, path], timeout_s=_TIMEOUT_S)
    return path


def put(image: Path, files: Mapping[str, tuple[int, bytes]]) -> None:
    """Write files, each with its mode and content; a file that exists gets a new inode."""
    with tempfile.TemporaryDirectory(prefix="cplayground-gate-") as name:
        requests = []
        for number, (place, (mode, content)) in enumerate(files.items()):
            source = Path(name) / str(number)
            source.write_bytes(content)
            if exists(image, place):
                requests.append(f"rm {place}")
            requests.append(f"write {source} {place}")
            requests.append(f"set_inode_field {place} mode 0{_REGULAR | mode:o}")
        _debugfs(image, *requests, write=True)
    for place, (_, content) in files.items():
        assert get(image, place) == content, f"{place} was not written"


def link(image: Path, place: str, target: str) -> None:
    """Make a symbolic link."""
    _debugfs(image, f"symlink {place} {target}", write=True)
    assert exists(image, place)


def get(image: Path, place: str) -> bytes:
    """Return the content of a file."""
    with tempfile.TemporaryDirectory(prefix="cplayground-gate-") as name:
        path = Path(name) / "content"
        _debugfs(image, f"dump {place} {path}")
        return path.read_bytes()


def exists(image: Path, place: str) -> bool:
    """Return whether there is something at a path."""
    return "Inode:" in _debugfs(image, f"stat {place}")


def add_to_initrd(image: Path, place: str, files: Mapping[str, tuple[int, bytes]]) -> None:
    """Let an initrd have further files, which replace those of the same name."""
    before = get(image, place)
    put(image, {place: (0o644, before + bytes(-len(before) % _ALIGNED) + cpio(files))})


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return an archive in cpio's format "newc", with the directories of its files."""
    made = b""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for name in sorted(folders):
        made += _member(name, _DIRECTORY | 0o755, b"")
    for name, (mode, content) in files.items():
        made += _member(name, _REGULAR | mode, content)
    return made + _member(_TRAILER, 0, b"")


def _member(name: str, mode: int, content: bytes) -> bytes:
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor/minor, rdevmajor/minor, namesize, check
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % one for one in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNED)


def _debugfs(image: Path, *requests: str, write: bool = False) -> str:
    done = run(
        [
            *("debugfs", *(["-w"] if write else []), "-f", "-"),
            f"{image}?offset={disk.START}",
        ],
        timeout_s=_TIMEOUT_S,
        data="".join(f"{one}\n" for one in requests).encode(),
    )
    return done.stdout
