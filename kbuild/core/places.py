"""The two directories that runs write to: marked as ours, closed to other users, held by a lock.

``clean`` removes what lies in them, and root writes there.  So a run uses a directory that it
makes, one that it finds empty, or one that carries the mark of an earlier run.
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

# Known to backup programs: https://bford.info/cachedir/.
TAG = "CACHEDIR.TAG"
_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
_MADE = "# A run of cplayground-kernel made this directory; its task 'clean' removes it."
_FOUND = "# A run of cplayground-kernel found this directory empty; its task 'clean' empties it."
# A new file system has it.
_FOREIGN = "lost+found"
# The compiler cache is written by what runs in a root, which may have a user ID of its own.
_SANDBOXED = "ccache"

_SUITES = "bullseye|bookworm|trixie|trixie-backports"
# Earlier versions set no mark.  Theirs is a directory in which each name is one that they gave,
# and which has one that nobody else gives; both lists stay as they are.
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
# The cache's shelves whose entries grow old, a file or a directory each.  The compiler cache
# has a limit of its own; lists of packages are replaced; and locks must stay where they are.
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
    """What was found in a directory, all at one time."""

    there: bool = False
    locked: bool = False  # the file is in it whose lock each run holds
    note: str = ""  # of our tag: _MADE or _FOUND
    entries: tuple[Path, ...] = ()  # the rest

    @property
    def marked(self) -> bool:
        """Whether it carries both files of our mark, neither of them a link."""
        return self.locked and bool(self.note)

    @property
    def bare(self) -> bool:
        """Whether nothing lies in it, or it is not there."""
        return not (self.locked or self.note or self.entries)

    @property
    def made(self) -> bool:
        """Whether we made the directory itself, too."""
        return self.note == _MADE


@dataclass(frozen=True)
class Place:
    """A directory that runs write to."""

    key: str  # of the configuration: build_dir or cache_dir
    path: Path
    project: Path

    @property
    def mark(self) -> Path:
        """Our file in it, whose lock each run holds.  It is empty: its name says it all."""
        return self.path / f".cplayground-kernel-{self.key.removesuffix('_dir')}"

    @property
    def files(self) -> tuple[Path, Path]:
        """The two files of our mark."""
        return self.mark, self.path / TAG

    @property
    def hint(self) -> str:
        """How another directory is chosen."""
        name = f"INVOKE_{self.key.upper()}"
        return f"give {self.key} a directory of its own: in {name}, or in invoke.yaml"

    def look(self) -> State:
        """Return what lies in it, seen twice: a run or a clean may be at work there."""
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
            # A tag that is being written has another name at first.
            rest = [one for one in names if one not in known and not one.startswith(f".{TAG}.")]
            # Clean takes a directory away before it removes the mark.
            if os.path.samestat(os.fstat(directory), self.path.stat()):
                return State(True, locked, note, tuple(self.path / name for name in rest))
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)
        return None


def both(settings: Settings) -> tuple[Place, Place]:
    """Return where results lie, and where caches do."""
    return (
        Place("build_dir", settings.build, settings.project),
        Place("cache_dir", settings.cache, settings.project),
    )


def check(settings: Settings) -> None:
    """Raise UserError unless a run may write to both directories.

    Each must be a place of its own; ours, or to be ours; and nobody else may change it.
    """
    _check_positions(settings)
    for place in both(settings):
        _check_owners(place)
        _check_ours(place, place.look())
        check_entries(place)


@contextlib.contextmanager
def held(settings: Settings, *, build: bool = True) -> Iterator[None]:
    """Mark the directories as ours, made if they are not there, and keep ``clean`` away from them.

    Without ``build`` only the cache is touched, which even a dry run writes indexes to.  Raises
    UserError as :func:`check` does, and has changed nothing then.
    """
    check(settings)
    with contextlib.ExitStack() as stack:
        for place in both(settings)[0 if build else 1 :]:
            if not place.look().there:
                stack.callback(_drop_unused, place)
            _enter(place, stack)
            # A clean may have come between the two files of the mark; now none can.
            mark(place)
        yield


def _enter(place: Place, stack: contextlib.ExitStack) -> None:
    while True:
        mark(place)
        # It may have been cleaned while we waited for that.
        with contextlib.suppress(FileNotFoundError):
            stack.enter_context(fs.lock(place.mark, shared=True, create=False))
            return


@contextlib.contextmanager
def taken(settings: Settings, wanted: Sequence[Place]) -> Iterator[list[Place]]:
    """Yield those of ``wanted`` that are there, once no run uses them; a dry run does not wait.

    Raises UserError, before it waits, when one does not carry our mark or others may change it.
    """
    _check_positions(settings)
    there = []
    for place in wanted:
        state = place.look()
        if not (state.marked or state.entries):
            # There is nothing to remove; half a mark is being written, or removed.
            continue
        there.append(place)
        _check_owners(place)
        _check_ours(place, state)
        _check_alone(place, place.files)
        if not state.marked:
            raise UserError(
                f"{place.path} does not carry our mark, so nothing in it is removed",
                expected=f"{TAG} and {place.mark.name}, which a run writes there",
                found=_listing(state),
                hint="the next run marks it, since only names of an earlier version are in it:"
                f" './inv fetch'; if that is not what it is, {place.hint}",
            )
    with contextlib.ExitStack() as stack:
        for place in [] if settings.dry else [*there]:
            try:
                stack.enter_context(fs.lock(place.mark, create=False))
            except FileNotFoundError:
                # Another clean was faster.
                there.remove(place)
        yield there


def mark(place: Place) -> None:
    """Make a directory ours: make it, or take one that is empty or of an earlier version.

    One that we make has its mark from the start.  Raises UserError for any other, and for one
    that others may change.
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
    _check_owners(place)
    if not state.marked:
        _check_ours(place, state)
        earlier = bool(state.entries) and not state.locked
        _write(place, place.path, state.note or (_MADE if earlier else _FOUND))


def _write(place: Place, directory: Path, note: str) -> None:
    fs.write_atomic(directory / TAG, f"{_SIGNATURE}\n{note}\n# See https://bford.info/cachedir/\n")
    # Never replaced: another run may hold its lock by now.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(directory / place.mark.name, os.O_CREAT | os.O_EXCL, 0o644))


def unmark(place: Place) -> None:
    """Remove the mark of a directory that is empty but for it, and the directory if we made it."""
    state = place.look()
    if state.made and not state.entries:
        directory = _beside(place)
        try:
            # At once: no run is to find it with half of its mark.
            place.path.rename(directory)
        except OSError:
            # A mount point stays.
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
    """Remove a directory again in which the run that made it has left nothing."""
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
        _check_position(place)
    if build.path.is_relative_to(cache.path) or cache.path.is_relative_to(build.path):
        raise UserError(
            "build_dir and cache_dir lie in one another, so 'clean' would remove both",
            found=f"{build.path} and {cache.path}",
            hint=cache.hint,
        )


def _check_position(place: Place) -> None:
    """Raise UserError where no directory of ours may lie, whatever is there."""
    valued = [place.project]
    with contextlib.suppress(RuntimeError):
        # Not every user has a home.
        valued.append(Path.home())
    for precious in valued:
        if precious.resolve().is_relative_to(place.path):
            raise UserError(
                f"{place.key} is {place.path}, which 'clean' would remove",
                expected="a directory of its own",
                found=f"{precious} lies in it" if precious != place.path else None,
                hint=place.hint,
            )
    for there in (place.path, *place.path.parents):
        status = _status(there)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise UserError(
                f"{place.key} is {place.path}, which cannot be a directory",
                found=f"{there} is there, and is none",
                hint=place.hint,
            )
    if not place.look().bare:
        return
    # A new one below a part of the source would count as source.
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
    # The tag may have been removed, for a backup.
    if state.locked or not state.entries:
        return
    names, sign = _EARLIER[place.key]
    foreign = [path for path in state.entries if not re.fullmatch(names, path.name)]
    below = (path for entry in state.entries for path in (entry, *_listed(entry)))
    known = any(re.fullmatch(sign, str(path.relative_to(place.path))) for path in below)
    if foreign or not known:
        raise UserError(
            f"{place.key} is {place.path}, where things lie that we did not make",
            expected="a directory that is not there yet, an empty one, or one with the mark of"
            f" an earlier run ({TAG} and {place.mark.name})",
            found=_listing(state),
            hint=place.hint,
        )


def _check_owners(place: Place) -> None:
    """Raise UserError when others may change the directory, or put another in its place."""
    trusted = _trusted(place)
    for path in (place.path, *place.path.parents):
        if path == place.project:
            # Its code runs: who may write there needs no way through build/.
            return
        status = _status(path)
        if status and (why := _open_to(path, status, trusted, sticky=path != place.path)):
            raise UserError(
                f"{place.key} is {place.path}, which other users may change",
                expected="a directory that only root, this user or the checkout's owner may"
                " write to, and so all above it (or with a sticky bit, as /tmp)",
                found=why,
                hint=f"correct owner and mode if what lies there is yours; or {place.hint}",
            )


def check_entries(place: Place) -> None:
    """Raise UserError when others made, or may change, what lies one or two levels below."""
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
                    # A shelf may lie on another disk.
                    why = _open_to(one, one.stat(), trusted)
            except FileNotFoundError:
                continue
            if why is not None:
                raise UserError(
                    f"{one} is not ours alone, so nothing is read from it or written to it",
                    expected="entries that belong to root, this user or the checkout's owner,"
                    " and that nobody else may write to",
                    found=why,
                    hint="find out who made it; './inv clean"
                    f"{' --cache' if place.key == 'cache_dir' else ''}' removes it with all else",
                )


def _trusted(place: Place) -> set[int]:
    # The checkout's owner decides what runs in any case.
    return {0, os.geteuid(), place.project.stat().st_uid}


def _open_to(
    path: Path,
    status: os.stat_result,
    trusted: set[int],
    *,
    sticky: bool = False,
    mapped: bool = False,
) -> str | None:
    """Say why others may change a file, or None when they may not.

    ``sticky`` allows directories such as /tmp; ``mapped`` an owner who cannot log in.
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
        # With an access control list these bits are the most that anybody is given.
        if "system.posix_acl_access" in _attributes(path):
            return f"{path} has an access control list (getfacl)"
        if not _private(status):
            return f"{path} has mode {stat.S_IMODE(mode):04o} and the group {status.st_gid}"
    return None


def _attributes(path: Path) -> list[str]:
    # Not every file system has them, and a file may be gone by now.
    with contextlib.suppress(OSError):
        return os.listxattr(path)
    return []


def _private(status: os.stat_result) -> bool:
    """Say whether a file's group is its owner's alone, as on Debian each user has one."""
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
    """Return the beginning of a regular file; None for a link, and for one that is not there."""
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
