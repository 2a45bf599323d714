"""A release: the packages of one kernel version, and its way to the servers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kbuild.ship.release import Release


class State(StrEnum):
    """How far a release has come; only the packages of staged and promoted ones are in an index."""

    BUILT = "built"
    GATED = "gated"
    REFUSED = "refused"
    STAGED = "staged"
    PROMOTED = "promoted"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class View:
    """An archive as servers will see it when a release is staged; nothing points to it yet.

    ``root`` has dists/ and pool/, and can be served as it is.  ``stable`` and ``staging`` are
    names in dists/.  ``keyring`` is the package with the keys that signed it.
    """

    root: Path
    stable: str
    staging: str
    keyring: Path
    candidate: Release
    promoted: tuple[Release, ...]  # of the same target, the newest first
