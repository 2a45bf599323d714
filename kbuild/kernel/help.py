"""Help for a compiler from other machines: what it adds to a root and its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core.model import Root
from kbuild.core.sandbox import Bind

_HOST_LENGTH = 253  # RFC 1035


@dataclass(frozen=True)
class Help:
    """What the compilers of one build get beside what every program in the root has."""

    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    network: bool = False  # whether they may use the host's


def is_host(name: str) -> bool:
    """Say whether a name could be looked up: no part of it is empty or too long."""
    try:
        return len(name.encode("idna")) <= _HOST_LENGTH
    except UnicodeError:
        return False


def resolver(root: Root) -> tuple[Bind, ...]:
    """Show the host's names and name servers, where the root has files of that name."""
    names = (Path("/etc/resolv.conf"), Path("/etc/hosts"))
    return tuple(
        Bind(path, str(path))
        for path in names
        if path.is_file() and (root.path / path.relative_to("/")).is_file()
    )
