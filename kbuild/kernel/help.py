"""Describe help for a compiler from other machines, as additions to a root and an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kbuild.core.model import Root
from kbuild.core.sandbox import Bind

_HOST_LENGTH = 253  # RFC 1035


@dataclass(frozen=True)
class Help:
    """Additions for the compilers of one build, on top of those for every program in the root."""

    env: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    network: bool = False  # use the host's network


def is_host(name: str) -> bool:
    """Return whether a name can be looked up: no part of it is empty or too long."""
    try:
        return len(name.encode("idna")) <= _HOST_LENGTH
    except UnicodeError:
        return False


def resolver(root: Root) -> tuple[Bind, ...]:
    """Show the host's host names and name servers, if the root has files of these names."""
    names = (Path("/etc/resolv.conf"), Path("/etc/hosts"))
    return tuple(
        Bind(path, str(path))
        for path in names
        if path.is_file() and (root.path / path.relative_to("/")).is_file()
    )
