"""Compile the guest programs that tests run: those of the library and of tests/guest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kbuild.core.model import Settings
from kbuild.fetch import roots
from kbuild.guest import programs

_PROJECT = Path(__file__).resolve().parents[1]
_PLACES = ("tests/guest", "kbuild/lab/programs", "kbuild/measure/programs")


def source(name: str) -> Path:
    """Return the path of a guest program's C source."""
    (found,) = (path for place in _PLACES if (path := _PROJECT / place / f"{name}.c").exists())
    return found


def compile_programs(settings: Settings, suite: str, names: Iterable[str]) -> dict[str, Path]:
    """Compile guest programs in the suite's compile root; raises BuildError."""
    root = roots.compile_root(settings, suite)
    return programs.compile_programs(settings, root, map(source, names))
