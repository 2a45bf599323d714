"""The programs that run inside guests: static, compiled in the compile root, sent in one file."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from kbuild import fs, roots, stamp
from kbuild.model import Settings
from kbuild.roots import Bind
from kbuild.suites import suite
from kbuild.vm.guest import Guest

# Where the programs lie in a guest.
PLACE = "/tmp/programs"

_FLAGS = ("-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror")


def compile_programs(settings: Settings, suite_name: str, names: Sequence[str]) -> dict[str, Path]:
    """Compile tests/guest/<name>.c for each name, those alone that changed; raises BuildError."""
    sources = settings.project / "tests" / "guest"
    out = settings.build / suite_name / "guest-programs"
    out.mkdir(parents=True, exist_ok=True)
    root = roots.compile_root(settings, suite_name)
    headers = {path.name: fs.sha256_file(path) for path in sorted(sources.glob("*.h"))}
    for name in names:
        inputs = headers | {
            "source": fs.sha256_file(sources / f"{name}.c"),
            "root": root.digest,
            "flags": " ".join(_FLAGS),
        }
        mark = out / f"{name}.json"
        with fs.lock(out / f".{name}.lock"):
            if stamp.due(mark, inputs) is None:
                continue
            mark.unlink(missing_ok=True)
            roots.enter(
                root,
                [
                    suite(suite_name).compiler,
                    *_FLAGS,
                    *("-o", f"/mnt/out/{name}", f"/mnt/guest/{name}.c"),
                ],
                timeout_s=120,
                binds=[Bind(sources, "/mnt/guest"), Bind(out, "/mnt/out", writable=True)],
                log=settings.build / "logs" / f"guest-program-{name}.log",
            )
            stamp.write(mark, inputs, [out / name], 0.0)
    return {name: out / name for name in names}


def install(guest: Guest, programs: dict[str, Path], place: str = PLACE) -> None:
    """Put programs into a guest, in one archive: most of a static program is the library."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, path in programs.items():
            archive.add(path, name)
    guest.put(packed.getvalue(), f"{place}.tar.xz")
    guest.run(["mkdir", "-p", place], timeout_s=5, check=True)
    guest.run(["tar", "-xJf", f"{place}.tar.xz", "-C", place], timeout_s=30, check=True)
