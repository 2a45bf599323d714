"""Use the archive's directory: only one that is ours, in a safe position, and locked.

It holds data, not a cache: no task empties it, and backups must include it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kbuild.core import fs, places
from kbuild.core.errors import UserError
from kbuild.core.model import Settings
from kbuild.core.places import Place

# Changes when an earlier version would misread the directory.
FORMAT = 1
# The mark that a directory is an archive of ours, and the file whose lock its users hold.
MARK = "archive.json"
# Every new ext4 file system contains it.
_FOREIGN = "lost+found"
# Pages and numbers about the releases, for people and monitoring.
OTHERS = (_FOREIGN, "status")
NEWER = "update this checkout, and run the same command again; nothing was changed"


@contextlib.contextmanager
def writing(settings: Settings) -> Iterator[Path]:
    """Yield the archive's directory for one writer; makes it, and waits for its other users.

    Raises UserError for a directory that is not ours, that others may change, or that a newer
    version of this project made.  Nothing is changed then.
    """
    check(settings)
    root = settings.archive
    with contextlib.ExitStack() as stack:
        while True:
            _make(root)
            # Somebody may have moved it away while this run waited.
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(fs.lock(root / MARK, create=False))
                break
        # A run of a newer version may have been here meanwhile.
        check(settings)
        yield root


@contextlib.contextmanager
def reading(settings: Settings) -> Iterator[Path | None]:
    """Yield the archive's directory while no writer changes it; None if there is no archive yet.

    It works on a read-only file system.  Raises UserError as :func:`writing` does.
    """
    if not check(settings):
        yield None
        return
    with fs.lock(settings.archive / MARK, shared=True, create=False):
        yield settings.archive


def none(settings: Settings) -> UserError:
    """Return the error of a task that needs an archive where there is none yet."""
    return UserError(
        f"there is no archive in {settings.archive}",
        hint="'./inv release' makes it; or correct archive_dir",
    )


def check(settings: Settings) -> bool:
    """Return whether there is an archive; raises UserError unless a run may use its directory."""
    place = Place("archive_dir", settings.archive, settings.project)
    places.check_position(place, never="which must hold nothing but the archive")
    for key, other in (
        ("build_dir", settings.build),
        ("cache_dir", settings.cache),
        ("keys_dir", settings.keys),
    ):
        if place.path.is_relative_to(other) or other.is_relative_to(place.path):
            raise UserError(
                f"archive_dir and {key} overlap",
                expected="an archive that 'clean' does not remove, and that serves no secret key",
                found=f"{place.path} and {other}",
                hint=place.hint,
            )
    places.check_owners(place)
    try:
        names = sorted(path.name for path in place.path.iterdir())
    except FileNotFoundError:
        return False
    others = [name for name in names if name != _FOREIGN and not name.startswith(f".{MARK}.")]
    if MARK in names:
        _check_format(place.path / MARK)
        return True
    if others:
        raise UserError(
            f"archive_dir is {place.path}, which contains files that we did not make",
            expected=f"a directory that does not exist yet, an empty one, or one with {MARK}",
            found=", ".join(others[:5]),
            hint=place.hint,
        )
    return False


def _check_format(mark: Path) -> None:
    with fs.open_own(mark, "rb") as stream:
        raw = stream.read(1000)
    try:
        found = int(json.loads(raw)["format"])
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"{mark} does not name the format of the archive",
            expected=f'{{"format": {FORMAT}}}',
            found=raw.decode(errors="replace"),
            hint="if this is an archive of ours, write the expected content to that file",
        ) from None
    if found > FORMAT:
        raise UserError(
            f"{mark.parent} was written by a newer version of this project",
            expected=f"format {FORMAT} or below",
            found=f"format {found}",
            hint=NEWER,
        )


def _make(root: Path) -> None:
    """Make the directory with its mark, or mark an empty one."""
    content = json.dumps({"format": FORMAT, "name": "archive of cplayground-kernel"}) + "\n"
    while not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
        try:
            # A web server reads it as a user of its own.
            scratch.chmod(0o755)
            fs.write_atomic(scratch / MARK, content)
            fs.rename(scratch, root)
        except OSError as error:
            fs.remove_tree(scratch)
            # Another run was faster.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    if not (root / MARK).exists():
        # Never replaced, because another run may already hold its lock.
        descriptor, name = tempfile.mkstemp(dir=root, prefix=f".{MARK}.")
        with os.fdopen(descriptor, "w") as stream:
            stream.write(content)
            os.fchmod(descriptor, 0o644)
            stream.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(name, root / MARK)
        Path(name).unlink()
