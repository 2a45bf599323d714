"""The programs that run inside guests: static, and compiled in the compile root."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kbuild import roots
from kbuild.model import Root
from kbuild.roots import Bind

SOURCES = Path(__file__).parent / "guest"
FLAGS = ("-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")


def compile_programs(
    root: Root, compiler: str, names: Sequence[str], out: Path, *, log: Path
) -> dict[str, Path]:
    """Compile tests/guest/<name>.c for each name into ``out``; raises BuildError."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        roots.enter(
            root,
            [compiler, *FLAGS, "-o", f"/mnt/out/{name}", f"/mnt/guest/{name}.c"],
            timeout_s=120,
            binds=[Bind(SOURCES, "/mnt/guest"), Bind(out, "/mnt/out", writable=True)],
            log=log,
        )
    return {name: out / name for name in names}
