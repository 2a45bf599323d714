"""What ccache is told when a kernel is compiled: where its cache is, and how it knows a file.

Nothing here decides what a kernel is made of.  Other machines' caches are in helpers.py,
symbol versions in symbol_versions.py; what was measured is in docs/building.md.
"""

from __future__ import annotations

from pathlib import Path

from kbuild.core import fs
from kbuild.core.model import Settings
from kbuild.core.sandbox import Bind
from kbuild.kernel.kconfig import Fragment

# The program for make's HOSTCC, as the root shows it.
HOST_COMPILER = "/mnt/input/host-compiler"

_SIZE = "8G"
_PLACE = "/mnt/ccache"
# The final configuration as the compiler sees it, one option in a line.
_OPTIONS = "/mnt/input/options"
# What tells ccache to know a file by what the compiler says that it was made from.
_DEPENDING = {
    "CCACHE_DEPEND": "1",
    "CCACHE_IGNOREHEADERS": "include/generated/autoconf.h",
    "CCACHE_EXTRAFILES": _OPTIONS,
}


def bind(settings: Settings) -> Bind:
    """Return where a root shows this machine's cache, which is made if it is not there."""
    place = settings.cache / "ccache"
    place.mkdir(parents=True, exist_ok=True)
    return Bind(place, _PLACE, writable=True)


def environment(*, distro_options: bool) -> dict[str, str]:
    """Return what ccache is told in its environment when a kernel is built.

    ``distro_options``: whether its configuration is the distro's own.
    """
    told = {
        "CCACHE_DIR": _PLACE,
        "CCACHE_MAXSIZE": _SIZE,
        # A root made again holds the same compiler with other file times.
        "CCACHE_COMPILERCHECK": "content",
    }
    if distro_options:
        # By the preprocessor ccache still knows a file for which only an option changed that it
        # does not ask for, at a quarter of what compiling costs.  The distro's options do not
        # change, and from one release or flavour to another nearly every preprocessed text does
        # (docs/building.md): the compiler's dependency files tell as much, and cost nothing.
        # Each file depends on the header with all options, whose first lines name the version:
        # the options themselves stand for it.
        told |= _DEPENDING
    return told


def write_host_compiler(given: Path, compiler: str) -> None:
    """Write the program that compiles for the build itself into what is shown as /mnt/input.

    It has to be one word: Linux 7 gives it to rustc as it is (``-Clinker=$(HOSTCC)`` in
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
    """Write what include/generated/autoconf.h says of a configuration, without its heading.

    Into what is shown as /mnt/input; left alone when it says that already.
    """
    there = {name: value for name, value in final.options.items() if value != "n"}
    fs.write_if_changed(given / Path(_OPTIONS).name, Fragment("defined", there).text())
