"""Compile the static programs that run inside guests, and install them there."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from kbuild.core import fs, results, sandbox
from kbuild.core.model import Root, Settings
from kbuild.core.sandbox import Bind
from kbuild.core.suites import suite
from kbuild.guest.guest import Guest

# The programs' directory in a guest.
PLACE = "/tmp/programs"

# Headers that programs of several directories share.
_INCLUDE = Path(__file__).with_name("include")
_FLAGS = ("-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")


def compile_programs(settings: Settings, root: Root, sources: Iterable[Path]) -> dict[str, Path]:
    """Compile C programs in a compile root, and return them by name; raises BuildError.

    A program is compiled again only after a change to its source, a header next to the source or
    in ``include/``, the root or the flags.
    """
    out = settings.build / root.suite / "guest-programs"
    out.mkdir(parents=True, exist_ok=True)
    made = {}
    for source in sources:
        name = source.stem
        made[name] = out / name
        headers = sorted({*_INCLUDE.glob("*.h"), *source.parent.glob("*.h")})
        inputs = {path.name: fs.sha256_file(path) for path in headers} | {
            "source": fs.sha256_file(source),
            "root": root.digest,
            "flags": " ".join(_FLAGS),
        }
        results.kept(
            out / f"{name}.json",
            inputs,
            functools.partial(_compile, settings, root, source),
            functools.partial(Path, out),
            lock=out / f".{name}.lock",
            doing=f"compiling {source.name} for guests",
        ).ensure()
    return made


def _compile(settings: Settings, root: Root, source: Path, out: Path) -> list[Path]:
    sandbox.enter(
        root,
        [
            suite(root.suite).compiler,
            *_FLAGS,
            *("-I", "/mnt/include", "-o", f"/mnt/out/{source.stem}", f"/mnt/source/{source.name}"),
        ],
        timeout_s=120,
        binds=[
            Bind(_INCLUDE, "/mnt/include"),
            Bind(source.parent, "/mnt/source"),
            Bind(out, "/mnt/out", writable=True),
        ],
        log=settings.build / "logs" / f"guest-program-{source.stem}.log",
    )
    return [out / source.stem]


def install(guest: Guest, programs: dict[str, Path], place: str = PLACE) -> None:
    """Copy programs into a guest, in one archive because static programs share most bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, path in programs.items():
            archive.add(path, name)
    guest.put(packed.getvalue(), f"{place}.tar.xz")
    guest.run(["mkdir", "-p", place], timeout_s=5, check=True)
    guest.run(["tar", "-xJf", f"{place}.tar.xz", "-C", place], timeout_s=30, check=True)
