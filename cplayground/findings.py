"""Find the missing close() of a pipe's write end, with proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cplayground.snapshot import Holder, Name, Snapshot


class Finding(NamedTuple):
    """One fact that a person should know about a pipe."""

    level: str  # "error", "warning" or "note"
    sentence: str  # "PID 19 (sort) waits for the end of pipe:[12], but holds its write end as 4."
    pipe: Name | None
    waiting: tuple[Holder, ...]  # descriptors that wait for the end
    missing_close: tuple[Holder, ...]  # the write ends that keep it from coming
    evidence: tuple[str, ...]  # one fact a line, with its source


@dataclass(frozen=True)
class Host:
    """Facts that :func:`look` read from the host's /proc."""


def look(snapshot: Snapshot, *, proc: str = "/proc") -> Host:
    """Read what a proof needs of the processes of a snapshot that was taken just now."""
    return Host()


def check(snapshot: Snapshot, host: Host | None = None) -> tuple[Finding, ...]:
    """Return findings: errors first, then warnings, then notes.

    Without ``host``, for example of a text from a file, nothing is proved: there are no errors.
    """
    return ()
