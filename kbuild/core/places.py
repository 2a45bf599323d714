"""Guard the two directories that runs write to: marked, closed to other users, and locked.

``clean`` removes their content, and root writes there.  So a run only uses a directory that it
makes, one that it finds empty, or one with the mark of an earlier run.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbuild.core import fs
from kbuild.core.errors import InfrastructureError, UserError
from kbuild.core.model import Settings

# Backup programs know this name: https://bford.info/cachedir/.
TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
_MADE = "# A run of cplayground-kernel made this directory; its task 'clean' removes it."
_FOUND = "# A run of cplayground-kernel found this directory empty; its task 'clean' empties it."
# Every new ext4 file system contains it.
_FOREIGN = "lost+found"
# Programs in a root write the compiler cache, and they may have their own user ID.
_SANDBOXED = "ccache"

_SUITES = "bullseye|bookworm|trixie|trixie-backports"
# Early versions set no mark.  A directory is theirs if they could have made each name in it, and
# if it has a name that only they give.  Both lists stay as they are.
_EARLIER = {
    "build_dir": (
        rf"{_SUITES}|bench|logs|repo|test|manifest\.json|repo\.json|repo\.lock|\.publish\.lock"
        r"|\.(repo|reprepro|manifest\.json|repo\.json)\..*",
        rf"\.publish\.lock|({_SUITES})/\.source-.*\.lock|logs/(inv-(apt|pip)|root-({_SUITES})-.*)\.log",
    ),
    "cache_dir": (
        "accelerator|ccache|debs|dists|extracts|files|icecream|images|locks|objects|partial|roots"
        "|snapshots|trees",
        rf"locks/dist-({_SUITES}).*\.lock",
    ),
}
# The cache's shelves with entries that age; an entry is a file or a directory.  ccache has a
# limit of its own, package lists are replaced, and locks must stay where they are.
SHELVES = (
    "debs",
    "extracts",
    "files",
    "icecream",
    "images",
    "partial",
    "roots",
    "snapshots",
    "trees",
)


@dataclass(frozen=True)
class State:
    """The content of a directory, all seen at one time."""

    there: bool = False
    locked: bool = False  # the file whose lock each run holds exists
    note: str = ""  # from our tag: _MADE or _FOUND
    entries: tuple[Path, ...] = ()  # the rest

    @property
    def marked(self) -> bool:
        """Return whether both files of our mark exist and neither is a link."""
        return self.locked and bool(self.note)

    @property
    def bare(self) -> bool:
        """Return whether the directory is empty or does not exist."""
        return not (self.locked or self.note or self.entries)

    @property
    def made(self) -> bool:
        """Return whether we also made the directory itself."""
        return self.note == _MADE


@dataclass(frozen=True)
class Place:
    """A directory that runs write to."""

    key: str  # in the configuration: build_dir or cache_dir
    path: Path
    project: Path

    @property
    def mark(self) -> Path:
        """Return the path of our lock file; it is empty, and its name identifies us."""
        return self.path / f".cplayground-kernel-{self.key.removesuffix('_dir')}"

    @property
    def files(self) -> tuple[Path, Path]:
        """Return the two files of our mark."""
        return self.mark, self.path / TAG

    @property
    def hint(self) -> str:
        """Return how to choose another directory."""
        name = f"INVOKE_{self.key.upper()}"
        return f"give {self.key} a directory of its own: in {name}, or in invoke.yaml"

    def look(self) -> State:
        """Return its content, read twice because a run or a clean may be changing it."""
        state, before = self._glance(), None
        while state is None or state != before:
            state, before = self._glance(), state
        return state

    def _glance(self) -> State | None:
        try:
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return State()
        try:
            locked = _content(self.mark.name, directory) is not None
            lines = (_content(TAG, directory) or "").splitlines()
            note = lines[1] if lines[:1] == [_SIGNATURE] and len(lines) > 1 else ""
            note = note if note in (_MADE, _FOUND) else ""
            with os.scandir(directory) as listed:
                names = sorted(one.name for one in listed)
            known = [self.mark.name, _FOREIGN, *([TAG] if note else [])]
            # A tag has a temporary name while it is written.
            rest = [one for one in names if one not in known and not one.startswith(f".{TAG}.")]
            # clean moves a directory away before it removes the mark.
            if os.path.samestat(os.fstat(directory), self.path.stat()):
                return State(True, locked, note, tuple(self.path / name for name in rest))
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)
        return None


def both(settings: Settings) -> tuple[Place, Place]:
    """Return the directory of results and that of caches."""
    return (
        Place("build_dir", settings.build, settings.project),
        Place("cache_dir", settings.cache, settings.project),
    )


def check(settings: Settings) -> None:
    """Raise UserError unless a run may write to both directories.

    Each must have a safe position, be ours or become ours, and be closed to other users.
    """
    _check_positions(settings)
    for place in both(settings):
        check_owners(place)
        _check_ours(place, place.look())
        check_entries(place)


@contextlib.contextmanager
def held(settings: Settings, *, build: bool = True) -> Iterator[None]:
    """Mark the directories as ours, making them if needed, and keep ``clean`` away from them.

    Without ``build`` only the cache is used; even a dry run writes package indexes there.
    Raises UserError as :func:`check` does, before it changes anything.
    """
    check(settings)
    with contextlib.ExitStack() as stack:
        for place in both(settings)[0 if build else 1 :]:
            if not place.look().there:
                stack.callback(_drop_unused, place)
            _enter(place, stack)
            # A clean may have run between the two files of the mark; now it cannot.
            mark(place)
        yield


def _enter(place: Place, stack: contextlib.ExitStack) -> None:
    while True:
        mark(place)
        # A clean may have removed it while we waited for the lock.
        with contextlib.suppress(FileNotFoundError):
            stack.enter_context(fs.lock(place.mark, shared=True, create=False))
            return


@contextlib.contextmanager
def taken(
    settings: Settings, wanted: Sequence[Place], *, timeout_s: float = fs.LOCK_TIMEOUT_S
) -> Iterator[list[Place]]:
    """Yield the existing places of ``wanted`` once no run uses them; a dry run does not wait.

    Raises UserError before it waits if one lacks our mark or others may change it, and
    InfrastructureError if a run uses them for longer than ``timeout_s``.
    """
    _check_positions(settings)
    there = []
    for place in wanted:
        state = place.look()
        if not (state.marked or state.entries):
            # Nothing to remove: another process is writing or removing the mark.
            continue
        there.append(place)
        check_owners(place)
        _check_ours(place, state)
        _check_alone(place, place.files)
        if not state.marked:
            raise UserError(
                f"{place.path} does not carry our mark, so nothing in it was removed",
                expected=f"{TAG} and {place.mark.name}, which every run writes there",
                found=_listing(state),
                hint="if an earlier version of this pipeline made it, './inv fetch' marks it;"
                f" otherwise, {place.hint}",
            )
    with contextlib.ExitStack() as stack:
        for place in [] if settings.dry else [*there]:
            try:
                stack.enter_context(fs.lock(place.mark, timeout_s=timeout_s, create=False))
            except FileNotFoundError:
                # Another clean was faster.
                there.remove(place)
        yield there


def mark(place: Place) -> None:
    """Make a directory ours: create it, or take an empty one or one of an earlier version.

    A directory that we create has its mark from the start.  Raises UserError for any other
    directory, and for one that other users may change.
    """
    state = place.look()
    while not state.there:
        place.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = _beside(place)
        scratch.chmod(0o755)
        _write(place, scratch, _MADE)
        try:
            scratch.rename(place.path)
        except OSError as error:
            fs.remove_tree(scratch)
            # Another run was faster.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        state = place.look()
    check_owners(place)
    if not state.marked:
        _check_ours(place, state)
        earlier = bool(state.entries) and not state.locked
        _write(place, place.path, state.note or (_MADE if earlier else _FOUND))


def _write(place: Place, directory: Path, note: str) -> None:
    fs.write_atomic(directory / TAG, f"{_SIGNATURE}\n{note}\n# See https://bford.info/cachedir/\n")
    # Never replaced, because another run may already hold its lock.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(directory / place.mark.name, os.O_CREAT | os.O_EXCL, 0o644))


def unmark(place: Place) -> None:
    """Remove the mark of an otherwise empty directory, and the directory if we made it."""
    state = place.look()
    if state.made and not state.entries:
        directory = _beside(place)
        try:
            # In one step, so that no run finds it with half of its mark.
            place.path.rename(directory)
        except OSError:
            # A mount point cannot be renamed, and stays.
            directory.rmdir()
        else:
            for path in _listed(directory):
                if path.name != _FOREIGN:
                    path.unlink()
            with contextlib.suppress(OSError):
                directory.rmdir()
            return
    for path in (place.path / TAG, place.mark):
        path.unlink(missing_ok=True)


def _beside(place: Place) -> Path:
    return Path(tempfile.mkdtemp(dir=place.path.parent, prefix=f".{place.path.name}."))


def _drop_unused(place: Place) -> None:
    """Remove a directory that this run made and left empty."""
    if place.look().entries:
        return
    with (
        contextlib.suppress(FileNotFoundError, InfrastructureError),
        fs.lock(place.mark, timeout_s=0, create=False),
    ):
        if not place.look().entries:
            unmark(place)


def _check_positions(settings: Settings) -> None:
    build, cache = both(settings)
    for place in (build, cache):
        check_position(place)
    if build.path.is_relative_to(cache.path) or cache.path.is_relative_to(build.path):
        raise UserError(
            "build_dir and cache_dir overlap, so 'clean' would remove both",
            found=f"{build.path} and {cache.path}",
            hint=cache.hint,
        )


def check_position(place: Place, never: str = "which 'clean' would remove") -> None:
    """Raise UserError if the directory's position is not allowed, whatever its content.

    ``never`` says why neither the checkout nor the user's home may lie in it.
    """
    valued = [place.project]
    with contextlib.suppress(RuntimeError):
        # Some users have no home.
        valued.append(Path.home())
    for precious in valued:
        if precious.resolve().is_relative_to(place.path):
            raise UserError(
                f"{place.key} is {place.path}, {never}",
                expected="a directory that holds nothing else",
                found=f"{precious} lies in it" if precious != place.path else None,
                hint=place.hint,
            )
    for there in (place.path, *place.path.parents):
        status = _status(there)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise UserError(
                f"{place.key} is {place.path}, which cannot be a directory",
                found=f"{there}, which is not a directory",
                hint=place.hint,
            )
    if not place.look().bare:
        return
    # A new directory inside a part of the source would count as source.
    within = [one for one in place.path.parents if one != place.project]
    within = [one for one in within if one.is_relative_to(place.project)]
    for parent in [] if any(map(_carries_mark, within)) else within:
        siblings = (path for path in _listed(parent) if not place.path.is_relative_to(path))
        others = [path for path in siblings if not _carries_mark(path)]
        if others:
            raise UserError(
                f"{place.key} is {place.path}, which lies in a part of the checkout",
                expected="a directory outside of the checkout, or directly below it",
                found=f"{parent} holds {', '.join(path.name for path in others[:3])}",
                hint=place.hint,
            )


def _check_ours(place: Place, state: State) -> None:
    # A backup program's user may have removed the tag.
    if state.locked or not state.entries:
        return
    names, sign = _EARLIER[place.key]
    foreign = [path for path in state.entries if not re.fullmatch(names, path.name)]
    below = (path for entry in state.entries for path in (entry, *_listed(entry)))
    known = any(re.fullmatch(sign, str(path.relative_to(place.path))) for path in below)
    if foreign or not known:
        raise UserError(
            f"{place.key} is {place.path}, which contains files that we did not make",
            expected="a directory that does not exist yet, an empty one, or one with the mark of"
            f" an earlier run ({TAG} and {place.mark.name})",
            found=_listing(state),
            hint=place.hint,
        )


def check_owners(place: Place) -> None:
    """Raise UserError if other users may change the directory or replace it."""
    trusted = _trusted(place)
    for path in (place.path, *place.path.parents):
        if path == place.project:
            # The checkout's code runs anyway, so its writers need no way through build/.
            return
        status = _status(path)
        if status and (why := _open_to(path, status, trusted, sticky=path != place.path)):
            raise UserError(
                f"{place.key} is {place.path}, which other users may change",
                expected="a directory that only root, this user or the checkout's owner may"
                " write to; the same for every parent (or with a sticky bit, as /tmp)",
                found=why,
                hint=f"correct owner and mode if its content is yours; or {place.hint}",
            )


def check_entries(place: Place) -> None:
    """Raise UserError if other users made, or may change, an entry one or two levels below."""
    _check_alone(place, (*place.files, *place.look().entries))


def _check_alone(place: Place, paths: Sequence[Path]) -> None:
    trusted = _trusted(place)
    for path in paths:
        mapped = path.name == _SANDBOXED
        for one in (path, *([] if path.is_symlink() else _listed(path))):
            try:
                status = one.lstat()
                why = _open_to(one, status, trusted, mapped=mapped)
                if why is None and one == path and path.is_symlink():
                    # A shelf may be a link to another disk.
                    why = _open_to(one, one.stat(), trusted)
            except FileNotFoundError:
                continue
            if why is not None:
                raise UserError(
                    f"{one} may be changed by other users, so it is neither read nor written",
                    expected="entries that belong to root, this user or the checkout's owner,"
                    " and that no other user may write to",
                    found=why,
                    hint="find out who made it; './inv clean"
                    f"{' --cache' if place.key == 'cache_dir' else ''}' removes everything there",
                )


def _trusted(place: Place) -> set[int]:
    # The checkout's owner decides which code runs in any case.
    return {0, os.geteuid(), place.project.stat().st_uid}


def _open_to(
    path: Path,
    status: os.stat_result,
    trusted: set[int],
    *,
    sticky: bool = False,
    mapped: bool = False,
) -> str | None:
    """Return why other users may change a file, or None if they may not.

    ``sticky`` allows directories such as /tmp.  ``mapped`` allows an owner who cannot log in.
    """
    if status.st_uid not in trusted:
        name = _user(status.st_uid)
        if name is not None or not mapped:
            return f"{path} belongs to {name or f'uid {status.st_uid}'}"
    mode = status.st_mode
    if stat.S_ISLNK(mode) or (sticky and mode & stat.S_ISVTX):
        return None
    if mode & stat.S_IWOTH:
        return f"{path} has mode {stat.S_IMODE(mode):04o}"
    if mode & stat.S_IWGRP:
        # With an access control list, these bits are the upper limit of all entries (acl(5)).
        if "system.posix_acl_access" in _attributes(path):
            return f"{path} has an access control list (getfacl)"
        if not _private(status):
            return f"{path} has mode {stat.S_IMODE(mode):04o} and the group {status.st_gid}"
    return None


def _attributes(path: Path) -> list[str]:
    # Some file systems have none, and the file may be gone by now.
    with contextlib.suppress(OSError):
        return os.listxattr(path)
    return []


def _private(status: os.stat_result) -> bool:
    """Return whether only the owner is in the file's group, as in Debian's user private groups."""
    try:
        members = set(grp.getgrgid(status.st_gid).gr_mem)
    except KeyError:
        return False
    members.update(one.pw_name for one in pwd.getpwall() if one.pw_gid == status.st_gid)
    return members <= {_user(status.st_uid), "root"}


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _content(name: str, directory: int) -> str | None:
    """Return the beginning of a regular file; None for a link or a missing file."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return stream.read(1000).decode(errors="replace") if regular else None


def _carries_mark(path: Path) -> bool:
    return any(Place(key, path, path).look().marked for key in _EARLIER)


def _listed(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listing(state: State) -> str:
    names = [path.name for path in state.entries]
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"no such mark, and {', '.join(names[:5]) or 'nothing else'}{more}"
