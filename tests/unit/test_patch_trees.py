"""A series makes the tree that patch(1) makes in a whole copy: content, modes and types."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kbuild.core.errors import BuildError, KbuildError, UserError
from kbuild.kernel import patches, quilt
from tests.unit import toy

HEADER = b"Description: d\nForwarded: no\nLast-Update: 2026-01-01\nX-Exports:\n\n"
# As bytes: names and lines need not be UTF-8.
NAMES: tuple[bytes, ...] = (
    b"a.c",
    b"dir/b.h",
    b"dir/sub/c.sh",
    b"with blank.c",
    b"dir/\xc3\xa4.c",
    b"dir/lat\xe4.c",
)
NAMES += (b'quo"ted.c', b"back\\slash", b"tab\there", b"deep/er/x", b"lone/y", b"dir name/z.c")
LINES: tuple[bytes, ...] = (
    b"int x;",
    b"}",
    b"",
    b"\treturn 0;",
    b"caf\xe9",
    b"caf\xc3\xa9",
    b"form\x0cfeed",
)
LINES += (b"a\rb", b"-- a/b", b"++ b/c", b"*** a/x ****", b"\xe2\x80\xa8", b"crlf\r")


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Describe everything below a directory, as far as a patch may change it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = ("directory",)
        else:
            found[name] = ("file", oct(path.stat().st_mode & 0o777), path.read_bytes())
    return found


def put(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a file, or with a text for its content a symbolic link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if isinstance(content, str):
        path.symlink_to(content)
    else:
        path.write_bytes(content)
        path.chmod(mode)


def git(where: Path, *arguments: str) -> bytes:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=where, check=True, capture_output=True
    )
    return done.stdout


def commit(work: Path) -> None:
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--allow-empty", "--message=x")


class Editor:
    """Edits a tree at random, in every way that a patch can say."""

    def __init__(self, rng: random.Random, root: Path) -> None:
        self.rng, self.root = rng, root

    def start(self) -> None:
        for name in self.rng.sample(NAMES, self.rng.randrange(4, len(NAMES))):
            link = self.rng.random() < 0.12
            put(self.at(name), "a.c" if link else self.text(), self.rng.choice((0o644, 0o755)))

    def at(self, name: bytes) -> Path:
        return self.root / os.fsdecode(name)

    def text(self) -> bytes:
        lines = [self.rng.choice(LINES) for _ in range(self.rng.randrange(20))]
        return b"\n".join(lines) + self.rng.choice((b"\n", b"\n", b""))

    def edit(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines[self.rng.randrange(len(lines))] = b"changed %d" % self.rng.randrange(99)
        put(path, b"\n".join(lines), path.stat().st_mode & 0o777)

    def remove(self, path: Path) -> None:
        path.unlink()
        for parent in path.relative_to(self.root).parents:
            if parent.name and not any((self.root / parent).iterdir()):
                (self.root / parent).rmdir()

    def step(self) -> None:
        have = [path for name in NAMES if os.path.lexists(path := self.at(name))]
        free = [path for name in NAMES if not os.path.lexists(path := self.at(name))]
        files = [path for path in have if not path.is_symlink()]
        kind = self.rng.choice(("edit", "mode", "new", "link", "delete", "rename", "copy", "type"))
        if kind == "edit" and files:
            self.edit(self.rng.choice(files))
        elif kind == "mode" and files:
            path = self.rng.choice(files)
            path.chmod(path.stat().st_mode ^ 0o111)
        elif kind == "new" and free:
            put(
                self.rng.choice(free),
                self.rng.choice((b"", self.text())),
                self.rng.choice((420, 493)),
            )
        elif kind == "link" and free:
            put(self.rng.choice(free), self.rng.choice(("a.c", "../x", "/etc/hostname")))
        elif kind == "delete" and have:
            self.remove(self.rng.choice(have))
        elif kind in ("rename", "copy") and have and free:
            old, new = self.rng.choice(have), self.rng.choice(free)
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(old, new, follow_symlinks=False)
            if kind == "rename":
                self.remove(old)
            if not new.is_symlink() and self.rng.random() < 0.6:
                self.edit(new)
        elif kind == "type" and have:
            path = self.rng.choice(have)
            put(path, self.text() if path.is_symlink() else "target")


def real_patch(tree: Path, content: bytes) -> bool:
    argv = ["patch", "-p1", "--fuzz=0", "--batch", "--no-backup-if-mismatch", "--reject-file=-"]
    return subprocess.run(argv, cwd=tree, input=content, capture_output=True).returncode == 0


@pytest.mark.parametrize("number", range(8))
def test_a_random_series_makes_what_patch_makes(number: int, tmp_path: Path) -> None:
    """git writes the diffs, and a plain patch(1) in a whole copy says what they come to.

    The same tree then takes the series without its last patch, as after an edit of it.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    work, pristine = tmp_path / "work", tmp_path / "pristine"
    editor = Editor(rng, work)
    editor.start()
    shutil.copytree(work, pristine, symlinks=True)
    git(work, "init", "--quiet")
    commit(work)
    trees = [snapshot(pristine)]
    real = shutil.copytree(pristine, tmp_path / "real", symlinks=True)
    names: list[str] = []
    applies = True
    while applies and len(names) < rng.randrange(1, 4):
        for _ in range(rng.randrange(1, 4)):
            editor.step()
        git(work, "add", "--all")
        quote = f"core.quotepath={rng.choice(('true', 'false'))}"
        how = (rng.choice(("-M", "-C", "--no-renames")), f"-U{rng.choice((1, 3))}")
        diff = HEADER + git(work, "-c", quote, "diff", "--cached", *how)
        commit(work)
        if diff == HEADER:
            continue
        names.append(f"{len(names)}.patch")
        toy.write(tmp_path / "series" / names[-1], diff)
        applies = real_patch(real, diff)
        trees.append(snapshot(real))
    toy.write(tmp_path / "series/range", ">=1\n")
    for count in range(len(names), 0, -1):
        toy.write(tmp_path / "series/series", "\n".join(names[:count]))
        series = quilt.read_series(tmp_path / "series")
        try:
            patches.apply(pristine, series, tmp_path / "tree", base_version="1-1")
        except KbuildError:
            assert not applies
            assert count == len(names)
            assert not (tmp_path / "tree").exists()
        else:
            assert applies or count < len(names)
            assert snapshot(tmp_path / "tree") == trees[count]
        assert snapshot(pristine) == trees[0]


BASE: dict[str, tuple[bytes | str, int]] = {
    "fs/file.c": (b"a\nb\nc\n", 0o644),
    "scripts/run.sh": (b"#!/bin/sh\na\n", 0o755),
    "fs/caf\udce9.c": (b"caf\xe9\n", 0o644),
    "lone/only.c": (b"x\n", 0o644),
    "fs/link": ("file.c", 0),
}
EDIT = b"--- a/fs/file.c\n+++ b/fs/file.c\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"
EDITED = b"a\nB\nc\n"
CONTEXT = (
    b"*** a/fs/file.c\tx\n--- b/fs/file.c\tx\n***************\n*** 1,3 ****\n  a\n! b\n  c\n"
    b"--- 1,3 ----\n  a\n! B\n  c\n"
)
FILE, SCRIPT = "100644", "100755"


def made(tmp_path: Path, diff: bytes, *, name: str = "p.patch", line: str = "") -> Path:
    """Apply one patch to the small tree."""
    for path, (content, mode) in BASE.items():
        put(tmp_path / "pristine" / path, content, mode)
    toy.write(tmp_path / "s/range", ">=1\n")
    toy.write(tmp_path / "s/series", f"{line or name}\n")
    toy.write(tmp_path / "s" / name, diff)
    series = quilt.read_series(tmp_path / "s")
    patches.apply(tmp_path / "pristine", series, tmp_path / "tree", base_version="1-1")
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("path", "diff", "kind", "content"),
    [
        (
            "scripts/run.sh",
            b"--- a/scripts/run.sh\n+++ b/scripts/run.sh\n@@ -1,2 +1,2 @@\n #!/bin/sh\n-a\n+b\n",
            SCRIPT,
            b"#!/bin/sh\nb\n",
        ),
        (
            "fs/file.c",
            b"diff --git a/fs/file.c b/fs/file.c\nold mode 100644\nnew mode 100755\n",
            SCRIPT,
            b"a\nb\nc\n",
        ),
        (
            "new/tool",
            b"diff --git a/new/tool b/new/tool\nnew file mode 100755\n"
            b"--- /dev/null\n+++ b/new/tool\n@@ -0,0 +1 @@\n+x\n",
            SCRIPT,
            b"x\n",
        ),
        ("new/x.c", b"--- /dev/null\n+++ b/new/x.c\n@@ -0,0 +1 @@\n+x\n", FILE, b"x\n"),
        (
            "fs/new-link",
            b"diff --git a/fs/new-link b/fs/new-link\nnew file mode 120000\n"
            b"--- /dev/null\n+++ b/fs/new-link\n@@ -0,0 +1 @@\n+file.c\n"
            b"\\ No newline at end of file\n",
            "link",
            b"file.c",
        ),
        (
            'new/qu"ote \u00e4.c',
            b'--- /dev/null\n+++ "b/new/qu\\"ote \\303\\244.c"\n@@ -0,0 +1 @@\n+x\n',
            FILE,
            b"x\n",
        ),
        (
            "fs/renamed.c",
            b"diff --git a/fs/file.c b/fs/renamed.c\n"
            b"rename from fs/file.c\nrename to fs/renamed.c\n"
            b"--- a/fs/file.c\n+++ b/fs/renamed.c\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n",
            FILE,
            EDITED,
        ),
        (
            "fs/caf\udce9.c",
            b"--- a/fs/caf\xe9.c\n+++ b/fs/caf\xe9.c\n@@ -1 +1 @@\n-caf\xe9\n+th\xe9\n",
            FILE,
            b"th\xe9\n",
        ),
        ("fs/file.c", CONTEXT, FILE, EDITED),
        ("fs/file.c", b"From: Jos\xe9\n" + EDIT.replace(b"\n", b"\r\n"), FILE, EDITED),
    ],
)
def test_every_kind_of_change_is_applied(
    path: str, diff: bytes, kind: str, content: bytes, tmp_path: Path
) -> None:
    old = os.umask(0o077)
    try:
        tree = made(tmp_path, HEADER + diff)
    finally:
        os.umask(old)
    if kind == "link":
        assert os.fsencode((tree / path).readlink()) == content
    else:
        assert oct((tree / path).stat().st_mode) == f"0o{kind}"
        assert (tree / path).read_bytes() == content
    assert (tree / "fs/file.c").exists() == ("rename from" not in diff.decode("latin-1"))


def test_a_directory_goes_with_its_last_file(tmp_path: Path) -> None:
    diff = b"--- a/lone/only.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
    assert not (made(tmp_path, HEADER + diff) / "lone").exists()
    assert (tmp_path / "pristine/lone/only.c").exists()


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("p.patch.gz", gzip.compress),
        ("p.patch.bz2", bz2.compress),
        ("p.patch.xz", lzma.compress),
    ],
)
def test_a_compressed_patch_is_applied(
    name: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    tree = made(tmp_path, compress(HEADER + EDIT), name=name)
    assert (tree / "fs/file.c").read_bytes() == EDITED


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("p.patch", "p.patch -p1"),
        ("p.patch", "  p.patch\t-p1  # why"),
        ("p.patch", "#x\n\n # y\np.patch"),
        ("p#1.patch", "p#1.patch"),
    ],
)
def test_a_series_is_read_as_quilt_reads_it(name: str, line: str, tmp_path: Path) -> None:
    tree = made(tmp_path, HEADER + EDIT, name=name, line=line)
    assert (tree / "fs/file.c").read_bytes() == EDITED


@pytest.mark.parametrize(
    ("line", "name", "content", "words"),
    [
        ("p.patch -p0", "p.patch", HEADER + EDIT, "p.patch has options"),
        ("p.patch -R", "p.patch", HEADER + EDIT, "p.patch has options"),
        ("other.patch", "p.patch", HEADER + EDIT, "names a patch that does not exist"),
        ("p.patch.gz", "p.patch.gz", b"no gzip", "p.patch.gz cannot be read"),
        (
            "p.patch.gz",
            "p.patch.gz",
            gzip.compress(EDIT, mtime=0)[:30],
            "p.patch.gz cannot be read",
        ),
        ("p.patch.xz", "p.patch.xz", b"no xz", "p.patch.xz cannot be read"),
        ("p.patch.zst", "p.patch.zst", b"\x28\xb5\x2f\xfd", "p.patch.zst contains no diff"),
        ("p.patch", "p.patch", HEADER, "p.patch contains no diff"),
        ("p.patch", "p.patch", HEADER + b"1c1\n< a\n---\n> b\n", "p.patch contains no diff"),
        (
            "p.patch",
            "p.patch",
            HEADER + b"diff --git a/x b/x\nindex 1..2 100644\nGIT binary patch\nliteral 1\n",
            "p.patch makes a change that patch.1. cannot",
        ),
        ("p.patch", "p.patch", HEADER + EDIT + b"Binary files a/x and b/x differ\n", "cannot"),
        ("p.patch", "p.patch", HEADER + EDIT + b"Only in b/fs: new.c\n", "cannot"),
        (
            "p.patch",
            "p.patch",
            HEADER + EDIT.replace(b" c", b"?c"),
            "is not a patch for patch.1.",
        ),
        (
            "p.patch",
            "p.patch",
            HEADER + b"--- a/include/f.c\n+++ b/include/f.c\n@@ -1 +1 @@\n-a\n+b\n",
            "leads through the symbolic link include",
        ),
    ],
)
def test_a_patch_that_cannot_be_applied_is_named(
    line: str, name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    put(tmp_path / "pristine/include", "fs")
    with pytest.raises(UserError, match=words) as caught:
        made(tmp_path, content, name=name, line=line)
    assert line.split()[0] in str(caught.value)
    assert not (tmp_path / "tree").exists()


def test_a_fifo_is_no_patch(tmp_path: Path) -> None:
    made(tmp_path, HEADER + EDIT)
    (tmp_path / "s/p.patch").unlink()
    os.mkfifo(tmp_path / "s/p.patch")
    with pytest.raises(UserError, match="names a patch that does not exist"):
        quilt.read_series(tmp_path / "s")


def test_a_name_too_long_for_a_file_is_a_build_error(tmp_path: Path) -> None:
    diff = EDIT.replace(b"fs/file.c", b"fs/" + b"x" * 300)
    with pytest.raises(BuildError, match="does not apply") as caught:
        made(tmp_path, HEADER + diff)
    assert (caught.value.found or "").startswith("p.patch: ")


def test_a_failing_hunk_of_a_renamed_file_is_named(tmp_path: Path) -> None:
    diff = (
        b"diff --git a/fs/file.c b/fs/new.c\nrename from fs/file.c\nrename to fs/new.c\n"
        b"--- a/fs/file.c\n+++ b/fs/new.c\n@@ -1,3 +1,3 @@\n a\n-q\n+B\n c\n"
    )
    with pytest.raises(BuildError, match="does not apply") as caught:
        made(tmp_path, HEADER + diff)
    assert caught.value.found == ("p.patch: hunk 1 of fs/new.c: it expects 'q', but line 2 is 'b'")


def test_the_digest_knows_modes_and_links(tmp_path: Path) -> None:
    """They decide what is compiled too."""
    new = b"diff --git a/n b/n\nnew file mode %s\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n"
    digests = set()
    for mode in (b"100644", b"100755", b"120000"):
        where = tmp_path / mode.decode()
        made(where, HEADER + new % mode)
        series = quilt.read_series(where / "s")
        tree = patches.foresee(where / "pristine", series, where / "tree", base_version="1-1")
        digests.add(tree.digest)
    assert len(digests) == 3
