"""Apply patches without fuzz and check their effect.

A patch that applied proves nothing: with fuzz, the module author's own patch of 2020 applies to
every current kernel and exports the wrong functions.  So the patched source is read again, and
each declared export must directly follow its own function.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import contents, fs
from kbuild.core.errors import BuildError, InfrastructureError, UserError
from kbuild.core.model import Patch, Series, Tree
from kbuild.core.run import run
from kbuild.kernel import hunks
from kbuild.kernel.effect import check_effect, text_of
from kbuild.kernel.quilt import changes, content, named, touched

logger = logging.getLogger(__name__)

# patch(1)'s lines about the current file, and about a hunk that has no place.
_SAID = re.compile(
    r"^patching (?:file|symbolic link) (?P<file>.+?)(?: \((?:renamed|copied) from .*\))?$"
    r"|^Hunk #(?P<hunk>\d+) FAILED at"
)
_PATCH_TIMEOUT_S = 60
_MENDED_SAID = 5  # names in a line


@dataclass(frozen=True)
class Refusal:
    """A hunk that has no place in a source tree."""

    patch: str
    file: str
    hunk: int  # its number in that file's part of the patch, from 1
    function: str  # that it changes; "" if unknown
    reason: str  # the tree's content in its place

    def __str__(self) -> str:
        """Describe the refusal in one line."""
        about = f" at {self.function}()" if self.function else ""
        return f"{self.patch}: hunk {self.hunk} of {self.file}{about}: {self.reason}"


def refusals(pristine: Path, series: Series) -> tuple[Refusal, ...]:
    """Return the hunks of a series that have no place in a tree, with the tree's own content.

    The result is empty if the series applies; that does not prove its declared effect.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-") as scratch:
        return _try_patches(pristine, series, Path(scratch))[0]


def apply(pristine: Path, series: Series, tree: Path, *, base_version: str) -> Tree:
    """Bring ``tree`` to ``pristine`` plus ``series``, whatever it was before.

    The patched files are made and checked elsewhere.  Only then does the tree change, and only
    files that differ in content, mode or type, so that make rebuilds only what depends on them.
    BuildError is raised if a patch does not apply or does not have its declared effect; the tree
    then stays as it was.  Unchanged files are hard links into ``pristine`` and must not be
    written to.
    """
    scratch = tree.with_name(f".{tree.name}.patching")
    with fs.lock(tree.with_name(f".{tree.name}.lock")):
        fs.remove_tree(scratch)
        try:
            scratch.mkdir(parents=True)
            names = _patch_aside(pristine, series, scratch)
            state = tree.with_name(f".{tree.name}.json")
            before = fs.read_json(state, _names)
            if before is None or not tree.is_dir():
                state.unlink(missing_ok=True)
                _link_tree(pristine, tree)
                before = ()
            # Recorded before the first change, so that a later run can restore every file if
            # this one dies half-way.
            every = sorted({*before, *names})
            fs.write_json(state, every)
            wanted = {name: (scratch if name in names else pristine) / name for name in every}
            # Files go first: a directory may replace one, or go together with its last file.
            for name in every:
                if _described(wanted[name]) is None:
                    _remove(tree, name)
            for name in every:
                if _described(wanted[name]) not in (None, _described(tree / name)):
                    _install(wanted[name], tree / name)
            fs.write_json(state, names)
            digest = _digest(scratch, names, base_version)
        finally:
            fs.remove_tree(scratch)
    return Tree(tree, base_version, series, digest, names)


def _names(raw: list[str]) -> tuple[str, ...]:
    return tuple(str(name) for name in raw)


def mend(pristine: Path, tree: Tree) -> tuple[str, ...]:
    """Restore the files of ``tree`` that its series does not change, from ``pristine``.

    Call it before the tree is compiled.  Files that share an inode are the same; all others are
    compared by content.  A restored file gets a new time, so that make compiles its dependents
    again.  Return the names of the restored files, sorted.
    """
    patched = set(tree.changed)
    mended = []
    with fs.lock(tree.path.with_name(f".{tree.path.name}.lock")):
        fs.check_unmounted(tree.path)
        wanted, there = dict(contents.walk(pristine)), dict(contents.walk(tree.path))
        # A directory that the source does not have goes after its content.
        for name in sorted(there.keys() - wanted.keys() - patched, reverse=True):
            path = tree.path / name
            if not stat.S_ISDIR(there[name].st_mode):
                path.unlink()
                mended.append(name)
            elif not any(path.iterdir()):
                path.rmdir()
        for name in sorted(wanted.keys() - patched):
            if _mend(pristine / name, wanted[name], tree.path / name, there.get(name)):
                mended.append(name)
    if mended:
        logger.warning(
            "%s: %d files differed from the source and were restored: %s%s",
            tree.path,
            len(mended),
            ", ".join(sorted(mended)[:_MENDED_SAID]),
            " …" if len(mended) > _MENDED_SAID else "",
        )
    return tuple(sorted(mended))


def _mend(origin: Path, wanted: os.stat_result, path: Path, there: os.stat_result | None) -> bool:
    """Restore ``path`` from ``origin``; return whether it was different."""
    kind = stat.S_IFMT(wanted.st_mode)
    if there is not None and stat.S_IFMT(there.st_mode) != kind:
        fs.remove_tree(path) if stat.S_ISDIR(there.st_mode) else path.unlink()
        there = None
    if kind == stat.S_IFDIR:
        path.mkdir(exist_ok=True)
        return False
    if there is not None and (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
        return False
    same = (
        there is not None
        and there.st_mode == wanted.st_mode
        and there.st_size == wanted.st_size
        and contents.content(path, kind) == contents.content(origin, kind)
    )
    if same and there is not None and there.st_mtime_ns != wanted.st_mtime_ns:
        # It was restored before, and has its own time since.
        return False
    scratch = path.with_name(f".{path.name}.mending")
    scratch.unlink(missing_ok=True)
    # A new hard link lets the next look compare inodes.
    if not (same and _link(origin, scratch)):
        if same:
            return False
        shutil.copy2(origin, scratch, follow_symlinks=False)
        os.utime(scratch, follow_symlinks=False)
        fs.sync(scratch)
    scratch.replace(path)
    return not same


def _link(origin: Path, path: Path) -> bool:
    try:
        os.link(origin, path, follow_symlinks=False)
    except OSError:
        # Another file system, or one without hard links.
        return False
    return True


def foresee(pristine: Path, series: Series, tree: Path, *, base_version: str) -> Tree:
    """Return the result of :func:`apply` after the same checks, but change nothing."""
    with aside(pristine, series) as (scratch, names):
        digest = _digest(scratch, names, base_version)
    return Tree(tree, base_version, series, digest, names)


@contextlib.contextmanager
def aside(pristine: Path, series: Series) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield a scratch directory with the files that a series changes, and their names.

    Raises BuildError as :func:`apply` does.
    """
    with tempfile.TemporaryDirectory(prefix="cplayground-") as name:
        scratch = Path(name)
        yield scratch, _patch_aside(pristine, series, scratch)


def _digest(patched: Path, names: tuple[str, ...], base_version: str) -> str:
    digest = hashlib.sha256(base_version.encode())
    for name in names:
        digest.update(os.fsencode(f"{name} {_described(patched / name) or 'absent'}\n"))
    return digest.hexdigest()


def _described(path: Path) -> str | None:
    """Describe a file of a tree by type, mode and content; return None if it is missing."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if not path.is_file():
        return None
    mode = path.stat().st_mode & 0o777
    return ("" if mode == 0o644 else f"{mode:o} ") + fs.sha256_file(path)


def _patch_aside(pristine: Path, series: Series, scratch: Path) -> tuple[str, ...]:
    """Make the files that a series changes in ``scratch``, check them, and return their names."""
    refused, said = _try_patches(pristine, series, scratch)
    if refused or said:
        raise BuildError(
            f"the series {series.name} does not apply",
            expected="every hunk in its place, with no fuzz",
            found="\n".join(map(str, refused)) or said,
            hint="compare the functions with the source, and refresh the patch; "
            "fuzz is never the answer, because it may export the wrong function",
        )
    names = _changed(pristine, series, scratch)
    check_effect(pristine, scratch, series, names)
    return names


def _changed(pristine: Path, series: Series, scratch: Path) -> tuple[str, ...]:
    """Return the files that differ from the pristine ones; give new files a fixed mode."""
    known = set(touched(series))
    made = {
        path.relative_to(scratch).as_posix()
        for path in scratch.rglob("*")
        if path.is_symlink() or path.is_file()
    }
    for name in made:
        path = scratch / name
        if not os.path.lexists(pristine / name):
            # A patch can set only one bit of the mode.
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        elif name not in known:
            raise UserError(
                f"the series {series.name} changes {name}, which its patches do not name clearly",
                hint="write the patch as 'git diff' or 'diff -u' does",
            )
    return tuple(
        sorted(
            name
            for name in known | made
            if _described(pristine / name) != _described(scratch / name)
        )
    )


def _copy(pristine: Path, patch: Patch, name: str, scratch: Path) -> None:
    """Copy a file with its parent directories, or those of them that exist."""
    path = Path(name)
    for directory in (*reversed(path.parents), path):
        source, copy = pristine / directory, scratch / directory
        if source.is_symlink() and directory != path:
            raise UserError(
                f"{patch.path} changes {name}, which leads through the symbolic link {directory}",
                hint="name the file by its own directory",
            )
        if os.path.lexists(copy):
            continue
        if source.is_dir() and not source.is_symlink():
            copy.mkdir()
        elif os.path.lexists(source):
            shutil.copy2(source, copy, follow_symlinks=False)


def _try_patches(pristine: Path, series: Series, scratch: Path) -> tuple[tuple[Refusal, ...], str]:
    """Apply a series to copies of its files; return the refused hunks, and patch(1)'s output.

    The output is empty if the whole series applied.
    """
    for patch in series.patches:
        for name in sorted(named(patch)):
            _copy(pristine, patch, name, scratch)
    refused: list[Refusal] = []
    said = ""
    for patch in series.patches:
        before = {name: text_of(scratch / name) for name in named(patch)}
        completed = run(
            [
                *("patch", "-p1", "--fuzz=0", "--batch", "--forward"),
                *("--no-backup-if-mismatch", "--reject-file=-"),
            ],
            cwd=scratch,
            env={"QUOTING_STYLE": "literal"},
            data=content(patch.path),
            timeout_s=_PATCH_TIMEOUT_S,
            check=False,
        )
        words = (completed.stdout + completed.stderr).strip()
        logger.debug("patch %s: %s", patch.path.name, words)
        if completed.returncode == 0:
            continue
        if os.strerror(errno.ENOSPC) in words:
            raise InfrastructureError(f"{patch.path.name} cannot be applied", found=words)
        if completed.returncode != 1:
            raise UserError(f"{patch.path} is not a patch for patch(1)", found=words)
        said += f"{patch.path.name}: {words}\n"
        changed = changes(patch)
        for name, number in _failed(completed.stdout):
            if name in changed:
                hunk = changed[name][number - 1]
                function = hunks.function_of(hunk, name)
                source = str(changed[name].source_file).partition("/")[2]
                text = before.get(name) or before.get(source)
                reason = hunks.refusal_reason(text, hunk, function)
                refused.append(Refusal(patch.path.name, name, number, function, reason))
    return tuple(refused), said.strip()


def _failed(said: str) -> Iterator[tuple[str, int]]:
    name = ""
    for line in said.splitlines():
        if match := _SAID.match(line):
            name = match["file"] or name
            if match["hunk"]:
                yield name, int(match["hunk"])


def _link_tree(pristine: Path, tree: Path) -> None:
    with fs.fresh_directory(tree) as fresh:
        fresh.rmdir()
        completed = run(["cp", "-a", "--link", pristine, fresh], timeout_s=600, check=False)
        if completed.returncode != 0:
            # Another file system, or one without hard links.
            fs.remove_tree(fresh)
            run(["cp", "-a", pristine, fresh], timeout_s=1800)


def _remove(tree: Path, name: str) -> None:
    """Remove a file, and like patch(1) the directories that it leaves empty."""
    path = tree / name
    if path.is_dir() and not path.is_symlink():
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
    for directory in list(Path(name).parents)[:-1]:
        try:
            (tree / directory).rmdir()
        except OSError:
            break


def _install(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    # A new inode, because the old one is a hard link; a new time, so that make sees it.
    if source.is_symlink():
        fresh = destination.with_name(f".{destination.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(source.readlink())
        fresh.replace(destination)
    else:
        fs.write_atomic(destination, source.read_bytes(), mode=source.stat().st_mode & 0o777)
