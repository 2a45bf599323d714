"""Configure ccache for compiling a kernel: the place of its cache, and how it recognizes a file.

Nothing here changes the kernel.  Remote caches are in helpers.py, symbol versions in
symbol_versions.py, and measurements in docs/results/building.md.
"""

from __future__ import annotations

from pathlib import Path

from kbuild.core import fs
from kbuild.core.model import Settings
from kbuild.core.sandbox import Bind
from kbuild.kernel.kconfig import Fragment

# The path, in the root, of the program for make's HOSTCC.
HOST_COMPILER = "/mnt/input/host-compiler"

_SIZE = "8G"
_PLACE = "/mnt/ccache"
# The path, in the root, of the final configuration as the compiler sees it, one option a line.
_OPTIONS = "/mnt/input/options"
# Makes ccache recognize a file by the compiler's dependency files.
_DEPENDING = {
    "CCACHE_DEPEND": "1",
    "CCACHE_IGNOREHEADERS": "include/generated/autoconf.h",
    "CCACHE_EXTRAFILES": _OPTIONS,
}


def bind(settings: Settings) -> Bind:
    """Return the bind that shows this machine's cache in a root; make the cache if missing."""
    place = settings.cache / "ccache"
    place.mkdir(parents=True, exist_ok=True)
    return Bind(place, _PLACE, writable=True)


def environment(*, distro_options: bool) -> dict[str, str]:
    """Return ccache's environment for building a kernel.

    ``distro_options`` tells whether the kernel's configuration is the distro's own.
    """
    told = {
        "CCACHE_DIR": _PLACE,
        "CCACHE_MAXSIZE": _SIZE,
        # A root that is made again has the same compiler with other file times.
        "CCACHE_COMPILERCHECK": "content",
    }
    if distro_options:
        # Two modes were measured (docs/results/building.md).  With the preprocessor, ccache knows a
        # file after a change of an option that it does not use, for a quarter of the cost of
        # compiling.  The distro's options do not change, but from one release or flavour to
        # another nearly every preprocessed text does.  The compiler's dependency files are then
        # as good, and cost nothing.  Each file depends on the header with all options, and its
        # first lines name the version, so a file with only the options replaces it.
        told |= _DEPENDING
    return told


def write_host_compiler(given: Path, compiler: str) -> None:
    """Write the program that compiles the build's own tools; the root shows it in /mnt/input.

    It must be one word, because Linux 7 passes it to rustc unchanged (``-Clinker=$(HOSTCC)`` in
    scripts/Makefile.host and rust/Makefile).
    """
    fs.write_if_changed(
        given / Path(HOST_COMPILER).name,
        f"""#!/bin/sh
# A dependency file of kbuild's tells of no system headers, which programs for the build
# itself include: so these are known by their preprocessed text.
unset {" ".join(_DEPENDING)}
exec ccache {compiler} "$@"
""",
        mode=0o755,
    )


def write_options(given: Path, final: Fragment) -> None:
    """Write the options in include/generated/autoconf.h, without its heading, if they changed.

    The root shows the file in /mnt/input.
    """
    there = {name: value for name, value in final.options.items() if value != "n"}
    fs.write_if_changed(given / Path(_OPTIONS).name, Fragment("defined", there).text())
