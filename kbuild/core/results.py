"""Keep results: make them when an input changed or an output is damaged, and only then.

Every result is made in the same order: lock, reason, log line, outputs, stamp.  The old stamp is
removed before the outputs are made.  So a killed run leaves no stamp, and the next run makes the
result again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from kbuild.core import fs, stamp

logger = logging.getLogger(__name__)

T = TypeVar("T")

_UNREADABLE = "the record of what it holds is damaged"


@dataclass(frozen=True)
class Result(Generic[T]):
    """Something made from inputs: why it would be made, what is there, and how to get it."""

    reason: Callable[[], str | None]  # why it has to be made; None if not; changes nothing
    read: Callable[[], T | None]  # what is there; None if its record cannot be read
    ensure: Callable[[], T]  # what is there, after it was made if there was a reason
    mark: Path | None = None  # its stamp, if one stamp vouches for all of it


def kept(
    mark: Path,
    inputs: Mapping[str, str],
    make: Callable[[Path], Iterable[Path]],
    read: Callable[[], T | None],
    *,
    lock: Path | None,
    doing: str,
    fresh: bool = False,
    check: Callable[[], str | None] = lambda: None,
    before: Callable[[str], object] = lambda _: None,
) -> Result[T]:
    """Return a result whose inputs and outputs are recorded in the stamp ``mark``.

    ``make`` is given the directory of ``mark``, and returns the outputs in it.  With ``fresh``
    it is given an empty directory, which then takes that one's place.  ``check`` gives a reason
    that the stamp does not know.  ``before`` is given the reason, and called while the stamp
    and the last outputs are still there.  ``doing`` begins the line that the log has for it.
    Without ``lock`` the caller holds one.
    """
    home = mark.parent

    def unread() -> str | None:
        return _UNREADABLE if read() is None else None

    def reason() -> str | None:
        return check() or stamp.reason(mark, inputs) or unread()

    def ensure() -> T:
        with fs.lock(lock) if lock else contextlib.nullcontext():
            why = check() or stamp.due(mark, inputs) or unread()
            if why is not None:
                before(why)
                logger.info("%s: %s", doing, why)
                _make()
            result = read()
        assert result is not None, f"{mark} is there, and what it vouches for is not"
        return result

    def _make() -> None:
        began = time.monotonic()
        if fresh:
            # Scratch directories of killed runs; the lock proves that no other run works in them.
            fs.remove_leftovers(home)
            with fs.fresh_directory(home) as scratch:
                outputs = [*make(scratch)]
                took = time.monotonic() - began
                stamp.write(scratch / mark.name, inputs, outputs, took, sync=False)
        else:
            mark.unlink(missing_ok=True)
            outputs = [*make(home)]
            stamp.write(mark, inputs, outputs, time.monotonic() - began)

    return Result(reason, read, ensure, mark)
